"""Arrival processes, by their seed."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import pytest

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.measure.load.arrivals import ArrivalKind, Arrivals


def gaps(count: int = 20_000, **options: Any) -> list[float]:
    times = itertools.islice(Arrivals(rate=50.0, **options).times(), count)
    return [after - before for before, after in itertools.pairwise(times)]


@pytest.mark.parametrize(
    ("kind", "burstiness", "variation"),
    [("constant", 1.0, 0.0), ("poisson", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5), ("gamma", 1.0, 1.0)],
)
def test_rate_and_spread(kind: ArrivalKind, burstiness: float, variation: float) -> None:
    """The gaps of a gamma process of shape k vary by 1/sqrt(k) of their mean."""
    found = gaps(kind=kind, burstiness=burstiness, seed=3)
    assert statistics.fmean(found) == pytest.approx(0.02, rel=0.05)
    assert statistics.pstdev(found) / 0.02 == pytest.approx(variation, rel=0.05, abs=1e-9)
    assert min(found) >= 0


def test_the_seed_decides() -> None:
    assert gaps(100, seed=1) == gaps(100, seed=1) != gaps(100, seed=2)
    assert next(Arrivals(rate=1.0).times()) == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rate": 0.0}, "rate 0.0: must be a number above 0."),
        ({"rate": float("inf")}, "rate inf: must be a number above 0."),
        ({"rate": float("nan")}, "rate nan: must be a number above 0."),
        ({"kind": "gamma", "burstiness": -1.0}, "burstiness -1.0: must be a number above 0."),
        ({"burstiness": 2.0}, "burstiness 2 goes with arrival 'gamma', not 'poisson'."),
        ({"kind": "gama"}, "arrival 'gama' is unknown. Did you mean 'gamma'? Arrivals: constant, gamma, poisson."),
    ],
)
def test_what_is_none(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as found:
        Arrivals(**{"rate": 1.0, **options})
    assert str(found.value) == problem
