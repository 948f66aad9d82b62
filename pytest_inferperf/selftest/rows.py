"""What a run of the self-test found: the rows of its gates, and the gate that each row stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.model.gates import (
    AccuracyFloor,
    AccuracyLossCeiling,
    ErrorRateCeiling,
    FrontierFloor,
    Gate,
    PerformanceGate,
    SpeedupFloor,
)
from pytest_inferperf.model.metrics import METRICS, base_name
from pytest_inferperf.model.verdicts import GateVerdict, Status
from pytest_inferperf.report.lines import plural

__all__ = ["Key", "Run", "Test", "counts", "figures", "gate_of", "unjudged"]

Key = tuple[str, str, int]
"""A gate: nodeid, name of its row, and which of several rows of that name."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """What became of a test."""

    gates: int
    outcome: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pytest run."""

    records: Mapping[str, ResultRecord]
    tests: Mapping[str, Test]
    alpha: float

    def rows(self) -> dict[Key, tuple[ResultRecord, GateVerdict]]:
        """Return every judged gate; one of a point of a sweep with the record of that point, as of a test of its own."""
        found: dict[Key, tuple[ResultRecord, GateVerdict]] = {}
        for nodeid, record in self.records.items():
            names = [verdict.gate for verdict in record.verdicts]
            for index, verdict in enumerate(record.verdicts):
                found[nodeid, verdict.gate, names[:index].count(verdict.gate)] = at_its_point(record, verdict)
        return found


def figures(verdict: GateVerdict) -> str:
    """Say what a row says: its figure, its limit and its verdict, or its reason where it has none."""
    if verdict.measured is None or verdict.limit is None:
        return verdict.reason
    relation = ">=" if verdict.higher_is_better else "<="
    return f"{verdict.measured:.6g} {relation} {verdict.limit:.6g} {verdict.unit} is {verdict.status.value}"


def at_its_point(record: ResultRecord, verdict: GateVerdict) -> tuple[ResultRecord, GateVerdict]:
    """Return a row of a sweep as one of its point alone, without the load before its name; any other row as it is."""
    for point in record.result.points() if record.result.frontier is not None else ():
        load = f"{point.case.workload.load_name} " if point.case.workload is not None else ""
        if load and verdict.gate.startswith(load):
            return replace(record, result=point), replace(verdict, gate=verdict.gate.removeprefix(load))
    return record, verdict


def unjudged(record: ResultRecord) -> list[str]:
    """Name the gates that no row stands for, of a sweep those of every point; of an invalid run, whose rows are bare, none."""
    rows = [at_its_point(record, verdict) for verdict in record.verdicts]
    found = [(place.result.case, gate_of(record.gates, row)) for place, row in rows]
    if any(gate is None for _, gate in found):
        return []
    whole = [gate for gate in record.gates if isinstance(gate, FrontierFloor)]
    return [
        f"{point.case.workload.load_name} {gate.name}"
        if record.result.frontier is not None and point.case.workload is not None
        else gate.name
        for point in record.result.points()
        for gate in record.gates
        if (point.case, gate) not in found and gate not in whole
    ] + [gate.name for gate in whole if (record.result.case, gate) not in found]


def gate_of(gates: Sequence[Gate], verdict: GateVerdict) -> Gate | None:
    """Find the gate of a row: by its name for a metric or speedup, by its reference for a loss, else a floor."""
    for gate in gates:
        if isinstance(gate, PerformanceGate) and gate.name == verdict.gate:
            absolute = gate.limit is not None
            if absolute == (verdict.source == "mark"):
                return gate
        if isinstance(gate, SpeedupFloor | ErrorRateCeiling | FrontierFloor) and gate.name == verdict.gate:
            return gate
        rows = (" loss", "unparseable rise")
        if isinstance(gate, AccuracyLossCeiling) and verdict.gate.endswith(
            tuple(f"{row} vs {gate.reference}" for row in rows)
        ):
            return gate
        if isinstance(gate, AccuracyFloor) and verdict.source == "mark" and not METRICS.get(base_name(verdict.gate)):
            return gate
    return None


def counts(run: Run) -> str:
    """Say how many of the gates passed."""
    rows = [verdict for _, verdict in run.rows().values()]
    passed = sum(verdict.status is Status.PASS for verdict in rows)
    return f"{passed} of {plural(len(rows), 'gate')} passed"
