"""Speedup gates: how many times as good as a reference engine, measured interleaved in the same run."""

from __future__ import annotations

import math
from functools import partial

from pytest_inferperf.baselines.entries import source_of
from pytest_inferperf.gates.looks import ALPHA, Decision, Unresolvable
from pytest_inferperf.gates.sessions import Block, SessionsVerdict, judge_blocks
from pytest_inferperf.model.gates import SpeedupFloor
from pytest_inferperf.model.results import Abba, CaseResult, Comparison
from pytest_inferperf.model.verdicts import GateVerdict, Status

__all__ = ["block_values", "judge_speedup", "times_as_good"]


def judge_speedup(
    gate: SpeedupFloor,
    comparison: Comparison,
    result: CaseResult,
    *,
    default_tolerance: float,
    alpha: float = ALPHA,
) -> GateVerdict:
    """Judge the blocks of one comparison.

    The row's figure is the measured ratio, its limit the ratio asked for less the tolerance: PASS when the lower bound
    of the measured ratio is above the limit, FAIL when the upper bound is below the free zone under the ratio asked for.
    `next_look` says how many blocks, in all, an open gate needs next. `result` says which engine the candidate is.
    """
    metric = gate.metric.metric
    tolerance = default_tolerance if gate.tolerance is None else gate.tolerance
    row = partial(GateVerdict, gate=gate.name, unit="x", source=source_of(gate.reference.label), higher_is_better=True)
    blocks = block_values(comparison, gate.metric.name)
    if not blocks or not all(item.reference and item.candidate for item in blocks):
        return row(status=Status.FAIL, reason="was not measured: the workload has no sample of it")
    if metric.may_be_zero and any(0.0 in item.candidate and 0.0 not in item.reference for item in blocks):
        reason = f"was 0 {metric.unit} in a round, where {gate.reference.label} had more"
        return row(status=Status.FAIL, measured=0.0, limit=times_as_good(gate, tolerance), reason=reason)
    wrong = [
        value
        for item in blocks
        for value in (*item.reference, *item.candidate)
        if not (math.isfinite(value) and value > 0)
    ]
    if wrong:
        return row(status=Status.INVALID, reason=f"measured {wrong[0]}, which is no {metric.unit}")
    found = judge_blocks(
        blocks, higher_is_better=metric.higher_is_better, tolerance=tolerance, ratio=gate.ratio, alpha=alpha
    )
    if isinstance(found, Unresolvable):
        return row(status=Status.FAIL, reason=f"cannot be judged: {found.reason}")
    status = Status.INCONCLUSIVE if found.status is Decision.OPEN else Status(found.status.value)
    times = partial(times_as_good, gate)
    limit = times(tolerance)
    if not found.used:
        return row(
            status=status,
            limit=limit,
            tolerance=tolerance,
            reason=f"was measured in {_count(len(blocks))}; the first look is at {found.next_look}",
            next_look=found.next_look,
        )
    ratio, lower, upper = times(found.loss), times(found.upper), times(found.lower)
    span = f"between {lower:#.4g} and {upper:#.4g} in {_count(found.used)}"
    floor = f"{gate.ratio:.4g} less {100 * tolerance:g} %"
    return row(
        status=status,
        measured=ratio,
        limit=limit,
        tolerance=tolerance,
        reason="" if status is Status.PASS else _why(gate, found, ratio=ratio, limit=limit, span=span, floor=floor),
        notes=(
            f"{gate.name}: {ratio:#.4g} times as good, {span}{_launched(comparison)}; floor {floor}",
            *_notes(comparison, result),
        ),
        next_look=found.next_look,
        details={
            "ratio": ratio,
            "ratio_lower": lower,
            "ratio_upper": upper,
            "ratio_asked": gate.ratio,
            "blocks": found.used,
            "reference": gate.reference.label,
        },
    )


def block_values(comparison: Comparison, name: str) -> list[Block]:
    """Return the values of one metric in each block; an empty side where it was not measured."""
    return [_values(block, name) for block in comparison.blocks]


def _values(block: Abba, name: str) -> Block:
    reference, candidate = (
        tuple(item.metrics[name] for item in rounds if name in item.metrics)
        for rounds in (block.reference, block.candidate)
    )
    return Block(reference=reference, candidate=candidate)


def times_as_good(gate: SpeedupFloor, loss: float) -> float:
    """Turn a loss against `ratio` times the reference into how many times as good as the reference that is."""
    return gate.ratio * (1 - loss) if gate.metric.metric.higher_is_better else gate.ratio / (1 + loss)


def _why(gate: SpeedupFloor, found: SessionsVerdict, *, ratio: float, limit: float, span: str, floor: str) -> str:
    if found.status is Decision.FAIL and ratio < limit:
        return f"{ratio:#.4g} x is below its floor {limit:.4g} ({span}; {floor})"
    text = f"{ratio:#.4g} x, {span}, is not proven above its floor {limit:.4g} ({floor})"
    if found.status is Decision.FAIL:
        return text
    if found.needed:
        text += f"; {_count(found.needed).replace(' ', ' more ', 1)} would decide it"
    if found.next_look is None and math.isfinite(found.resolvable):
        percent = math.ceil(1e3 * found.resolvable) / 10
        text += f". No more are measured: such blocks resolve a tolerance of {percent:g} %; larger rounds (num_requests) less"
    return text


def _count(blocks: int) -> str:
    return f"{blocks} block{'' if blocks == 1 else 's'}"


def _launched(comparison: Comparison) -> str:
    return ", each a launch of both engines" if comparison.reference.reload else ""


def _notes(comparison: Comparison, result: CaseResult) -> tuple[str, ...]:
    """Say that the two engines are one, or which packages differ: the reference may run under another interpreter."""
    reference = comparison.reference
    if reference.spec == result.case.engine and not reference.python:
        return ("the reference is the same engine: an A/A comparison shows the noise alone",)
    before, after = comparison.engine.versions, result.engine.versions if result.engine is not None else {}
    return tuple(
        f"context differs: {name} {before[name]} -> {after[name]}"
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    )
