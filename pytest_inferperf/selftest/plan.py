"""What has to be injected for a gate: worked out from figures, limits and statistics, never from what the judge says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import floor, fsum
from pathlib import Path
from statistics import fmean, median

from pytest_inferperf.baselines.entries import AccuracyEntry, PerformanceEntry
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.baselines.store import lookup_accuracy, lookup_performance, stored_score
from pytest_inferperf.gates.errors import count_requests
from pytest_inferperf.gates.looks import QUESTIONS
from pytest_inferperf.gates.reliance import (
    certain_factor,
    certain_factor_of_blocks,
    certain_share,
    rely_on_blocks,
    rely_on_questions,
    rely_on_sessions,
    times_as_good,
)
from pytest_inferperf.gates.speedup import block_values
from pytest_inferperf.model.gates import (
    AccuracyFloor,
    AccuracyLossCeiling,
    ErrorRateCeiling,
    FrontierFloor,
    Gate,
    PerformanceGate,
    SpeedupFloor,
)
from pytest_inferperf.model.injection import KINDS, Injection, shown
from pytest_inferperf.model.metrics import Metric
from pytest_inferperf.model.results import AccuracyResult, PerformanceResult, Session
from pytest_inferperf.model.verdicts import GateVerdict, Status
from pytest_inferperf.report.selftest import GateProof
from pytest_inferperf.selftest.frontiers import frontier_need
from pytest_inferperf.selftest.rows import Key, figures, gate_of

__all__ = ["MOST", "RUNS", "Plan", "largest", "plan_gate"]

RUNS: tuple[tuple[str, frozenset[str]], ...] = (
    ("injected", frozenset(KINDS) - {"errors", "agreement"}),
    ("injected-errors", frozenset({"errors"})),
    ("injected-agreement", frozenset({"agreement"})),
)
"""Runs and what is injected in each: a run whose requests fail or whose answers are wrong is INVALID to all other gates."""

_SHARES = ("accuracy", "errors", "agreement")
"""Kinds that cannot be worse than 100."""

MOST = 20.0
"""The largest factor on time or memory that is injected: a limit farther away than this catches nothing worth the name."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What has to be injected for a gate."""

    proof: GateProof
    needs: tuple[Injection, ...] = ()
    is_floor: bool = False
    """Whether it is a floor on speed: then everything that is too slow is injected as a slowdown."""

    def judged(self, row: tuple[ResultRecord, GateVerdict] | None, injections: Sequence[Injection], why: str) -> Plan:
        """Add what the gate said to the injections."""
        kinds = {item.kind for item in self.needs}
        mine = [item for item in injections if item.kind in kinds or (item.kind == "slowdown" and "latency" in kinds)]
        proof = replace(self.proof, injected=shown(mine))
        if row is None:
            return replace(self, proof=replace(proof, found="not judged", problem=f"was not judged: {why}"))
        record, verdict = row
        proof = replace(proof, found=verdict.status.value)
        if record.result.invalid and verdict.status is Status.INVALID:
            problem = f"the run is invalid: {record.result.invalid}"
        elif verdict.status is not Status.FAIL:
            problem = f"does not fail: {figures(verdict)}"
        elif verdict.measured is None or verdict.limit is None:
            proof = replace(proof, found="not judged")
            problem = f"fails without a figure: {verdict.reason}"
        else:
            problem = ""
        return replace(self, proof=replace(proof, problem=problem))


def plan_gate(key: Key, record: ResultRecord, verdict: GateVerdict, *, root: Path, alpha: float) -> Plan:
    """Plan for the gate of one row of the clean run; `root` holds the baselines that judged it."""
    proof = GateProof(nodeid=key[0], gate=key[1], clean=verdict.status.value)
    if record.result.invalid:
        return Plan(proof=replace(proof, problem=f"does not pass as it is: {record.result.invalid}"))
    if verdict.status is not Status.PASS:
        return Plan(proof=replace(proof, problem=f"does not pass as it is: {verdict.reason}"))
    if verdict.measured is None or verdict.limit is None:
        return Plan(proof=replace(proof, problem="passed without a figure or a limit"))
    gate = gate_of(record.gates, verdict)
    if gate is None:
        return Plan(proof=replace(proof, problem="passed, and no gate of the test is called so"))
    if isinstance(gate, PerformanceGate):
        return _plan_performance(proof, gate, record, verdict, root, alpha)
    if isinstance(gate, ErrorRateCeiling):
        return _plan_errors(proof, gate, record)
    if isinstance(gate, FrontierFloor):
        need = frontier_need(gate, record, tolerance=verdict.tolerance or 0.0, root=root, alpha=alpha)
        proof = replace(proof, reliance=need.reliance, unit="%")
        return _worse_by(need.factor, proof, gate.metric.metric, need.measured, need.limit)
    if isinstance(gate, SpeedupFloor):
        return _plan_speedup(proof, gate, record, verdict, alpha)
    return _plan_accuracy(proof, gate, record, verdict, root, alpha)


def _plan_errors(proof: GateProof, gate: ErrorRateCeiling, record: ResultRecord) -> Plan:
    """Let as many requests of the candidate fail as are more than may, those of its references counted too."""
    result = record.result
    _, requests = count_requests(result.performance, result.comparisons)
    blocks = [Session(rounds=block.candidate, warmup_rounds=0) for one in result.comparisons for block in one.blocks]
    sessions = [*(result.performance.sessions if result.performance is not None else ()), *blocks]
    _, own = count_requests(PerformanceResult(sessions=tuple(sessions)))
    proof = replace(proof, distance=100 * gate.share, unit="%")
    # In each session one may fall to the warm-up.
    least, spare = floor(gate.share * requests + 1e-9) + 1, len(sessions)
    if least > own:
        why = f"{least} requests would have to fail, and {own} are sent to the engine: no run can fail it"
        return Plan(proof=replace(proof, problem=why))
    size = min(100.0, 100 * (least + spare) / own + 0.05)
    return Plan(proof=proof, needs=(Injection(kind="errors", size=round(size, 1), unit="%"),))


def _plan_performance(
    proof: GateProof, gate: PerformanceGate, record: ResultRecord, verdict: GateVerdict, root: Path, alpha: float
) -> Plan:
    performance, engine = record.result.performance, record.result.engine
    assert performance is not None
    assert engine is not None
    higher = gate.metric.metric.higher_is_better
    entry = lookup_performance(root, engine.hardware, record.result.case)
    stored = entry.metrics.get(gate.name) if isinstance(entry, PerformanceEntry) and gate.limit is None else None
    sessions = stored.sessions if stored is not None else ()
    rounds = [value for session in performance.rounds(gate.name) for value in session]
    # From the figures themselves: the row is what is examined.
    measured, tolerance = median(median(session) for session in performance.rounds(gate.name)), verdict.tolerance
    limit = gate.limit if stored is None else stored.value
    if stored is not None and tolerance is not None:
        limit = stored.level * (1 - tolerance if higher else 1 + tolerance)
        reliance = rely_on_sessions(sessions, tolerance=tolerance, higher_is_better=higher, alpha=alpha)
        proof = replace(proof, reliance=reliance, unit="%")
    assert limit is not None
    if proof.reliance is None:
        proof = replace(proof, distance=100 * abs(1 - limit / measured), unit="%")
    factor = certain_factor(measured, limit, rounds=rounds, sessions=sessions, alpha=alpha)
    if gate.name == "output_agreement":
        # An answer that begins as it should for a part of its length agrees by that part.
        size = 100 * (1 - measured / factor)
        return Plan(proof=proof, needs=(Injection(kind="agreement", size=round(min(size + 0.05, 100.0), 1), unit="%"),))
    return _worse_by(factor, proof, gate.metric.metric, measured, limit)


def _plan_speedup(
    proof: GateProof, gate: SpeedupFloor, record: ResultRecord, verdict: GateVerdict, alpha: float
) -> Plan:
    """Only the candidate is made worse: its reference stays what it is."""
    assert verdict.tolerance is not None
    metric = gate.metric.metric
    compared = next(item for item in record.result.comparisons if item.reference == gate.reference and item.blocks)
    blocks = block_values(compared, gate.metric.name)
    higher = metric.higher_is_better
    measured, tolerance = times_as_good(blocks, higher_is_better=higher), verdict.tolerance
    limit = gate.ratio * (1 - tolerance) if higher else gate.ratio / (1 + tolerance)
    reliance = rely_on_blocks(blocks, tolerance=tolerance, higher_is_better=higher, alpha=alpha)
    factor = certain_factor_of_blocks(measured, limit, blocks=blocks, alpha=alpha)
    return _worse_by(factor, replace(proof, reliance=reliance, unit="%"), metric, measured, limit)


def _worse_by(factor: float, proof: GateProof, metric: Metric, measured: float, limit: float) -> Plan:
    """Plan what makes a metric worse by a factor, or by `MOST` where its noise asks for more than that."""
    distance = max(measured / limit, limit / measured)
    if distance > MOST:
        why = f"{measured:.6g} is {distance:.0f} times as good as it asks for: such a limit catches nothing"
        return Plan(proof=replace(proof, problem=why))
    factor = min(factor, MOST)
    kind = "memory" if metric.name == "peak_memory_gib" else "slowdown" if metric.higher_is_better else "latency"
    return Plan(proof=proof, needs=(_injection(kind, factor),), is_floor=kind == "slowdown")


def _injection(kind: str, factor: float) -> Injection:
    """Turn a factor on time or memory into an injection, rounded up."""
    size = 100 * (1 - 1 / factor) if kind == "slowdown" else 100 * (factor - 1)
    return Injection(kind=kind, size=round(size + 0.05, 1), unit="%")


def _factor(item: Injection) -> float:
    return 1 / (1 - item.size / 100) if item.kind == "slowdown" else 1 + item.size / 100


def _plan_accuracy(
    proof: GateProof, gate: Gate, record: ResultRecord, verdict: GateVerdict, root: Path, alpha: float
) -> Plan:
    measured, limit = verdict.measured, verdict.limit
    accuracy, case = record.result.accuracy, record.result.case
    assert measured is not None
    assert limit is not None
    assert accuracy is not None
    certain = partial(certain_share, questions=accuracy.planned, answered=len(accuracy.outcomes), alpha=alpha)
    # Spoilt questions in points of the score: an answer that is wrong already costs nothing.
    worth = stored_score(root, case, metric=accuracy.metric) or 1.0
    if isinstance(gate, AccuracyFloor):
        loss = (measured - limit) / 100
        share = certain(loss, spread=accuracy.score * (1 - accuracy.score), tested=False)
        proof = replace(proof, distance=abs(measured - limit), unit="points")
    elif isinstance(gate, AccuracyLossCeiling) and verdict.gate.startswith("unparseable"):
        # Half of the spoilt answers cannot be read.
        share = 2 * worth * certain((limit - measured) / 100, spread=fmean(accuracy.unparseable or (0,)), tested=False)
        proof = replace(proof, distance=abs(limit - measured), unit="points")
    else:
        assert isinstance(gate, AccuracyLossCeiling)
        entry = lookup_accuracy(root, case, accuracy.metric)
        stored = entry.scores.get(gate.reference) if isinstance(entry, AccuracyEntry) else None
        before = stored.outcomes if stored is not None else ()
        # In points of the score, or relative to its mean.
        scale = 1.0 if gate.points is not None else abs(fmean(before)) or 1.0
        spread = _spread(before, accuracy) / scale**2
        looked = accuracy.sequential or accuracy.is_partial
        reliance = rely_on_questions(
            accuracy.planned,
            spread=spread,
            tolerance=limit / 100,
            binary=accuracy.is_binary,
            level=QUESTIONS.at(alpha).levels[-1] if looked else alpha,
        )
        proof = replace(proof, reliance=reliance, unit=verdict.unit)
        share = certain((limit - min(0.0, measured)) / 100, spread=spread, tested=True)
        if gate.points is None and accuracy.higher_is_better:
            share *= worth
    points = min(100.0, 100 * share)
    return Plan(proof=proof, needs=(Injection(kind="accuracy", size=round(points + 0.05, 1), unit="pt"),))


def _spread(before: Sequence[float], accuracy: AccuracyResult) -> float:
    """Return the mean square of what each answer differs from the reference's; of a group, its sum counts as one."""
    asked = accuracy.asked or (True,) * accuracy.planned
    numbers = [number for number, was in enumerate(asked) if was]
    sums: defaultdict[int, float] = defaultdict(float)
    for number, outcome in zip(numbers, accuracy.outcomes, strict=True):
        sums[accuracy.groups[number] if accuracy.groups is not None else number] += before[number] - outcome
    return fsum(value * value for value in sums.values()) / len(numbers)


def largest(plans: Iterable[Plan], more: float) -> tuple[Injection, ...]:
    """Return the largest size of each kind, `more` times as large, as few kinds as do.

    A slowdown makes every token late too, so where there is one it covers the latencies.
    """
    found = list(plans)
    floors = any(plan.is_floor for plan in found)
    largest: dict[str, Injection] = {}
    for item in (item for plan in found for item in plan.needs):
        if item.kind in _SHARES:
            wanted = replace(item, size=min(100.0, item.size * more))
        else:
            kind = "slowdown" if floors and item.kind == "latency" else item.kind
            wanted = _injection(kind, min(MOST, 1 + (_factor(item) - 1) * more))
        known = largest.get(wanted.kind)
        if known is None or known.size < wanted.size:
            largest[wanted.kind] = wanted
    return tuple(largest[name] for name in KINDS if name in largest)
