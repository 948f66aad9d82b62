"""Odds of sequential verdicts: those that the product's own judges have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_inferperf.gates.asking import asking_looks
from pytest_inferperf.gates.looks import QUESTIONS, Decision, Unresolvable, single_look
from pytest_inferperf.gates.odds import block_odds, floor_odds, least, question_odds, session_odds
from pytest_inferperf.gates.paired import binomial_bounds, judge_paired, look_sizes
from pytest_inferperf.gates.sessions import Block, judge_blocks, judge_sessions

REPEATS = 600
ROOM = 4 * math.sqrt(0.25 / REPEATS)
"""Four standard errors of a share of the repeats."""


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(("sd", "loss"), [(0.01, 0.0), (0.01, 0.03), (0.01, 0.05), (0.03, 0.05), (0.03, 0.1)])
def test_sessions(sd: float, loss: float, higher: bool) -> None:
    generator = np.random.default_rng(11)
    shift = math.log1p(-loss) if higher else math.log1p(loss)
    found = []
    for _ in range(REPEATS):
        stored, new = np.exp(generator.normal(0, sd, 10)), np.exp(generator.normal(shift, sd, 5))
        verdict = judge_sessions(
            [(value,) for value in stored.tolist()],
            [(value,) for value in new.tolist()],
            higher_is_better=higher,
            tolerance=0.05,
        )
        # Sets of sessions so noisy that the judge refuses them are rare here.
        if not isinstance(verdict, Unresolvable):
            found.append(verdict)
    odds = session_odds(sd=sd, baseline_sessions=10, loss=loss, tolerance=0.05, higher_is_better=higher)
    assert len(found) > 0.95 * REPEATS
    assert np.mean([item.status is Decision.FAIL for item in found]) == pytest.approx(odds.fails, abs=ROOM)
    assert np.mean([item.status is Decision.PASS for item in found]) == pytest.approx(odds.passes, abs=ROOM)
    assert np.mean([item.used for item in found]) == pytest.approx(odds.used, abs=0.3)


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(("sd", "loss"), [(0.01, 0.0), (0.01, 0.03), (0.03, 0.03), (0.03, -0.1)])
def test_blocks(sd: float, loss: float, higher: bool) -> None:
    generator = np.random.default_rng(13)
    shift = math.log1p(-loss) if higher else math.log1p(loss)
    found = []
    for _ in range(REPEATS):
        new = np.exp(generator.normal(shift, sd, 10))
        verdict = judge_blocks(
            [Block(reference=(1.0,), candidate=(value,)) for value in new.tolist()],
            higher_is_better=higher,
            tolerance=0.03,
        )
        assert not isinstance(verdict, Unresolvable)
        found.append(verdict)
    odds = block_odds(sd=sd, loss=loss, tolerance=0.03, higher_is_better=higher)
    assert np.mean([item.status is Decision.FAIL for item in found]) == pytest.approx(odds.fails, abs=ROOM)
    assert np.mean([item.status is Decision.PASS for item in found]) == pytest.approx(odds.passes, abs=ROOM)
    assert np.mean([item.used for item in found]) == pytest.approx(odds.used, abs=0.4)


@pytest.mark.parametrize(("score", "floor"), [(0.6, 0.55), (0.6, 0.59), (0.6, 0.62), (0.6, 0.7)])
def test_floors(score: float, floor: float) -> None:
    """Clopper-Pearson bounds at every look but the last, which compares the score itself."""
    generator = np.random.default_rng(14)
    looks = asking_looks(1000)
    levels = [level for _, level in look_sizes(1000)]
    passes, used = 0, 0
    for _ in range(REPEATS):
        right = np.cumsum(generator.random(1000) < score)
        for size, level in zip(looks, levels, strict=True):
            share = right[size - 1] / size
            low, high = binomial_bounds(int(right[size - 1]), size, level) if size < 1000 else (share, share)
            if low >= floor or high < floor:
                passes, used = passes + (low >= floor), used + size
                break
    odds = floor_odds(score=score, questions=1000, floor=floor)
    assert passes / REPEATS == pytest.approx(odds.passes, abs=ROOM)
    assert odds.passes + odds.fails == pytest.approx(1, abs=0.01)
    assert used / REPEATS == pytest.approx(odds.used, rel=0.06)


def test_answers_that_are_judged_once() -> None:
    """One look at all of alpha: no question is saved, and a loss of the tolerance is found more often."""
    once = single_look(QUESTIONS.unit, QUESTIONS.cap)
    whole = question_odds(spread=0.05, questions=3000, loss=0.02, tolerance=0.02, looks=once)
    looks = question_odds(spread=0.05, questions=3000, loss=0.02, tolerance=0.02)
    assert whole.used == 3000
    assert looks.used < 3000
    assert whole.passes == pytest.approx(0.05, abs=0.01)
    assert whole.fails > looks.fails


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.02, 0.04])
def test_questions(loss: float) -> None:
    generator = np.random.default_rng(12)
    count, flips = 1400, 0.05
    reference = generator.permutation(np.repeat([1.0, 0.0], [1050, 350]))
    chance = np.where(reference == 1, (flips + loss) / 2 / 0.75, (flips - loss) / 2 / 0.25)
    found = []
    for _ in range(REPEATS):
        new = np.where(generator.random(count) < chance, 1 - reference, reference)
        verdict = judge_paired(reference, new, tolerance=0.02)
        assert not isinstance(verdict, Unresolvable)
        found.append(verdict)
    odds = question_odds(spread=flips, questions=count, loss=loss, tolerance=0.02)
    assert np.mean([item.status is Decision.FAIL for item in found]) == pytest.approx(odds.fails, abs=ROOM)
    assert np.mean([item.status is Decision.PASS for item in found]) == pytest.approx(odds.passes, abs=ROOM)
    assert np.mean([item.used for item in found]) == pytest.approx(odds.used, rel=0.06)


def test_the_figures_of_the_statistics() -> None:
    """The simulated table: 5 % slower at sd 1 % and 10 stored sessions fails in 94 %; two points of 14,042 in 96.9 %."""
    speed = session_odds(sd=math.hypot(0.01, 0.02 / math.sqrt(5)), baseline_sessions=10, loss=0.05, tolerance=0.05)
    assert speed.fails > 0.93
    assert speed.passes < 0.05
    answers = question_odds(spread=0.05, questions=14042, loss=0.02, tolerance=0.02)
    assert answers.fails == pytest.approx(0.969, abs=0.02)
    same = question_odds(spread=0.05, questions=14042, loss=0.0, tolerance=0.02)
    assert same.passes == pytest.approx(1, abs=0.002)
    assert same.used == pytest.approx(3511, rel=0.02)


def test_without_flips_the_bound_is_the_exact_one() -> None:
    """The first look of 400 questions bounds a loss at 1 - .0121^(1/100) = 4.3 %, the last at .9 %."""
    assert question_odds(spread=0.0, questions=400, loss=0.0, tolerance=0.044).used == 100
    assert question_odds(spread=0.0, questions=400, loss=0.0, tolerance=0.0091).used == 400
    assert question_odds(spread=0.0, questions=400, loss=0.0, tolerance=0.0089).passes == 0


def test_alpha() -> None:
    loose, strict = (
        session_odds(sd=0.02, baseline_sessions=10, loss=0.05, tolerance=0.05, alpha=alpha).fails
        for alpha in (0.05, 0.005)
    )
    assert strict < loose - 0.1


def test_least() -> None:
    assert least(lambda value: value >= 37, low=1, high=1000) == pytest.approx(37, rel=0.01)
    assert least(lambda value: value > 1000, low=1, high=1000) is None


def test_a_tolerance_of_nothing() -> None:
    with pytest.raises(ValueError, match="tolerance has to be above 0"):
        session_odds(sd=0.01, baseline_sessions=10, loss=0.0, tolerance=0.0)
    with pytest.raises(ValueError, match="questions has to be above 0"):
        question_odds(spread=0.05, questions=0, loss=0.0, tolerance=0.01)
    with pytest.raises(ValueError, match="tolerance has to be above 0"):
        block_odds(sd=0.01, loss=0.0, tolerance=0.0)


def test_a_score_that_is_no_share() -> None:
    with pytest.raises(ValueError, match="score has to be from 0 to 1, not 12"):
        floor_odds(score=12.0, questions=100, floor=0.5)
