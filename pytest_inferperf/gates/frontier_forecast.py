"""What a frontier gate will be able to find: what the figures of its points can, at the level that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pytest_inferperf.gates.forecast import OnFile, forecast
from pytest_inferperf.model.gates import FrontierFloor, PerformanceGate
from pytest_inferperf.model.plan import Foresight, GateForecast

__all__ = ["forecast_frontier"]

_WORST_FIRST = (
    Foresight.UNABLE,
    Foresight.MISSING,
    Foresight.UNKNOWN,
    Foresight.UNCALIBRATED,
    Foresight.WEAK,
    Foresight.ABLE,
)


def forecast_frontier(gate: FrontierFloor, points: Mapping[str, OnFile]) -> GateForecast:
    """Let the figure of a point that says least speak for all; `points` has what is on file by the name of the load.

    Each is forecast as a floor of its own, at the level at which a fall of one of its two figures is shown.
    """
    found = [
        (
            f"{load} {ref.name}",
            forecast(
                PerformanceGate(metric=ref, tolerance=gate.tolerance),
                replace(known, alpha=known.alpha / (2 * len(points))),
            ),
        )
        for load, known in points.items()
        for ref in (gate.metric, gate.over)
    ]
    # Of those that say equally much, the one that takes longest.
    figure, least = min(found, key=lambda item: (_WORST_FIRST.index(item[1].state), -(item[1].used or 0.0)))
    return replace(
        least,
        gate=gate.name,
        text=f"{len(points)} points, the least certain figure is {figure}: {least.text}",
        used=max((item.used for _, item in found if item.used is not None), default=None),
    )
