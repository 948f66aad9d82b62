"""Performance gates: relative tolerance on medians against the stored baseline, or an absolute limit."""

from __future__ import annotations

import math

from pytest_inferperf.baselines.entries import MetricBaseline, Missing, PerformanceEntry
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.results import PerformanceResult
from pytest_inferperf.model.verdicts import GateVerdict, Status

__all__ = ["judge_performance"]


def judge_performance(
    gate: PerformanceGate,
    result: PerformanceResult,
    entry: PerformanceEntry | Missing | None,
    default_tolerance: float,
) -> GateVerdict:
    """Judge one metric.

    Both sides are medians over sessions of medians over rounds. The limit is `baseline * (1 - tolerance)` for a
    floor and `baseline * (1 + tolerance)` for a ceiling; tolerance comes from the mark, else the baseline entry,
    else `default_tolerance`. A published baseline is the limit itself.
    """
    metric = gate.metric.metric
    verdict = _Verdict(gate)
    measured = result.median(gate.metric.name)
    if measured is None:
        return verdict.fail(reason="was not measured: the workload has no sample of it")
    if not math.isfinite(measured) or measured <= 0:
        return verdict.give(Status.INVALID, measured=measured, reason=f"measured {measured}, which is no {metric.unit}")
    if gate.limit is not None:
        return verdict.compare(measured, gate.limit, source="mark")
    if entry is None or isinstance(entry, Missing):
        return verdict.missing(entry, measured)
    stored = entry.metrics.get(gate.metric.name)
    if stored is None:
        absent = Missing(path=entry.path, key=entry.key, reason=f"the entry has no {gate.metric.name}")
        return verdict.missing(absent, measured)
    if stored.value is not None:
        return verdict.compare(measured, stored.value, source=entry.path, notes=("published baseline: absolute limit",))
    warm_up = {session.warmup_rounds for session in result.sessions}
    if warm_up != {entry.warmup_rounds}:
        # A cold first round is not the steady state: such figures are of another workload.
        reason = f"recorded after {entry.warmup_rounds} warm-up rounds, this run after {max(warm_up)}"
        return verdict.missing(Missing(path=entry.path, key=entry.key, reason=reason), measured)
    return _against_sessions(verdict, measured, stored, entry, default_tolerance)


def _against_sessions(
    verdict: _Verdict, measured: float, stored: MetricBaseline, entry: PerformanceEntry, default_tolerance: float
) -> GateVerdict:
    baseline = stored.level
    given = (verdict.gate.tolerance, stored.tolerance, default_tolerance)
    tolerance = next(value for value in given if value is not None)
    higher = verdict.gate.metric.metric.higher_is_better
    limit = baseline * (1 - tolerance if higher else 1 + tolerance)
    return verdict.compare(measured, limit, source=entry.path, baseline=baseline, tolerance=tolerance)


class _Verdict:
    """Builds the verdict of one gate; knows its name, unit and direction."""

    def __init__(self, gate: PerformanceGate) -> None:
        self.gate = gate

    def give(
        self,
        status: Status,
        *,
        measured: float | None = None,
        limit: float | None = None,
        baseline: float | None = None,
        tolerance: float | None = None,
        source: str = "",
        reason: str = "",
        next_step: str = "",
        notes: tuple[str, ...] = (),
    ) -> GateVerdict:
        metric = self.gate.metric.metric
        return GateVerdict(
            gate=self.gate.name,
            status=status,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            measured=measured,
            limit=limit,
            baseline=baseline,
            tolerance=tolerance,
            source=source,
            reason=reason,
            next_step=next_step,
            notes=notes,
        )

    def fail(self, *, reason: str) -> GateVerdict:
        return self.give(Status.FAIL, reason=reason)

    def missing(self, entry: Missing | None, measured: float) -> GateVerdict:
        where = f"{entry.path}: {entry.reason}; key {entry.key}" if entry is not None else "no baseline was looked up"
        return self.give(
            Status.FAIL,
            measured=measured,
            source=entry.path if entry is not None else "",
            reason=f"has no baseline ({where})",
            next_step="pytest {nodeid} --inferperf-update=new",
        )

    def compare(
        self,
        measured: float,
        limit: float,
        *,
        source: str,
        baseline: float | None = None,
        tolerance: float | None = None,
        notes: tuple[str, ...] = (),
    ) -> GateVerdict:
        metric = self.gate.metric.metric
        passed = measured >= limit if metric.higher_is_better else measured <= limit
        better = baseline is not None and (
            measured > baseline * (1 + (tolerance or 0))
            if metric.higher_is_better
            else measured < baseline * (1 - (tolerance or 0))
        )
        if better:
            notes = (
                *notes,
                "better than the baseline beyond tolerance: --inferperf-update=tighten would hold the gain",
            )
        reason = ""
        if not passed:
            side = "below its floor" if metric.higher_is_better else "above its ceiling"
            change = f" ({100 * (measured / baseline - 1):+.1f} % vs baseline {baseline:.6g})" if baseline else ""
            reason = f"{measured:.6g} {metric.unit} is {side} {limit:.6g}{change}"
        return self.give(
            Status.PASS if passed else Status.FAIL,
            measured=measured,
            limit=limit,
            baseline=baseline,
            tolerance=tolerance,
            source=source,
            reason=reason,
            notes=notes,
        )
