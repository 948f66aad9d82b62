"""Whether a measurement had its node of a cluster to itself, and who else was there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pytest_inferperf.model.results import CaseResult, Placement

__all__ = ["ALONE", "CPUS_OF_OTHERS", "GPUS_OF_OTHERS", "shared_words", "with_place"]

CPUS_OF_OTHERS = "node.cpus_of_others"
GPUS_OF_OTHERS = "node.gpus_of_others"
"""Telemetry of a session on a cluster: what of its node Ray had handed out to others, at its begin or at its end."""

ALONE = "--inferperf-set=share_node=false"
"""What gives a test the whole node."""


def shared_words(result: CaseResult) -> str:
    """Say that a result was timed on a node that others were let onto, and what they had of it; "" for a whole node."""
    telemetry = list(_telemetry(result))
    if not telemetry or result.placement is None or not result.placement.shared:
        return ""
    cpus, gpus = (max(figures.get(name, 0.0) for figures in telemetry) for name in (CPUS_OF_OTHERS, GPUS_OF_OTHERS))
    if cpus or gpus:
        parts = [_count(amount, unit) for amount, unit in ((cpus, "CPU"), (gpus, "GPU")) if amount]
        return f"it shared its node with others, who had {' and '.join(parts)} of it"
    if any(CPUS_OF_OTHERS not in figures for figures in telemetry):
        return "others were let onto its node, and nobody knows whether any came"
    return "others were let onto its node, and had nothing of it whenever a session began or ended"


def with_place(result: CaseResult, placement: Placement | None) -> CaseResult:
    """Say in a result where it was measured; one that says so already, or that no cluster measured, stays as it is."""
    if placement is None:
        return result
    found = replace(result, placement=placement)
    words = shared_words(found)
    return replace(found, notes=(*found.notes, f"{placement.engine}: {words}")) if words else found


def _telemetry(result: CaseResult) -> Iterator[Mapping[str, float]]:
    """Yield the telemetry of everything that was timed."""
    for point in result.points():
        if point.performance is not None:
            yield from (session.telemetry for session in point.performance.sessions)
    for compared in result.comparisons:
        if compared.blocks:
            yield from compared.telemetry or ({},)


def _count(amount: float, unit: str) -> str:
    return f"{amount:g} {unit}{'' if amount == 1 else 's'}"
