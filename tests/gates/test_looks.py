"""Looks: the shipped levels against the integral they stand for, and the rule of three outcomes."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from scipy import stats

from pytest_inferperf.gates.looks import (
    ALPHA,
    BLOCKS,
    QUESTIONS,
    SESSIONS,
    Decision,
    LookSchedule,
    check_margins,
    decide,
    nominal_levels,
    single_look,
)

SCHEDULES = (SESSIONS, BLOCKS, QUESTIONS)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.unit)
def test_shipped_levels_are_those_of_linear_spending(schedule: LookSchedule) -> None:
    computed = nominal_levels(tuple(look / schedule.cap for look in schedule.looks), ALPHA)
    assert schedule.levels == pytest.approx(computed, abs=0.0006)


def test_levels_by_numerical_integration_in_the_facts() -> None:
    assert nominal_levels((0.2, 0.4, 0.6, 1.0)) == pytest.approx((0.0100, 0.0132, 0.0170, 0.0308), abs=5e-5)
    assert nominal_levels((0.3, 0.5, 0.7, 1.0)) == pytest.approx((0.0150, 0.0157, 0.0193, 0.0283), abs=5e-5)
    assert nominal_levels((0.25, 0.5, 0.75, 1.0)) == pytest.approx((0.0125, 0.0168, 0.0218, 0.0271), abs=6e-5)


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05, 0.2])
def test_two_looks_against_the_bivariate_normal(alpha: float) -> None:
    """Independent of the recursion: P(Z1 <= b1, Z2 > b2) from scipy's bivariate normal is what the second look spends."""
    first, second = nominal_levels((0.4, 1.0), alpha)
    bounds = [stats.norm.isf(first), stats.norm.isf(second)]
    correlation = math.sqrt(0.4)
    both = stats.multivariate_normal.cdf(bounds, cov=[[1, correlation], [correlation, 1]])
    assert first == pytest.approx(0.4 * alpha, abs=1e-7)
    assert float(stats.norm.cdf(bounds[0]) - both) == pytest.approx(0.6 * alpha, abs=2e-6)


def test_one_look_spends_everything() -> None:
    assert nominal_levels((1.0,), 0.05) == pytest.approx((0.05,), abs=1e-9)
    assert single_look("sessions", 5).reached(5) == ((5, 0.05),)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.unit)
def test_smaller_alpha_has_smaller_levels_that_cost_more_than_alpha_in_sum(schedule: LookSchedule) -> None:
    before = schedule.levels
    for alpha in (0.02, 0.005, 0.05 / 40):
        levels = schedule.at(alpha).levels
        assert all(new < old for new, old in zip(levels, before, strict=True))
        assert max(levels) == levels[-1] < alpha < sum(levels)
        before = levels


def test_the_default_alpha_keeps_the_shipped_levels() -> None:
    assert SESSIONS.at(0.05) is SESSIONS
    assert SESSIONS.at(0.01).looks == SESSIONS.looks


def test_looks_reached_and_following() -> None:
    assert SESSIONS.reached(0) == ()
    assert SESSIONS.reached(4) == ((1, 0.0097), (2, 0.0133), (3, 0.0172))
    assert (SESSIONS.following(0), SESSIONS.following(3), SESSIONS.following(4)) == (1, 5, 5)
    assert SESSIONS.following(5) is None
    assert BLOCKS.cap == 10


@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.1, math.nan])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha has to be between 0 and 0\.5"):
        SESSIONS.at(alpha)
    with pytest.raises(ValueError, match=r"alpha has to be between 0 and 0\.5"):
        single_look("sessions", 1, alpha=alpha)


@pytest.mark.parametrize("fractions", [(), (0.0, 1.0), (0.5, 1.5), (0.5, 0.5), (1.0, 0.5)])
def test_fractions_out_of_order(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fractions have to"):
        nominal_levels(fractions)


@pytest.mark.parametrize("looks", [(), (0, 1), (2, 2), (3, 1)])
def test_looks_out_of_order(looks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="looks have to be positive and to grow"):
        LookSchedule(unit="sessions", looks=looks, levels=(0.01,) * len(looks))


def test_a_level_per_look() -> None:
    with pytest.raises(ValueError, match="2 looks have 1 levels"):
        LookSchedule(unit="sessions", looks=(1, 2), levels=(0.05,))


@pytest.mark.parametrize(
    ("lower", "upper", "decision"),
    [
        (-0.01, 0.049, Decision.PASS),
        (-0.01, 0.05, Decision.OPEN),
        (0.01, 0.06, Decision.OPEN),
        (0.011, 0.06, Decision.FAIL),
        (0.011, 0.049, Decision.PASS),
        (-math.inf, math.inf, Decision.OPEN),
    ],
)
def test_pass_is_tested_first_and_bounds_are_strict(lower: float, upper: float, decision: Decision) -> None:
    assert decide(lower=lower, upper=upper, free_zone=0.01, tolerance=0.05) is decision


@pytest.mark.parametrize("bounds", [(math.nan, 1.0), (0.0, math.nan)])
def test_nan_decides_nothing(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="are not numbers"):
        decide(lower=bounds[0], upper=bounds[1], free_zone=0.01, tolerance=0.05)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan, math.inf])
def test_tolerance_above_zero(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance has to be above 0"):
        check_margins(tolerance=tolerance, free_zone=0.01)


@pytest.mark.parametrize("free_zone", [0.0, -0.1, 0.05, 0.1, math.nan])
def test_free_zone_inside_the_tolerance(free_zone: float) -> None:
    with pytest.raises(ValueError, match="free zone has to be above 0 and below the tolerance"):
        check_margins(tolerance=0.05, free_zone=free_zone)


def test_importing_the_gates_loads_no_numpy() -> None:
    code = (
        "import sys; from pytest_inferperf.gates import looks, paired, power, sessions; "
        "print([name for name in ('numpy', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
