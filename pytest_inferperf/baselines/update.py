"""Updating baselines: plan what would change and what is refused, then write every touched file once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pytest_inferperf.baselines.changes import Change, change, measured_metrics, relative_loss, why_unusable
from pytest_inferperf.baselines.entries import (
    AccuracyEntry,
    MetricBaseline,
    PerformanceEntry,
    Provenance,
    ScoreEntry,
    accuracy_key,
    performance_key,
)
from pytest_inferperf.baselines.outcomes import as_stored
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.baselines.store import (
    AccuracyFile,
    PerformanceFile,
    accuracy_identity,
    accuracy_path,
    dump_accuracy,
    dump_performance,
    load_accuracy,
    load_performance,
    performance_identity,
    performance_path,
    read_bytes,
    shown_path,
)
from pytest_inferperf.baselines.write import locked, remove_leftovers, write_atomic
from pytest_inferperf.errors import BaselineError, UpdateRefused
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import AccuracyResult, Hardware, PerformanceResult

__all__ = ["MODES", "Mode", "PlannedFile", "UpdatePlan", "apply_update", "plan_update", "update"]

Mode = Literal["new", "tighten", "all"]
MODES: tuple[Mode, ...] = get_args(Mode)

DEFAULT_TOLERANCE = 0.05
"""Relative loss of a performance metric that counts as a regression, where the entry does not say."""

ACCURACY_POINTS = 0.5
"""Loss in percentage points that counts as a regression of a score whose outcomes are 0 and 1."""

ACCURACY_PERCENT = 1.0
"""Loss in percent that counts as a regression of any other score."""


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file to write."""

    path: Path
    shown: str
    before: bytes | None
    """What the file held when the plan was made; None where there was none."""

    after: str


@dataclass(frozen=True, kw_only=True)
class UpdatePlan:
    """What an update would do, decided before anything is written."""

    root: Path
    changes: tuple[Change, ...]
    refusals: tuple[str, ...]
    """What was asked for and is not done, with the reason and the option that allows it."""

    skipped: tuple[str, ...]
    """What there was nothing to record of, with the reason."""

    files: tuple[PlannedFile, ...]


def plan_update(
    root: Path,
    records: Sequence[ResultRecord],
    *,
    mode: Mode,
    reason: str,
    accept_regression: bool,
    now: str,
) -> UpdatePlan:
    """Decide what the records change in the baselines below `root`. Writes nothing.

    `new` records what is missing; `tighten` replaces a value where the measured one is better; `all` replaces every
    value, for which it needs a reason, and a value that is worse beyond the tolerance only with `accept_regression`.
    Raises `BaselineError` for a baseline file that cannot be read.
    """
    planner = _Planner(root, mode=mode, reason=reason.strip(), accept_regression=accept_regression, now=now)
    if mode == "all" and not planner.reason:
        planner.refusals.append('mode "all" may loosen baselines and needs a reason: add --reason "…"')
    else:
        for record in planner.usable(records):
            planner.add(record)
    return planner.plan()


def apply_update(plan: UpdatePlan) -> list[Path]:
    """Write the planned files and return their paths.

    Raises `UpdateRefused`, before anything is written, when a file is no longer what it was when the plan was made.
    """
    if not plan.files:
        return []
    with locked(plan.root):
        return _write(plan)


def update(
    root: Path,
    records: Sequence[ResultRecord],
    *,
    mode: Mode,
    reason: str,
    accept_regression: bool,
    now: str,
) -> tuple[UpdatePlan, list[Path]]:
    """Plan and apply under one lock, so that of two updates at the same time neither is refused nor lost."""
    with locked(root):
        plan = plan_update(root, records, mode=mode, reason=reason, accept_regression=accept_regression, now=now)
        return plan, _write(plan)


def _write(plan: UpdatePlan) -> list[Path]:
    for file in plan.files:
        if read_bytes(file.path, file.shown) != file.before:
            raise UpdateRefused(
                f"{file.shown}: changed since the update was planned; nothing was written. Run the update again."
            )
    for file in plan.files:
        remove_leftovers(file.path)
        write_atomic(file.path, file.after, shown=file.shown)
    return [file.path for file in plan.files]


class _Planner:
    """Holds the files as they would be after the records added so far."""

    def __init__(self, root: Path, *, mode: Mode, reason: str, accept_regression: bool, now: str) -> None:
        self.root = root
        self.mode = mode
        self.reason = reason
        self.accept_regression = accept_regression
        self.now = now
        self.changes: list[Change] = []
        self.refusals: list[str] = []
        self.skipped: list[str] = []
        self._before: dict[Path, bytes | None] = {}
        self._performance: dict[Path, PerformanceFile] = {}
        self._accuracy: dict[Path, AccuracyFile] = {}
        self._answered: set[tuple[Path, str, str, str]] = set()
        """Scores that the records bring: file, key, precision, digest of the documents."""

    def plan(self) -> UpdatePlan:
        """Return the plan: only files in which something changes are in it."""
        touched = {item.path for item in self.changes}
        texts = {path: dump_performance(file) for path, file in self._performance.items()}
        texts |= {path: dump_accuracy(file) for path, file in self._accuracy.items()}
        files = [
            PlannedFile(path=path, shown=shown_path(self.root, path), before=self._before[path], after=text)
            for path, text in sorted(texts.items())
            if shown_path(self.root, path) in touched
        ]
        return UpdatePlan(
            root=self.root,
            changes=tuple(self.changes),
            refusals=tuple(self.refusals),
            skipped=tuple(self.skipped),
            files=tuple(files),
        )

    def usable(self, records: Sequence[ResultRecord]) -> list[ResultRecord]:
        """Return the records that may become baselines, one per key; the others are refused or skipped."""
        chosen: dict[tuple[str, ...], list[ResultRecord]] = {}
        for record in records:
            problem = why_unusable(record)
            if problem:
                self.refusals.append(f"{record.nodeid}: not recorded: {problem}")
            elif record.result.performance is None and record.result.accuracy is None:
                self.skipped.append(f"{record.nodeid}: nothing was measured")
            else:
                chosen.setdefault(_address(record), []).append(record)
        found = []
        for first, *others in chosen.values():
            differing = [item for item in others if item.result.case.engine != first.result.case.engine]
            if differing:
                # Whichever were recorded, the other test would be judged against an engine it does not measure.
                self.refusals.append(
                    f"{first.nodeid} and {differing[0].nodeid}: not recorded: they share the key"
                    f" {_address(first)[-1]!r} but measure engines with different options."
                    " Give one of them another served_model_name"
                )
                continue
            self.skipped += [f"{item.nodeid}: the same case as {first.nodeid}, which is used" for item in others]
            found.append(first)
            answers, case = first.result.accuracy, first.result.case
            if answers is not None and case.task is not None:
                path = accuracy_path(self.root, case)
                self._answered.add((path, accuracy_key(case), case.engine.precision, answers.documents_digest))
        return found

    def add(self, record: ResultRecord) -> None:
        """Take one record into the files."""
        result = record.result
        if result.performance is not None and result.engine is not None and result.case.workload is not None:
            self._add_performance(record, result.performance, result.engine.hardware)
        if result.accuracy is not None and result.case.task is not None:
            self._add_accuracy(record, result.accuracy)

    def _add_performance(self, record: ResultRecord, measured: PerformanceResult, hardware: Hardware) -> None:
        case = record.result.case
        path, key = performance_path(self.root, hardware, case), performance_key(case)
        shown = shown_path(self.root, path)
        if path not in self._before:
            self._before[path] = read_bytes(path, shown)
            self._performance[path] = load_performance(self.root, hardware, case) or PerformanceFile(
                model=case.engine.served_model_name, hardware=hardware, entries={}
            )
        file = self._performance[path]
        old = file.entries.get(key)
        names = measured_metrics(measured)
        self.skipped += [
            f"{record.nodeid}: {gate.name} was not measured"
            for gate in record.gates
            if isinstance(gate, PerformanceGate) and gate.limit is None and gate.name not in names
        ]
        if not names:
            return
        changes, metrics = [], {}
        for name in names:
            row = parse_metric(name).metric
            stored = old.metrics.get(name) if old is not None else None
            sessions = tuple(tuple(rounds) for rounds in measured.rounds(name) if rounds)
            metrics[name] = MetricBaseline(sessions=sessions, tolerance=None if stored is None else stored.tolerance)
            if stored is not None and stored.sessions == sessions:
                continue
            changes.append(
                change(
                    path=shown,
                    key=key,
                    what=name,
                    old=None if stored is None else stored.level,
                    new=metrics[name].level,
                    unit=row.unit,
                    higher_is_better=row.higher_is_better,
                    kind="performance",
                )
            )
        wanted = self._wanted(changes)
        warmup_rounds = max(session.warmup_rounds for session in measured.sessions)
        if not wanted:
            return
        refusal = self._refuse_performance(old, wanted, names, warmup_rounds)
        if refusal:
            self.refusals.append(f"{record.nodeid}: {shown}: {key} not changed: {refusal}")
            return
        kept = {} if old is None or self.mode == "all" else dict(old.metrics)
        taken = set(names) if self.mode == "all" else {item.what for item in wanted}
        entry = PerformanceEntry(
            path=shown,
            key=key,
            identity=performance_identity(case),
            metrics=kept | {name: metrics[name] for name in taken},
            warmup_rounds=warmup_rounds,
            provenance=self._provenance(),
            context=dict(record.result.context),
        )
        self._performance[path] = replace(file, entries={**file.entries, key: entry})
        self.changes += wanted

    def _refuse_performance(
        self, old: PerformanceEntry | None, wanted: Sequence[Change], names: Sequence[str], warmup_rounds: int
    ) -> str:
        """Say why an entry must stay as it is; "" when it may change."""
        if old is None:
            return ""
        if self.mode != "all":
            if old.provenance.kind == "published":
                return f'it is published ({old.provenance.source}); only --mode all --reason "…" replaces it'
            if old.warmup_rounds != warmup_rounds:
                # Values measured after other warm-ups cannot stand in one entry.
                return (
                    f"its values were measured after {old.warmup_rounds} warm-up rounds, these after {warmup_rounds};"
                    ' re-record all of them with --mode all --reason "…"'
                )
            return ""
        if self.accept_regression:
            return ""
        worse = []
        for item in wanted:
            if item.old is None:
                continue
            tolerance = old.metrics[item.what].tolerance
            allowed = DEFAULT_TOLERANCE if tolerance is None else tolerance
            row = parse_metric(item.what).metric
            if relative_loss(item.old, item.new, higher_is_better=row.higher_is_better) > allowed:
                moved = "" if item.percent is None else f" ({item.percent:+.1f} %)"
                worse.append(f"{item.what} {item.old:g} -> {item.new:g} {item.unit}{moved}, tolerance {allowed:.4g}")
        if worse:
            return f"worse beyond the tolerance: {'; '.join(worse)}. To accept, add --accept-regression"
        lost = sorted(set(old.metrics) - set(names))
        if lost:
            return f"not measured this time and would be lost: {', '.join(lost)}. To accept, add --accept-regression"
        return ""

    def _add_accuracy(self, record: ResultRecord, measured: AccuracyResult) -> None:
        case = record.result.case
        path, key, precision = accuracy_path(self.root, case), accuracy_key(case), case.engine.precision
        shown = shown_path(self.root, path)
        if path not in self._before:
            self._before[path] = read_bytes(path, shown)
            self._accuracy[path] = load_accuracy(self.root, case) or AccuracyFile(
                model=case.engine.served_model_name, tasks={}
            )
        file = self._accuracy[path]
        old = file.tasks.get(key)
        stored = old.scores.get(precision) if old is not None else None
        try:
            outcomes = as_stored(measured.outcomes)
        except BaselineError as problem:
            self.refusals.append(f"{record.nodeid}: not recorded: {problem}")
            return
        same_questions = old is not None and _same_questions(old, measured)
        if stored is not None and same_questions and (stored.score, stored.outcomes) == (measured.score, outcomes):
            return
        moved = change(
            path=shown,
            key=key,
            what=precision,
            old=None if stored is None else stored.score,
            new=measured.score,
            unit=measured.metric,
            higher_is_better=measured.higher_is_better,
            kind="accuracy",
        )
        if (old is None or same_questions) and not self._wanted([moved]):
            return
        refusal = self._refuse_accuracy(path, old, moved, measured)
        if refusal:
            self.refusals.append(f"{record.nodeid}: {shown}: {key} {precision} not changed: {refusal}")
            return
        score = ScoreEntry(
            score=measured.score,
            outcomes=outcomes,
            unparseable=measured.unparseable,
            provenance=self._provenance(),
            context=dict(record.result.context),
        )
        entry = AccuracyEntry(
            path=shown,
            key=key,
            identity=accuracy_identity(case),
            metric=measured.metric,
            higher_is_better=measured.higher_is_better,
            documents_digest=measured.documents_digest,
            num_documents=len(measured.outcomes),
            scores={**(old.scores if old is not None and same_questions else {}), precision: score},
        )
        self._accuracy[path] = replace(file, tasks={**file.tasks, key: entry})
        self.changes.append(moved)

    def _refuse_accuracy(self, path: Path, old: AccuracyEntry | None, moved: Change, measured: AccuracyResult) -> str:
        """Say why a score must stay as it is; "" when it may change."""
        if old is None:
            return ""
        stored = old.scores.get(moved.what)
        if not _same_questions(old, measured):
            if old.metric != measured.metric or old.higher_is_better != measured.higher_is_better:
                what = f"the file's score is {old.metric!r}, this one is {measured.metric!r}"
            else:
                what = "the questions changed"
            if self.mode != "all":
                return f'{what}; re-record the reference too, with --mode all --reason "…"'
            lost = [
                item
                for item in sorted(old.scores)
                if (path, old.key, item, measured.documents_digest) not in self._answered
            ]
            if lost and not self.accept_regression:
                return f"{what}, so these scores would be lost: {', '.join(lost)}. To accept, add --accept-regression"
            return ""
        if stored is not None and stored.provenance.kind == "published" and self.mode != "all":
            return f'it is published ({stored.provenance.source}); only --mode all --reason "…" replaces it'
        if self.mode != "all" or self.accept_regression or moved.old is None:
            return ""
        if measured.is_binary:
            worse = 100 * (moved.old - moved.new) * (1 if measured.higher_is_better else -1)
            # Room for rounding: 0.65 - 0.645 is a little over half a point in binary fractions.
            too_much, allowed = worse > ACCURACY_POINTS + 1e-9, f"{ACCURACY_POINTS:g} points"
        else:
            loss = relative_loss(moved.old, moved.new, higher_is_better=measured.higher_is_better)
            too_much, allowed = 100 * loss > ACCURACY_PERCENT + 1e-9, f"{ACCURACY_PERCENT:g} %"
        if too_much:
            return (
                f"worse by more than {allowed}: {moved.unit} {moved.old:g} -> {moved.new:g}."
                " To accept, add --accept-regression"
            )
        return ""

    def _wanted(self, changes: Sequence[Change]) -> list[Change]:
        """Return the changes that the mode is about."""
        if self.mode == "new":
            return [item for item in changes if item.old is None]
        if self.mode == "tighten":
            self.skipped += [
                f"{item.path}: {item.key}: {item.what} has no baseline to tighten"
                for item in changes
                if item.old is None
            ]
            return [item for item in changes if item.better]
        return list(changes)

    def _provenance(self) -> Provenance:
        return Provenance(kind="measured", reason=self.reason, recorded=self.now)


def _address(record: ResultRecord) -> tuple[str, ...]:
    """Return what decides where a record is filed; records that share it share a baseline."""
    result, case = record.result, record.result.case
    hardware = result.engine.hardware.slug if result.performance is not None and result.engine is not None else ""
    keys = [performance_key(case)] if result.performance is not None and case.workload is not None else []
    keys += [f"{accuracy_key(case)} {case.engine.precision}"] if result.accuracy is not None and case.task else []
    return (case.engine.served_model_name, hardware, " and ".join(keys))


def _same_questions(old: AccuracyEntry, measured: AccuracyResult) -> bool:
    same_metric = (old.metric, old.higher_is_better) == (measured.metric, measured.higher_is_better)
    return same_metric and old.documents_digest in ("", measured.documents_digest)
