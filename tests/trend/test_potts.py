"""Steps in a series: known answers, what noise alone shows, and what outliers do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pytest_inferperf.trend.potts import LEAST_POINTS, PENALTY, find_steps

SD = 0.01


def correlated(series: int, points: int, *, correlation: float = 0.5, seed: int = 1) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(series, points)) * SD
    for point in range(1, points):
        values[:, point] = correlation * values[:, point - 1] + math.sqrt(1 - correlation**2) * values[:, point]
    return values


def exhaustive(values: NDArray[np.float64], penalty: float) -> list[int]:
    """Weigh every segmentation, by the definition of the fit."""

    def best(start: int) -> tuple[float, list[int]]:
        if start == len(values):
            return -penalty, []
        found = []
        for end in range(start + 2, len(values) + 1):
            part = values[start:end]
            cost, bounds = best(end)
            found.append((float(((part - part.mean()) ** 2).sum()) + penalty + cost, [end, *bounds]))
        return min(found, default=(math.inf, []))

    return [bound for bound in best(0)[1] if bound < len(values)]


def test_a_step_is_found_where_it_is_with_its_size() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=60) * SD
    values[40:] -= 0.05
    ((step,),) = find_steps([values])
    assert step.at == 40
    assert step.size == pytest.approx(-0.05, abs=0.01)
    assert step.lower < -0.05 < step.upper
    assert step.before - step.after == pytest.approx(-step.size)


def test_up_and_down_again_are_two_steps() -> None:
    values = np.random.default_rng(3).normal(size=90) * SD
    values[30:60] += 0.08
    (steps,) = find_steps([values])
    assert [step.at for step in steps] == [30, 60]
    assert steps[0].size > 0 > steps[1].size


@pytest.mark.parametrize("seed", range(8))
def test_the_fit_is_the_best_of_all(seed: int) -> None:
    from pytest_inferperf.trend.potts import _best_begins

    rng = np.random.default_rng(seed)
    values = rng.normal(size=12) + np.repeat(rng.normal(size=4) * 4, 3)
    begins = _best_begins(values[None, :], np.array([3.0]))
    end, bounds = len(values), []
    while (begin := int(begins[0, end])) > 0:
        bounds.append(begin)
        end = begin
    assert bounds[::-1] == exhaustive(values, 3.0)


def test_the_interval_holds_the_true_size() -> None:
    values = correlated(200, 120, seed=4)
    values[:, 60:] += 0.06
    found = [steps[0] for steps in find_steps(list(values)) if len(steps) == 1]
    assert len(found) > 150
    assert np.mean([step.lower < 0.06 < step.upper for step in found]) > 0.85


@pytest.mark.parametrize("points", [20, 50, 200])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_unchanged_series_show_no_steps(points: int, correlation: float) -> None:
    """At most one in 100; the binomial bound of 400 series at that rate is 10."""
    found = find_steps(list(correlated(400, points, correlation=correlation, seed=points)))
    assert sum(map(len, found)) <= 10


def test_without_the_penalty_noise_would_show_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.setattr("pytest_inferperf.trend.potts.PENALTY", PENALTY / 4)
    found = find_steps(list(correlated(100, 200)))
    assert sum(map(len, found)) > 20


def test_one_outlier_is_no_step_and_two_points_are() -> None:
    values = np.random.default_rng(5).normal(size=60) * SD
    values[30] -= 0.5
    assert find_steps([values]) == [()]
    values = np.random.default_rng(5).normal(size=60) * SD
    values[-1] -= 0.5
    assert find_steps([values]) == [()]
    values[-2] -= 0.5
    ((step,),) = find_steps([values])
    assert step.at == 58


def test_a_series_is_judged_alone() -> None:
    """What stands beside it in a batch, longer or shorter, changes nothing."""
    many = [values[: 20 + 7 * number] for number, values in enumerate(correlated(20, 200, seed=6))]
    many[3] = many[3] + np.where(np.arange(len(many[3])) < 20, 0.0, 0.1)
    assert find_steps(many) == [find_steps([values])[0] for values in many]
    assert len(find_steps(many)[3]) == 1


def test_series_without_noise() -> None:
    flat = np.zeros(20)
    assert find_steps([flat]) == [()]
    ((step,),) = find_steps([np.where(np.arange(20) < 10, 0.0, 0.05)])
    assert step.at == 10
    assert step.size == pytest.approx(0.05)
    assert find_steps([np.where(np.arange(20) < 10, 0.0, 1e-4)]) == [()]


def test_short_series_have_no_steps() -> None:
    assert find_steps([]) == []
    values = np.where(np.arange(LEAST_POINTS - 1) < 4, 0.0, 1.0)
    assert find_steps([values, np.array([]), np.array([1.0])]) == [(), (), ()]
