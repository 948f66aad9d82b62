"""What has to be injected for a frontier gate, worked out as for other gates: from figures and statistics alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pytest_inferperf.baselines.entries import MetricBaseline, PerformanceEntry
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.baselines.store import lookup_performance
from pytest_inferperf.gates.reliance import Reliance, certain_factor, rely_on_sessions
from pytest_inferperf.model.gates import FrontierFloor

__all__ = ["FrontierNeed", "frontier_need"]


@dataclass(frozen=True, kw_only=True)
class FrontierNeed:
    """By what the gate's first metric has to get worse, at every load, for a point to have fallen whatever the luck."""

    factor: float
    measured: float
    """The best of the metric that any load offers now."""

    limit: float
    """What covers the point of the baseline that offers most of it."""

    reliance: Reliance
    """Of the figure of a point that can be relied on least."""


def frontier_need(
    gate: FrontierFloor, record: ResultRecord, *, tolerance: float, root: Path, alpha: float
) -> FrontierNeed:
    """Work out what is needed from the clean run and the baselines that judged it.

    The point that offers most of the metric is the one that no load can cover once all offer less of it.
    """
    higher = gate.metric.metric.higher_is_better
    best = max if higher else min
    rounds: dict[float, list[float]] = {}
    stored: list[tuple[MetricBaseline, MetricBaseline]] = []
    for point in record.result.points():
        performance, engine = point.performance, point.engine
        assert performance is not None
        assert engine is not None
        sessions = performance.rounds(gate.metric.name)
        rounds[median(map(median, sessions))] = [value for session in sessions for value in session]
        entry = lookup_performance(root, engine.hardware, point.case)
        assert isinstance(entry, PerformanceEntry)
        stored.append((entry.metrics[gate.metric.name], entry.metrics[gate.over.name]))
    measured = best(rounds)
    top = best((pair[0] for pair in stored), key=lambda item: item.level)
    # A fall is shown at the level that all points share, of either figure.
    level = alpha / (2 * len(stored))
    limit = top.level if top.value is not None else top.level * (1 - tolerance if higher else 1 + tolerance)
    return FrontierNeed(
        factor=certain_factor(measured, limit, rounds=rounds[measured], sessions=top.sessions, alpha=level),
        measured=measured,
        limit=limit,
        reliance=_least(gate, stored, tolerance=tolerance, level=level),
    )


def _least(
    gate: FrontierFloor, stored: Sequence[tuple[MetricBaseline, MetricBaseline]], *, tolerance: float, level: float
) -> Reliance:
    found = [
        rely_on_sessions(item.sessions, tolerance=tolerance, higher_is_better=ref.metric.higher_is_better, alpha=level)
        for pair in stored
        for ref, item in zip((gate.metric, gate.over), pair, strict=True)
    ]
    return max(found, key=lambda item: float("inf") if item.least is None else item.least)
