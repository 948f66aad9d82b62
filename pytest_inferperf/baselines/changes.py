"""One difference between a baseline and a measured value, and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pytest_inferperf.baselines.entries import Missing, ScoreEntry, accuracy_key, performance_key
from pytest_inferperf.baselines.nearest import nearest_accuracy, nearest_performance
from pytest_inferperf.baselines.result_file import ResultRecord, record_points
from pytest_inferperf.baselines.store import (
    accuracy_path,
    lookup_accuracy,
    lookup_performance,
    performance_path,
    shown_path,
)
from pytest_inferperf.hiding import HIDDEN, finder
from pytest_inferperf.model.gates import rules_of
from pytest_inferperf.model.injection import CONTEXT_KEY
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import AccuracyResult, PerformanceResult
from pytest_inferperf.model.sharing import ALONE, shared_words
from pytest_inferperf.model.verdicts import Status

__all__ = [
    "Change",
    "Evidence",
    "accuracy_change",
    "change",
    "compare",
    "last_attempts",
    "measured_metrics",
    "relative_loss",
    "why_unusable",
]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value of a baseline file and the value that replaces, or would replace, it."""

    path: str
    """The baseline file, relative to the root's parent."""

    key: str
    what: str
    """A metric (`ttft_ms.p99`), or for accuracy a precision (`NVFP4+kv_fp8`)."""

    old: float | None
    """None where there is no baseline yet."""

    new: float
    unit: str
    """The metric's unit, or for accuracy the lm-eval metric of the score."""

    percent: float | None
    """The change in percent of the old value; None without an old value, or where it is 0."""

    better: bool | None
    """None without an old value, or where nothing moved. A score with more unparseable answers is never better."""

    kind: Literal["performance", "accuracy"]
    sessions: int | None = None
    """Sessions that the new value rests on; None for accuracy."""

    unparseable: tuple[float, float] | None = None
    """Old and new percentage of unparseable answers; None where it did not move."""

    interval: tuple[float, float] | None = None
    """Confidence bounds of `percent`; None where nothing gives any, or nobody asked."""

    rests_on: tuple[int, int] | None = None
    """Sessions, or questions, behind the old value (0 without one) and the new; None where nobody asked."""

    identity: str = ""
    """Without an old value: how the nearest entry differs; "" where there is none."""

    context: tuple[str, ...] = ()
    """What differs in the context of the old value and the new: `torch 2.13.0 -> 2.14.0`."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Confidence intervals, from whoever knows statistics. Each gives None where there is none."""

    performance: Callable[[Sequence[Sequence[float]], Sequence[Sequence[float]]], tuple[float, float] | None]
    """Stored and measured sessions to bounds of the change in percent."""

    accuracy: Callable[[Sequence[float], Sequence[float]], tuple[float, float] | None]
    """Stored and measured outcomes to bounds of the mean change of an outcome."""


def change(
    *,
    path: str,
    key: str,
    what: str,
    old: float | None,
    new: float,
    unit: str,
    higher_is_better: bool,
    kind: Literal["performance", "accuracy"],
    sessions: int | None = None,
    unparseable: tuple[float, float] | None = None,
) -> Change:
    """Make a `Change`, with its percentage and direction worked out."""
    percent = None if not old else 100 * (new - old) / abs(old)
    better = None if old is None or new == old else (new > old) == higher_is_better
    if old is None or unparseable is None or unparseable[0] == unparseable[1]:
        unparseable = None
    elif unparseable[1] > unparseable[0]:
        better = False
    elif better is None:
        better = True
    return Change(
        path=path,
        key=key,
        what=what,
        old=old,
        new=new,
        unit=unit,
        percent=percent,
        better=better,
        kind=kind,
        sessions=sessions,
        unparseable=unparseable,
    )


def accuracy_change(path: str, key: str, precision: str, stored: ScoreEntry | None, measured: AccuracyResult) -> Change:
    """Make the `Change` from a stored score, None where there is none, to a measured one."""
    unparseable = None
    if stored is not None and stored.outcomes:
        # A published score says nothing about answers that could not be read.
        unparseable = _share(stored.unparseable), _share(measured.unparseable)
    return change(
        path=path,
        key=key,
        what=precision,
        old=None if stored is None else stored.score,
        new=measured.score,
        unit=measured.metric,
        higher_is_better=measured.higher_is_better,
        kind="accuracy",
        unparseable=unparseable,
    )


def _share(flags: Sequence[bool] | None) -> float:
    return 100 * sum(flags) / len(flags) if flags else 0.0


def last_attempts(records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """Return one record for each test: the last, which is the one that counts where a test was run again.

    Of a sweep, one for each point: what is filed, and compared, is a point.
    """
    last = {record.nodeid: record for record in records}.values()
    return [point for record in last for point in record_points(record)]


def relative_loss(old: float, new: float, *, higher_is_better: bool) -> float:
    """Return by which share of the old value the new one is worse; negative where it is better."""
    worse = old - new if higher_is_better else new - old
    if old == 0:
        return math.copysign(math.inf, worse) if worse else 0.0
    return worse / abs(old)


def measured_metrics(performance: PerformanceResult) -> list[str]:
    """Return the names of all metrics that at least one round measured, sorted."""
    return sorted({name for session in performance.sessions for item in session.rounds for name in item.metrics})


def why_unusable(record: ResultRecord) -> str:
    """Say why a record must not become a baseline; "" when it may."""
    result = record.result
    if CONTEXT_KEY in result.context:
        return f"a regression was injected ({result.context[CONTEXT_KEY]}); leave --inferperf-inject out"
    if result.invalid:
        return f"the run is invalid: {result.invalid}"
    for verdict in record.verdicts:
        if verdict.status is Status.INVALID:
            return f"the run is invalid: {verdict.reason or verdict.gate}"
    if record.status is Status.INVALID:
        return "the run is invalid"
    measured = result.performance
    failed = measured.num_failed_requests if measured is not None else 0
    requests = sum(item.num_requests for one in measured.sessions for item in one.rounds) if measured is not None else 0
    if failed > rules_of(record.gates).max_failed_share * requests:
        return f"{failed} {'request' if failed == 1 else 'requests'} failed"
    answers = result.accuracy
    if answers is not None and answers.is_partial:
        return (
            f"the evaluation stopped after {len(answers.outcomes)} of {answers.planned} questions, and a baseline needs "
            "all: evaluate with --inferperf-set=early_stop=false"
        )
    shared = shared_words(result)
    if shared:
        return f"{shared}, and a neighbour may have slowed it; measure it with {ALONE}"
    if result.performance is not None and result.engine is None:
        return "the result does not say which hardware it ran on"
    find = finder()
    for name, value in result.case.identity().items():
        # A key must not depend on what one machine takes for a secret, and a secret must not be in git.
        secret = find(str(value)) or ("held a secret, which is hidden" if HIDDEN in str(value) else "")
        if secret:
            return f"{name} {secret}, and a baseline is filed under it; take it out of the mark"
    return ""


def compare(
    root: Path, records: Sequence[ResultRecord], *, evidence: Evidence | None = None
) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """Compare every measured value with its baseline.

    Returns one `Change` per value, moved or not, and a sentence for every record that cannot be compared. Of a test
    that was run again, the last attempt counts. With `evidence`, each says what it rests on, and what moved beside it.
    """
    changes: dict[tuple[str, str, str], Change] = {}
    notes = []
    for record in last_attempts(records):
        problem = why_unusable(record)
        if problem:
            notes.append(f"{record.nodeid}: not compared: {problem}")
            continue
        found, note = _compare_record(root, record, evidence)
        for item in found:
            changes.setdefault((item.path, item.key, item.what), item)
        if note:
            notes.append(f"{record.nodeid}: not compared: {note}")
    return tuple(changes.values()), tuple(notes)


def _compare_record(root: Path, record: ResultRecord, evidence: Evidence | None) -> tuple[list[Change], str]:
    found: list[Change] = []
    result, case = record.result, record.result.case
    if result.performance is not None and result.engine is not None and case.workload is not None:
        hardware = result.engine.hardware
        entry = lookup_performance(root, hardware, case)
        known = None if isinstance(entry, Missing) else entry
        for name in measured_metrics(result.performance):
            row = parse_metric(name).metric
            stored = None if known is None else known.metrics.get(name)
            item = change(
                path=shown_path(root, performance_path(root, hardware, case)),
                key=performance_key(case),
                what=name,
                old=None if stored is None else stored.level,
                new=result.performance[name],
                unit=row.unit,
                higher_is_better=row.higher_is_better,
                kind="performance",
            )
            if evidence is not None:
                sessions = [rounds for rounds in result.performance.rounds(name) if rounds]
                item = replace(
                    item,
                    interval=None if stored is None else evidence.performance(stored.sessions, sessions),
                    rests_on=(0 if stored is None else len(stored.sessions), len(sessions)),
                    identity="" if known is not None else nearest_performance(root, hardware, case),
                    context=() if known is None else _moved(known.context, result.context),
                )
            found.append(item)
    if result.accuracy is not None and case.task is not None:
        answers = result.accuracy
        key = accuracy_key(case, answers.metric)
        task = lookup_accuracy(root, case, answers.metric)
        if not isinstance(task, Missing) and task.documents_digest not in ("", answers.documents_digest):
            return found, f"{task.path}: {key} was answered on other documents"
        score = None if isinstance(task, Missing) else task.scores.get(case.engine.precision)
        path = shown_path(root, accuracy_path(root, case))
        item = accuracy_change(path, key, case.engine.precision, score, answers)
        if evidence is not None:
            bounds = None if score is None else evidence.accuracy(score.outcomes, answers.outcomes)
            item = replace(
                item,
                interval=None
                if bounds is None or not item.old
                else (100 * bounds[0] / abs(item.old), 100 * bounds[1] / abs(item.old)),
                rests_on=(0 if score is None else len(score.outcomes), len(answers.outcomes)),
                identity="" if score is not None else nearest_accuracy(root, case, answers.metric),
                context=() if score is None else _moved(score.context, result.context),
            )
        found.append(item)
    return found, "" if found else "nothing was measured"


def _moved(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, ...]:
    names = sorted(old.keys() | new.keys())
    return tuple(
        f"{name} {old.get(name, 'unknown')} -> {new.get(name, 'unknown')}"
        for name in names
        if old.get(name) != new.get(name)
    )
