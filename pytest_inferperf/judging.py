"""Look a case up in the baseline files and judge it: one road for a live run, a stored result and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_inferperf.baselines.changes import measured_metrics
from pytest_inferperf.baselines.entries import Missing
from pytest_inferperf.baselines.store import lookup_accuracy, lookup_performance
from pytest_inferperf.gates.judge import Baselines, judge
from pytest_inferperf.model.gates import Gate, PerformanceGate
from pytest_inferperf.model.results import CaseResult
from pytest_inferperf.model.verdicts import GateVerdict, Status

__all__ = ["judge_case", "lacks_baseline", "next_look"]


def judge_case(
    result: CaseResult, gates: Sequence[Gate], *, root: Path, tolerance: float, alpha: float
) -> tuple[GateVerdict, ...]:
    """Judge every gate of a case against the baseline files under `root`.

    `tolerance` is the relative performance tolerance where neither mark nor entry has one, `alpha` the total one-sided
    error of each gate. Raises `BaselineError` for a baseline file that cannot be read: a broken file must not look like
    a missing one.
    """
    case = result.case
    performance = None
    if case.workload is not None and result.engine is not None:
        performance = lookup_performance(root, result.engine.hardware, case)
    accuracy = None
    if case.task is not None and result.accuracy is not None:
        accuracy = lookup_accuracy(root, case, result.accuracy.metric)
    found = Baselines(performance=performance, accuracy=accuracy, default_tolerance=tolerance, alpha=alpha)
    return judge(gates, result, found)


def next_look(result: CaseResult, gates: Sequence[Gate], *, root: Path, tolerance: float, alpha: float) -> int | None:
    """Say how many sessions, in all, the next look of a performance gate still undecided needs.

    None where none is: all are decided, no look is left, or the run is INVALID. Arguments and errors as in `judge_case`.
    """
    asked = [gate for gate in gates if isinstance(gate, PerformanceGate)]
    verdicts = judge_case(result, asked, root=root, tolerance=tolerance, alpha=alpha)
    if any(verdict.status is Status.INVALID for verdict in verdicts):
        return None
    return min((verdict.next_look for verdict in verdicts if verdict.next_look is not None), default=None)


def lacks_baseline(result: CaseResult, gates: Sequence[Gate], *, root: Path) -> bool:
    """Whether a metric that was measured, or that a gate needs, has no performance baseline.

    Raises `BaselineError` for a baseline file that cannot be read.
    """
    if result.performance is None or result.engine is None:
        return False
    entry = lookup_performance(root, result.engine.hardware, result.case)
    if isinstance(entry, Missing):
        return True
    if entry.provenance.kind == "published":
        return False  # nothing measured is added to it
    gated = {gate.name for gate in gates if isinstance(gate, PerformanceGate) and gate.limit is None}
    return not gated.union(measured_metrics(result.performance)) <= entry.metrics.keys()
