"""Look a case up in the baseline files and judge it: one road for a live run, a stored result and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_inferperf.baselines.store import lookup_accuracy, lookup_performance
from pytest_inferperf.gates.judge import Baselines, judge
from pytest_inferperf.model.gates import Gate
from pytest_inferperf.model.results import CaseResult
from pytest_inferperf.model.verdicts import GateVerdict

__all__ = ["judge_case"]


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
