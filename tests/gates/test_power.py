"""Planner: the table of the facts, and each number against what it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pytest_inferperf.gates.looks import SESSIONS
from pytest_inferperf.gates.power import (
    baseline_sessions_to_decide,
    blocks_to_decide,
    detectable_loss,
    log_margin,
    questions_to_decide,
    questions_to_detect,
    questions_to_prove,
    questions_unpaired,
    relative_loss,
    session_power,
    sessions_for_power,
    sessions_to_decide,
    smallest_tolerance,
    smallest_tolerance_of_questions,
    t_quantile,
    z_quantile,
)

PLANNER = {
    0.01: ((2474, 3426), (619, 857), (155, 215)),
    0.03: ((7420, 10277), (1855, 2570), (464, 643)),
    0.05: ((12366, 17128), (3092, 4282), (773, 1071)),
    0.10: ((24731, 34256), (6183, 8564), (1546, 2141)),
    0.15: ((37096, 51384), (9274, 12846), (2319, 3212)),
}
MARGINS = (0.005, 0.01, 0.02)


@pytest.mark.parametrize("flips", PLANNER)
def test_planner_table(flips: float) -> None:
    found = tuple(
        tuple(questions_to_prove(margin=margin, spread=flips, power=power) for power in (0.8, 0.9))
        for margin in MARGINS
    )
    assert found == PLANNER[flips]


def test_planner_table_unpaired() -> None:
    found = [
        tuple(questions_unpaired(margin=margin, accuracy=0.75, power=power) for power in (0.8, 0.9))
        for margin in MARGINS
    ]
    assert found == [(92739, 128458), (23185, 32115), (5797, 8029)]


def test_questions_to_detect_by_hand() -> None:
    """d = 5 %, L = 1 point, 80 %: (1.6449 * .22361 + .8416 * .22338)^2 / .0001 = 3,091."""
    assert questions_to_detect(loss=0.01, spread=0.05, power=0.8) == 3090
    assert questions_to_detect(loss=0.02, spread=0.05) < questions_to_detect(loss=0.01, spread=0.05)


@pytest.mark.parametrize("flips", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("power", [0.8, 0.9])
@pytest.mark.parametrize("questions", [250, 1319, 14042])
def test_detectable_loss_inverts_the_number_of_questions(questions: int, power: float, flips: float) -> None:
    loss = detectable_loss(questions, spread=flips, power=power)
    assert questions_to_detect(loss=loss, spread=flips, power=power) == pytest.approx(questions, abs=1)


def test_a_handful_of_questions_detects_nothing_below_all_flips() -> None:
    assert detectable_loss(2, spread=0.04) == pytest.approx(0.2)


def test_questions_to_decide() -> None:
    """4 z^2 d / (m1 - m0)^2 with z(.0269) = 1.928."""
    assert questions_to_decide(spread=0.05, tolerance=0.01, free_zone=0.005) == pytest.approx(29740, rel=0.001)


def test_smallest_tolerance_of_questions() -> None:
    """No flips leave the rule of three at the last look's level; flips leave z sqrt(d/N)."""
    assert smallest_tolerance_of_questions(250) == pytest.approx(1 - 0.0269 ** (1 / 250))
    assert smallest_tolerance_of_questions(14042, spread=0.05) == pytest.approx(
        stats.norm.isf(0.0269) * math.sqrt(0.05 / 14042)
    )
    assert smallest_tolerance_of_questions(1) == pytest.approx(0.9731)


def test_quantiles() -> None:
    assert z_quantile(0.05) == pytest.approx(1.6448536)
    assert t_quantile(0.0307, 13) == pytest.approx(stats.t.isf(0.0307, 13))
    with pytest.raises(ValueError, match="at least one degree of freedom"):
        t_quantile(0.05, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        z_quantile(0.0)


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.05, 0.5])
def test_logs_and_back(margin: float, higher_is_better: bool) -> None:
    logs = log_margin(margin, higher_is_better=higher_is_better)
    assert relative_loss(logs, higher_is_better=higher_is_better) == pytest.approx(margin)


def test_directions_of_logs() -> None:
    assert log_margin(0.05, higher_is_better=True) == pytest.approx(-math.log(0.95))
    assert log_margin(0.05, higher_is_better=False) == pytest.approx(math.log(1.05))


def test_smallest_tolerance() -> None:
    """10 stored sessions 1.7 % apart: t(.0307, 13) * .017 * sqrt(1/10 + 1/5) = 1.9 %."""
    found = smallest_tolerance(sd=0.017, baseline_sessions=10)
    assert found == pytest.approx(1 - math.exp(-stats.t.isf(0.0307, 13) * 0.017 * math.sqrt(0.3)))
    assert found == pytest.approx(0.019, abs=0.0005)
    assert smallest_tolerance(sd=0.017, baseline_sessions=1) == math.inf
    assert smallest_tolerance(sd=0.017, baseline_sessions=20) < found
    assert smallest_tolerance(sd=0.017, baseline_sessions=10, higher_is_better=False) > found


def test_the_smallest_tolerance_lets_half_of_the_unchanged_engines_pass() -> None:
    """What `smallest_tolerance` means, by simulation of the last look."""
    generator = np.random.default_rng(1)
    sd = 0.017
    margin = log_margin(smallest_tolerance(sd=sd, baseline_sessions=10), higher_is_better=True)
    before, after = generator.normal(0, sd, (20_000, 10)), generator.normal(0, sd, (20_000, 5))
    pooled = np.sqrt((9 * before.var(axis=1, ddof=1) + 4 * after.var(axis=1, ddof=1)) / 13)
    upper = before.mean(axis=1) - after.mean(axis=1) + stats.t.isf(0.0307, 13) * pooled * math.sqrt(0.3)
    assert float((upper < margin).mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("sd", [0.002, 0.005, 0.01, 0.017])
def test_sessions_to_decide_is_the_least(sd: float) -> None:
    gap = 0.04

    def twice(n0: int, n1: int) -> float:
        return float(2 * stats.t.isf(SESSIONS.levels[-1], n0 + n1 - 2) * sd * math.sqrt(1 / n0 + 1 / n1))

    candidates = sessions_to_decide(sd=sd, baseline_sessions=10, gap=gap)
    assert candidates is not None
    assert twice(10, candidates) < gap
    assert candidates == 1 or twice(10, candidates - 1) >= gap
    stored = baseline_sessions_to_decide(sd=sd, gap=gap)
    assert stored is not None
    assert twice(stored, 5) < gap
    assert stored == 2 or twice(stored - 1, 5) >= gap


def test_no_number_of_sessions_is_enough() -> None:
    assert sessions_to_decide(sd=0.05, baseline_sessions=10, gap=0.02) is None
    assert baseline_sessions_to_decide(sd=0.05, gap=0.02) is None
    assert blocks_to_decide(sd=10.0, gap=0.001, level=0.0281) is None
    assert sessions_for_power(sd=0.05, baseline_sessions=5, loss=0.03, free_zone=0.006) is None


def test_blocks_to_decide_is_the_least() -> None:
    blocks = blocks_to_decide(sd=0.02, gap=0.024, level=0.0281)
    assert blocks is not None

    def twice(count: int) -> float:
        return float(2 * stats.t.isf(0.0281, count - 1) * 0.02 / math.sqrt(count))

    assert twice(blocks) < 0.024 <= twice(blocks - 1)


def test_session_power_by_simulation() -> None:
    generator = np.random.default_rng(2)
    sd, n0, n1, loss, zone = 0.017, 10, 5, 0.05, 0.01
    before, after = generator.normal(0, sd, (20_000, n0)), generator.normal(math.log1p(-loss), sd, (20_000, n1))
    pooled = np.sqrt((9 * before.var(axis=1, ddof=1) + 4 * after.var(axis=1, ddof=1)) / 13)
    width = stats.t.isf(SESSIONS.levels[-1], 13) * pooled * math.sqrt(1 / n0 + 1 / n1)
    found = (before.mean(axis=1) - after.mean(axis=1) - width > -math.log1p(-zone)).mean()
    expected = session_power(sd=sd, baseline_sessions=n0, candidate_sessions=n1, loss=loss, free_zone=zone)
    assert float(found) == pytest.approx(expected, abs=0.01)


def test_sessions_for_power_is_the_least() -> None:
    plan = {"sd": 0.017, "baseline_sessions": 10, "loss": 0.05, "free_zone": 0.01}
    count = sessions_for_power(power=0.9, **plan)  # type: ignore[arg-type]
    assert count is not None
    assert session_power(candidate_sessions=count, **plan) >= 0.9  # type: ignore[arg-type]
    assert count == 1 or session_power(candidate_sessions=count - 1, **plan) < 0.9  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_margins(value: float) -> None:
    with pytest.raises(ValueError, match="margin has to be above 0"):
        questions_to_prove(margin=value, spread=0.05)
    with pytest.raises(ValueError, match="spread has to be above 0"):
        questions_to_detect(loss=0.01, spread=value)
    with pytest.raises(ValueError, match="gap has to be above 0"):
        questions_to_decide(spread=0.05, tolerance=value, free_zone=math.inf)


def test_a_loss_larger_than_the_flips() -> None:
    with pytest.raises(ValueError, match="at least its square"):
        questions_to_detect(loss=0.5, spread=0.05)
    with pytest.raises(ValueError, match="questions has to be above 0"):
        smallest_tolerance_of_questions(0)
