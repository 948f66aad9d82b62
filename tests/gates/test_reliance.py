"""What gates can be relied on for, and the sizes of injections, against simulation of the product's own judges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_inferperf.gates.looks import Decision, Unresolvable
from pytest_inferperf.gates.paired import judge_paired
from pytest_inferperf.gates.reliance import (
    POWER,
    certain_factor,
    certain_factor_of_blocks,
    certain_share,
    rely_on_blocks,
    rely_on_questions,
    rely_on_sessions,
    spread_of_blocks,
    spread_of_sessions,
    times_as_good,
)
from pytest_inferperf.gates.sessions import Block, judge_blocks, judge_sessions


def sessions(rng: np.random.Generator, count: int, *, level: float = 100.0, sd: float = 0.01) -> list[list[float]]:
    return [[level * math.exp(value)] * 3 for value in rng.normal(0, sd, count)]


def alternating(count: int, sd: float) -> list[list[float]]:
    """Sessions whose standard deviation is exactly `sd`."""
    values = np.array([1.0 if index % 2 else -1.0 for index in range(count)])
    values *= sd / values.std(ddof=1)
    return [[100 * math.exp(value)] for value in values]


def test_spread() -> None:
    assert spread_of_sessions(alternating(10, 0.01)) == pytest.approx(0.01)
    assert spread_of_sessions(alternating(4, 0.01)) is None
    assert spread_of_sessions([[5.0]] * 10) == 1e-4


@pytest.mark.parametrize("higher", [True, False])
def test_sessions_detect_what_they_are_relied_on_for(higher: bool) -> None:
    rng = np.random.default_rng(1)
    stored = alternating(10, 0.01)
    found = rely_on_sessions(stored, tolerance=0.05, higher_is_better=higher)
    assert found.detects_its_own
    assert found.more == 0
    assert found.least == 0.05
    level = 100 * (1 - found.least if higher else 1 + found.least)
    failed = 0
    for _ in range(400):
        verdict = judge_sessions(
            stored, sessions(rng, 5, level=level), higher_is_better=higher, tolerance=0.05, free_zone=0.01
        )
        assert not isinstance(verdict, Unresolvable)
        failed += verdict.status is Decision.FAIL
    assert failed / 400 > POWER


def test_noisy_sessions_do_not_detect_their_own_tolerance() -> None:
    found = rely_on_sessions(alternating(6, 0.02), tolerance=0.03, higher_is_better=True)
    assert not found.detects_its_own
    assert found.least is not None
    assert found.least > 0.03
    more = found.more
    assert more is None or more > 0
    quieter = rely_on_sessions(alternating(6, 0.012), tolerance=0.03, higher_is_better=True)
    assert quieter.more is not None
    assert quieter.more > 0
    enough = rely_on_sessions(alternating(6 + quieter.more, 0.012), tolerance=0.03, higher_is_better=True)
    assert enough.detects_its_own


def test_few_sessions_say_nothing() -> None:
    found = rely_on_sessions([[100.0]] * 2, tolerance=0.05, higher_is_better=True)
    assert (found.least, found.more, found.detects_its_own) == (None, 3, False)


def fails(questions: int, flips: float, loss: float, tolerance: float, runs: int, seed: int) -> float:
    """Share of runs that fail when a true loss is added to unavoidable flips both ways."""
    rng = np.random.default_rng(seed)
    failed = 0
    for _ in range(runs):
        draw = rng.random(questions)
        old = np.ones(questions)
        old[draw < flips / 2] = 0
        new = np.ones(questions)
        new[(draw >= flips / 2) & (draw < flips + loss)] = 0
        verdict = judge_paired(old, new, tolerance=tolerance)
        assert not isinstance(verdict, Unresolvable)
        failed += verdict.status is Decision.FAIL
    return failed / runs


def test_questions_detect_what_they_are_relied_on_for() -> None:
    found = rely_on_questions(1500, spread=0.05, tolerance=0.03, binary=True)
    assert found.least is not None
    assert not found.detects_its_own
    assert fails(1500, 0.05, found.least, 0.03, 200, 1) > POWER - 0.05
    enough = rely_on_questions(1500 + (found.more or 0), spread=0.05, tolerance=0.03, binary=True)
    assert enough.least == pytest.approx(0.03, abs=2e-4)


def test_a_certain_share_fails_always_and_is_no_larger_than_needed() -> None:
    share = certain_share(0.03, questions=1000, answered=1000, spread=0.05, tested=True)
    assert 0.05 < share < 0.1
    assert fails(1000, 0.05, share, 0.03, 200, 2) == 1.0
    assert certain_share(0.03, questions=1000, answered=1000, spread=0.0, tested=False) < share
    assert certain_share(0.9, questions=10, answered=10, spread=0.5, tested=True) == 1.0


@pytest.mark.parametrize(("measured", "limit"), [(100.0, 95.0), (100.0, 105.0)])
def test_a_certain_factor_does_not_ask_which_way_is_worse(measured: float, limit: float) -> None:
    quiet = certain_factor(measured, limit, rounds=[100.0, 101.0])
    assert quiet == pytest.approx(max(measured, limit) / min(measured, limit) * 1.15)
    assert certain_factor(measured, limit, rounds=[80.0, 120.0]) > 1.5
    stored = alternating(5, 0.1)
    assert certain_factor(measured, limit, rounds=[100.0], sessions=stored) > 1.4


def test_a_certain_factor_fails_by_the_last_look() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        stored = sessions(rng, 6, sd=0.1)
        factor = certain_factor(100, 50, rounds=[100.0], sessions=stored)
        verdict = judge_sessions(
            stored, sessions(rng, 5, level=100 / factor, sd=0.1), higher_is_better=True, tolerance=0.5
        )
        assert not isinstance(verdict, Unresolvable)
        assert verdict.status is Decision.FAIL


def differing(count: int, *, ratio: float, sd: float, rng: np.random.Generator) -> list[Block]:
    """Blocks of a candidate that is `ratio` times as large as its reference."""
    return [
        Block(reference=(100.0, 100.0), candidate=(100 * ratio * math.exp(value),) * 2)
        for value in rng.normal(0, sd, count)
    ]


def test_times_as_good() -> None:
    twice = differing(4, ratio=2.0, sd=0.0, rng=np.random.default_rng(0))
    assert times_as_good(twice, higher_is_better=True) == pytest.approx(2.0)
    assert times_as_good(twice, higher_is_better=False) == pytest.approx(0.5)
    assert spread_of_blocks(twice) == 1e-4


@pytest.mark.parametrize("higher", [True, False])
def test_blocks_detect_what_they_are_relied_on_for(higher: bool) -> None:
    rng = np.random.default_rng(5)
    seen = differing(10, ratio=1.0, sd=0.06, rng=rng)
    found = rely_on_blocks(seen, tolerance=0.05, higher_is_better=higher)
    assert found.least is not None
    assert found.least > 0.05
    assert (found.detects_its_own, found.more) == (False, None)
    ratio, failed = 1 - found.least if higher else 1 + found.least, 0
    for _ in range(200):
        sample = differing(10, ratio=ratio, sd=spread_of_blocks(seen), rng=rng)
        verdict = judge_blocks(sample, higher_is_better=higher, tolerance=0.05)
        assert not isinstance(verdict, Unresolvable)
        failed += verdict.status is Decision.FAIL
    assert failed / 200 > POWER - 0.05
    assert rely_on_blocks(
        differing(3, ratio=2.0, sd=0.005, rng=rng), tolerance=0.05, higher_is_better=higher
    ).detects_its_own


def test_a_certain_factor_of_blocks_fails_by_the_last_look() -> None:
    rng = np.random.default_rng(7)
    for _ in range(100):
        seen = differing(10, ratio=2.0, sd=0.05, rng=rng)
        factor = certain_factor_of_blocks(2.0, 0.95, blocks=seen)
        verdict = judge_blocks(
            differing(10, ratio=2.0 / factor, sd=0.05, rng=rng), higher_is_better=True, tolerance=0.05
        )
        assert not isinstance(verdict, Unresolvable)
        assert verdict.status is Decision.FAIL


def test_what_was_not_asked_makes_a_loss_uncertain() -> None:
    whole = certain_share(0.05, questions=1000, answered=1000, spread=0.1, tested=False)
    part = certain_share(0.05, questions=1000, answered=250, spread=0.1, tested=False)
    # Three standard deviations of the mean of the other three quarters.
    assert part - whole == pytest.approx(3 * math.sqrt(0.1 * (1 / 250 - 1 / 1000)), rel=0.2)
