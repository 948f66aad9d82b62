"""The judge: every gate of a case gets a verdict, whatever happened to the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, PerformanceEntry
from pytest_inferperf.gates.accuracy import judge_floor, judge_loss
from pytest_inferperf.gates.errors import count_requests, judge_errors
from pytest_inferperf.gates.looks import ALPHA
from pytest_inferperf.gates.performance import judge_performance
from pytest_inferperf.gates.sharing import on_shared_node, why_not_comparable
from pytest_inferperf.gates.speedup import judge_speedup
from pytest_inferperf.model.gates import (
    AccuracyFloor,
    AccuracyLossCeiling,
    ErrorRateCeiling,
    FrontierFloor,
    Gate,
    PerformanceGate,
    SpeedupFloor,
    rules_of,
)
from pytest_inferperf.model.results import CaseResult, Comparison, PerformanceResult
from pytest_inferperf.model.verdicts import GateVerdict, Status

__all__ = ["Baselines", "failed_requests", "judge", "moved_context"]


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What was found on file for one case."""

    performance: PerformanceEntry | Missing | None = None
    """None where the case has no workload."""

    accuracy: AccuracyEntry | Missing | None = None
    """None where the case has no task."""

    default_tolerance: float = 0.05
    """Relative performance tolerance where neither the mark nor the entry has one."""

    alpha: float = ALPHA
    """Total one-sided error of each gate, over all of its looks."""


def judge(gates: Sequence[Gate], result: CaseResult, baselines: Baselines) -> tuple[GateVerdict, ...]:
    """Judge every gate. One verdict each, in order; accuracy gates may add a row for unparseable answers.

    An INVALID run is judged by none of its figures, and a gate whose metric was not measured fails.
    """
    failed = failed_requests(gates, result.performance, result.comparisons)
    invalid = result.invalid or failed
    if invalid:
        # Too many failures are what their own gate is about: it has a figure, the others have none.
        return tuple(
            judge_errors(gate, result.performance, result.comparisons)
            if isinstance(gate, ErrorRateCeiling) and not result.invalid
            else _invalid(gate, invalid)
            for gate in gates
        )
    verdicts: list[GateVerdict] = []
    for gate in gates:
        verdicts += [on_shared_node(gate, verdict, result) for verdict in _judge_one(gate, result, baselines)]
    return tuple(_with_context(verdict, result, baselines) for verdict in verdicts)


def _judge_one(gate: Gate, result: CaseResult, baselines: Baselines) -> list[GateVerdict]:
    if isinstance(gate, PerformanceGate):
        if result.performance is None:
            return [_not_measured(gate, "measure()")]
        entry, tolerance = baselines.performance, baselines.default_tolerance
        return [judge_performance(gate, result.performance, entry, tolerance, alpha=baselines.alpha)]
    if isinstance(gate, ErrorRateCeiling):
        if result.performance is None and not result.comparisons:
            return [_not_measured(gate, "measure()")]
        return [judge_errors(gate, result.performance, result.comparisons)]
    if isinstance(gate, FrontierFloor):
        return [_not_measured(gate, "measure()")]  # a sweep that was measured is judged as a whole
    if isinstance(gate, SpeedupFloor):
        compared = next((item for item in result.comparisons if item.reference == gate.reference and item.blocks), None)
        if compared is None:
            return [_not_measured(gate, "measure()")]
        if why := why_not_comparable(gate, result):
            return [_invalid(gate, why)]
        tolerance, alpha = baselines.default_tolerance, baselines.alpha
        return [judge_speedup(gate, compared, result, default_tolerance=tolerance, alpha=alpha)]
    if result.accuracy is None:
        return [_not_measured(gate, "evaluate()")]
    if isinstance(gate, AccuracyFloor):
        return [judge_floor(gate, result.accuracy, alpha=baselines.alpha)]
    precision = result.case.engine.precision
    return judge_loss(gate, result.accuracy, baselines.accuracy, alpha=baselines.alpha, precision=precision)


def failed_requests(
    gates: Sequence[Gate], performance: PerformanceResult | None, comparisons: Sequence[Comparison] = ()
) -> str:
    """Say how many requests failed, those of reference engines too; "" for no more than the gates allow."""
    failed, requests = count_requests(performance, comparisons)
    allowed = rules_of(gates).max_failed_share
    if failed <= allowed * requests and (failed < requests or not requests):
        return ""
    ceiling = f", where {100 * allowed:g} % may" if allowed else ""
    return f"{failed} of {requests} requests failed{ceiling}"


def _direction(gate: Gate) -> tuple[str, bool]:
    """Return the unit and whether the gate is a floor."""
    if isinstance(gate, PerformanceGate):
        return gate.metric.metric.unit, gate.metric.metric.higher_is_better
    if isinstance(gate, ErrorRateCeiling | FrontierFloor):
        return "%", False
    if isinstance(gate, SpeedupFloor):
        return "x", True
    return ("points", False) if isinstance(gate, AccuracyLossCeiling) else ("points", True)


def _invalid(gate: Gate, reason: str) -> GateVerdict:
    unit, higher = _direction(gate)
    return GateVerdict(
        gate=gate.name,
        status=Status.INVALID,
        unit=unit,
        higher_is_better=higher,
        reason=f"the run is invalid: {reason}",
    )


def _not_measured(gate: Gate, call: str) -> GateVerdict:
    unit, higher = _direction(gate)
    return GateVerdict(
        gate=gate.name,
        status=Status.FAIL,
        unit=unit,
        higher_is_better=higher,
        reason="was not measured",
        next_step=f"call inferperf.{call} in the test body",
    )


def _with_context(verdict: GateVerdict, result: CaseResult, baselines: Baselines) -> GateVerdict:
    """Add what differs between the baseline's context and this run's: it may explain the verdict."""
    stored: dict[str, str] = {}
    ignored = {"git_commit"}
    if verdict.baseline is None:
        return verdict
    if isinstance(baselines.performance, PerformanceEntry):
        stored = dict(baselines.performance.context)
    elif isinstance(baselines.accuracy, AccuracyEntry):
        reference = baselines.accuracy.scores.get(str(verdict.details.get("reference", "")))
        if reference is not None and reference.provenance.kind == "published":
            # What was not published is unknown, not a default.
            return verdict
        stored = dict(reference.context) if reference is not None else {}
        if verdict.details.get("reference") != result.case.engine.precision:
            # Another precision is another checkpoint, by another recipe.
            ignored |= {"checkpoint_hash", "recipe"}
    moved = moved_context(stored, result.context, ignored)
    return replace(verdict, notes=verdict.notes + moved) if moved else verdict


def moved_context(
    stored: Mapping[str, str], context: Mapping[str, str], ignored: Collection[str] = ("git_commit",)
) -> tuple[str, ...]:
    """Say what differs between the context of a baseline and that of a run, a note each."""
    names = {name for name in (*stored, *context) if _is_option(name)} | (stored.keys() & context.keys())
    return tuple(
        f"context differs: {name} {stored.get(name, 'default')} -> {context.get(name, 'default')}"
        for name in sorted(names - set(ignored))
        if stored.get(name) != context.get(name)
    )


def _is_option(name: str) -> bool:
    """Whether a context name is an option of the engine, whose absence means its default."""
    return name == "recipe" or name.startswith("engine_options.")
