"""Look a case up in the baseline files and judge it: one road for a live run, a stored result and the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pytest_inferperf.baselines.against import RunReference, answers_entry
from pytest_inferperf.baselines.changes import measured_metrics
from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, PerformanceEntry, source_of
from pytest_inferperf.baselines.store import lookup_accuracy, lookup_performance
from pytest_inferperf.gates.frontier import FrontierPoint, judge_frontier
from pytest_inferperf.gates.judge import Baselines, judge
from pytest_inferperf.gates.sharing import on_shared_node
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.gates import ErrorRateCeiling, FrontierFloor, Gate, PerformanceGate
from pytest_inferperf.model.results import CaseResult
from pytest_inferperf.model.verdicts import GateVerdict, Status

__all__ = ["find_accuracy", "judge_case", "lacks_baseline", "next_look"]


def judge_case(
    result: CaseResult,
    gates: Sequence[Gate],
    *,
    root: Path,
    tolerance: float,
    alpha: float,
    against: RunReference | None = None,
    nodeid: str = "",
) -> tuple[GateVerdict, ...]:
    """Judge every gate of a case against the baseline files under `root`, or against what stands in for them.

    The answers of an engine that was compared in the same run stand in for stored answers, and `against`, another run,
    for all baselines; of two tests of the case there, `nodeid`'s counts.

    Every point of a sweep is judged by every gate, with a baseline of its own; its rows begin with its load: `c8 …`. A
    frontier gate has one row for all points.

    `tolerance` is the relative performance tolerance where neither mark nor entry has one, `alpha` the total one-sided
    error of each gate. Raises `BaselineError` for a baseline file that cannot be read: a broken file must not look like
    a missing one.
    """
    if result.frontier is not None:
        whole = [gate for gate in gates if isinstance(gate, FrontierFloor)]
        of_a_point = [gate for gate in gates if not isinstance(gate, FrontierFloor)]
        rows = [
            replace(verdict, gate=f"{_load(point.case)} {verdict.gate}")
            for point in result.points()
            for verdict in judge_case(
                point, of_a_point, root=root, tolerance=tolerance, alpha=alpha, against=against, nodeid=nodeid
            )
        ]
        points = [
            FrontierPoint(load=_load(point.case), result=point, entry=_performance(point, root, against, nodeid))
            for point in (result.points() if whole else ())
        ]
        for gate in whole:
            verdict = judge_frontier(gate, points, gates, default_tolerance=tolerance, alpha=alpha)
            verdict = on_shared_node(gate, verdict, result)
            rows.append(verdict if against is None else _without_files(verdict, against, result.case))
        return tuple(rows)
    case = result.case
    performance = _performance(result, root, against, nodeid)
    accuracy = find_accuracy(result, root=root, against=against, nodeid=nodeid)
    found = Baselines(performance=performance, accuracy=accuracy, default_tolerance=tolerance, alpha=alpha)
    verdicts = judge(gates, result, found)
    return verdicts if against is None else tuple(_without_files(verdict, against, case) for verdict in verdicts)


def _performance(
    result: CaseResult, root: Path, against: RunReference | None, nodeid: str
) -> PerformanceEntry | Missing | None:
    case, engine = result.case, result.engine
    if case.workload is None or engine is None:
        return None
    if against is not None:
        return against.performance(case, engine.hardware, nodeid=nodeid)
    return lookup_performance(root, engine.hardware, case)


def find_accuracy(
    result: CaseResult, *, root: Path, against: RunReference | None = None, nodeid: str = ""
) -> AccuracyEntry | Missing | None:
    """Find the answers that a case is paired with; None where nothing was answered. Arguments and errors as in `judge_case`."""
    case = result.case
    if case.task is None or result.accuracy is None:
        return None
    metric = result.accuracy.metric
    answers = ((item.reference.label, item.accuracy) for item in result.comparisons)
    label, compared = next(((label, found) for label, found in answers if found is not None), ("", None))
    if compared is not None:
        return answers_entry(label, case, compared, result.context)
    if against is not None:
        return against.accuracy(case, metric, nodeid=nodeid)
    return lookup_accuracy(root, case, metric)


def next_look(
    result: CaseResult,
    gates: Sequence[Gate],
    *,
    root: Path,
    tolerance: float,
    alpha: float,
    against: RunReference | None = None,
    nodeid: str = "",
) -> int | None:
    """Say how many sessions, in all, the next look of a performance gate still undecided needs.

    None where none is: all are decided, no look is left, or the run is INVALID. Arguments and errors as in `judge_case`.
    """
    # The ceiling says how many requests may fail; without it one that fails makes the run INVALID.
    asked = [gate for gate in gates if isinstance(gate, PerformanceGate | FrontierFloor | ErrorRateCeiling)]
    verdicts = judge_case(result, asked, root=root, tolerance=tolerance, alpha=alpha, against=against, nodeid=nodeid)
    if any(verdict.status is Status.INVALID for verdict in verdicts):
        return None
    return min((verdict.next_look for verdict in verdicts if verdict.next_look is not None), default=None)


def lacks_baseline(result: CaseResult, gates: Sequence[Gate], *, root: Path) -> bool:
    """Whether a metric that was measured, or that a gate needs, has no performance baseline.

    Raises `BaselineError` for a baseline file that cannot be read.
    """
    if result.frontier is not None:
        return any(lacks_baseline(point, gates, root=root) for point in result.points())
    if result.performance is None or result.engine is None:
        return False
    entry = lookup_performance(root, result.engine.hardware, result.case)
    if isinstance(entry, Missing):
        return True
    if entry.provenance.kind == "published":
        return False  # nothing measured is added to it
    gated = {gate.name for gate in gates if isinstance(gate, PerformanceGate) and gate.limit is None}
    gated |= {ref.name for gate in gates if isinstance(gate, FrontierFloor) for ref in (gate.metric, gate.over)}
    return not gated.union(measured_metrics(result.performance)) <= entry.metrics.keys()


def _load(case: Case) -> str:
    return case.workload.load_name if case.workload is not None else ""


_RECORD = re.compile(r'--inferperf-update=\w+( --inferperf-reason="…")?')


def _without_files(verdict: GateVerdict, against: RunReference, case: Case) -> GateVerdict:
    """Say what to type to record such a result file, where the judge speaks of baseline files: none was read."""
    if verdict.source != source_of(against.label):
        return verdict
    write = f"--inferperf-json={against.label}"
    if case.task is not None and case.task.early_stop:
        write += " --inferperf-set=early_stop=false"  # part of the answers is no reference
    step = _RECORD.sub(write, verdict.next_step)
    if verdict.next_step.endswith("--inferperf-update=new"):  # nothing is on file
        step = f"record it where the reference runs: pytest {{nodeid}} {write}"
    return replace(
        verdict,
        next_step=step if verdict.next_step else "",
        notes=tuple(note for note in verdict.notes if "--inferperf-update" not in note),
    )
