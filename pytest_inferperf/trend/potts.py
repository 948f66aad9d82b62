"""Steps in a noisy series: the piecewise constant fit of least penalised squares (Potts), found exactly.

The noise is estimated robustly and its lag-1 correlation is paid for, because results of successive runs are alike:
without that, an unchanged series with a correlation of 0.5 shows steps in nine of ten cases. A lone outlier is drawn in
before the fit, so that a step takes two points on either side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_POINTS", "Step", "find_steps"]

LEAST_POINTS = 10
"""Shorter series say too little about their own noise to show a step."""

PENALTY = 4.0
"""What a step costs, in units of log(points + 100) times the long-run variance. BIC charges 2 for a step and its place,
of log(points); the noise is estimated from the same points, from few of them badly, and `benchmarks/trend_store.py`
holds this value to one false step in 100 unchanged series."""

LEAST_NOISE = 1e-3
"""Noise below 0.1 % (of a logarithm), or 0.1 points (of a score), is taken for this much: nobody hunts such a step."""

_LEAST_SEGMENT = 2
_OUTLIER = 3.0
_MOST_CORRELATION = 0.8
_CONFIDENCE_Z = 1.959964
_BATCH = 128

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One change of level."""

    at: int
    """Index of the first point after it."""

    before: float
    """Mean of the segment that it ends."""

    after: float
    size: float
    """`after` - `before`, in the unit of the series: of a logarithm, about the relative change."""

    lower: float
    """Lower end of the 95 % interval of `size`, given that the step is here."""

    upper: float


@dataclass(frozen=True, kw_only=True)
class _Noise:
    """How far points of one level lie apart."""

    sd: float
    correlation: float

    @property
    def long_run_sd(self) -> float:
        """What stands in for `sd` in means of many correlated points."""
        return self.sd * math.sqrt((1 + self.correlation) / (1 - self.correlation))


def find_steps(series: Sequence[Values]) -> list[tuple[Step, ...]]:
    """Find the steps of each series, in order. Series shorter than `LEAST_POINTS` have none.

    All values must be finite; take logarithms of what has a scale.
    """
    cleaned = [_without_outliers(values, _noise_of_differences(values).sd) for values in series]
    noises = [_noise_of_differences(values) for values in cleaned]
    found = _fit(cleaned, noises)
    # What is left around the levels knows the noise better than differences do; a step has to stand before both.
    again = [number for number, bounds in enumerate(found) if bounds]
    for number in again:
        other = _noise_of_residuals(cleaned[number], found[number])
        noises[number] = max(noises[number], other, key=lambda item: item.long_run_sd)
    confirmed = _fit([cleaned[number] for number in again], [noises[number] for number in again])
    steps: list[tuple[Step, ...]] = [()] * len(series)
    for number, bounds in zip(again, confirmed, strict=True):
        steps[number] = _steps(cleaned[number], bounds, noises[number].long_run_sd)
    return steps


def _without_outliers(values: Values, sd: float) -> Values:
    """Draw points that neither neighbour supports in to within three sd of the median of the three."""
    if len(values) < LEAST_POINTS:
        return values
    ends = np.concatenate((values[2:3], values, values[-3:-2]))
    low, high = np.minimum(ends[:-2], ends[2:]), np.maximum(ends[:-2], ends[2:])
    middle = np.maximum(low, np.minimum(values, high))
    return np.clip(values, middle - _OUTLIER * sd, middle + _OUTLIER * sd)


def _noise_of_differences(values: Values) -> _Noise:
    """Estimate from successive differences, in which steps are rare outliers.

    For a first-order process, differences have the variance 2 s²(1 - r) and the lag-1 correlation -(1 - r) / 2.
    """
    if len(values) < LEAST_POINTS:
        return _Noise(sd=math.inf, correlation=0.0)
    steps = np.diff(values)
    spread = 1.4826 * float(np.median(np.abs(steps)))
    clipped = np.clip(steps, -_OUTLIER * spread, _OUTLIER * spread)
    power = float(clipped @ clipped)
    lag = float(clipped[1:] @ clipped[:-1]) / power if power > 0 else -0.5
    correlation = min(max(1 + 2 * lag, 0.0), _MOST_CORRELATION)
    return _Noise(sd=max(spread / math.sqrt(2 * (1 - correlation)), LEAST_NOISE), correlation=correlation)


def _noise_of_residuals(values: Values, bounds: Sequence[int]) -> _Noise:
    """Estimate from what is left around the levels; each level costs a degree of freedom."""
    parts = np.split(values, bounds)
    rest = np.concatenate([part - part.mean() for part in parts])
    power = float(rest @ rest)
    freedom = max(len(values) - len(parts), 1)
    lag = float(rest[1:] @ rest[:-1]) / power if power > 0 else 0.0
    # A sample correlation is too small by about (1 + 3 r) / n, for each level of its own.
    correlation = lag + len(parts) * (1 + 3 * max(lag, 0.0)) / len(values)
    return _Noise(
        sd=max(math.sqrt(power / freedom), LEAST_NOISE), correlation=min(max(correlation, 0.0), _MOST_CORRELATION)
    )


def _fit(series: Sequence[Values], noises: Sequence[_Noise]) -> list[list[int]]:
    """Return for each series where its segments begin, the first left out."""
    order = sorted(range(len(series)), key=lambda number: len(series[number]))
    order = [number for number in order if len(series[number]) >= LEAST_POINTS]
    found: list[list[int]] = [[] for _ in series]
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        longest = len(series[batch[-1]])
        # A fit up to a point knows nothing of later ones, so that series of all lengths share one pass.
        table = np.zeros((len(batch), longest))
        penalties = np.empty(len(batch))
        for row, number in enumerate(batch):
            values = series[number]
            table[row, : len(values)] = (values - values.mean()) / noises[number].long_run_sd
            penalties[row] = PENALTY * math.log(len(values) + 100)
        begins = _best_begins(table, penalties)
        for row, number in enumerate(batch):
            end = len(series[number])
            while (begin := int(begins[row, end])) > 0:
                found[number].append(begin)
                end = begin
            found[number].reverse()
    return found


def _best_begins(table: Values, penalties: Values) -> NDArray[np.intp]:
    """Return, for each row and each length, where the last segment of the best fit of that many points begins.

    With S the running sums, a segment from s to t leaves a sum of squares of what does not depend on s, minus
    (S_t - S_s)² / (t - s): only that and the best fit before s have to be weighed.
    """
    rows, points = table.shape
    sums = np.concatenate((np.zeros((rows, 1)), np.cumsum(table, axis=1)), axis=1)
    best = np.full((rows, points + 1), np.inf)
    best[:, 0] = -penalties
    begins = np.zeros((rows, points + 1), dtype=np.intp)
    every = np.arange(rows)
    lengths = np.arange(points, 0, -1).astype(float)
    for end in range(_LEAST_SEGMENT, points + 1):
        last = end - _LEAST_SEGMENT + 1
        gain = sums[:, end : end + 1] - sums[:, :last]
        np.square(gain, out=gain)
        gain /= lengths[points - end : points - end + last]
        np.subtract(best[:, :last], gain, out=gain)
        begin = gain.argmin(axis=1)
        begins[:, end] = begin
        best[:, end] = gain[every, begin] + penalties
    return begins


def _steps(values: Values, bounds: Sequence[int], sd: float) -> tuple[Step, ...]:
    edges = [0, *bounds, len(values)]
    found = []
    for first, at, end in zip(edges, edges[1:], edges[2:], strict=False):
        before, after = float(values[first:at].mean()), float(values[at:end].mean())
        reach = _CONFIDENCE_Z * sd * math.sqrt(1 / (at - first) + 1 / (end - at))
        size = after - before
        found.append(Step(at=at, before=before, after=after, size=size, lower=size - reach, upper=size + reach))
    return tuple(found)
