"""What an update would change, and what it refuses: the rules, over files held in memory. Writes nothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pytest_inferperf.baselines.changes import (
    Change,
    accuracy_change,
    change,
    last_attempts,
    measured_metrics,
    why_unusable,
)
from pytest_inferperf.baselines.entries import (
    LEAST_BASELINE_SESSIONS,
    AccuracyEntry,
    MetricBaseline,
    PerformanceEntry,
    Provenance,
    ScoreEntry,
    accuracy_key,
    performance_key,
)
from pytest_inferperf.baselines.losses import (
    Doubt,
    Outdone,
    figure,
    lax_siblings,
    new_anchor,
    no_doubt,
    not_outdone,
    worse_answers,
    worse_metrics,
)
from pytest_inferperf.baselines.origin import Origin
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
    other_server,
    performance_identity,
    performance_path,
    read_bytes,
    shown_path,
)
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.quant import precision_bits
from pytest_inferperf.model.results import AccuracyResult, Hardware, PerformanceResult

__all__ = ["DEFAULT_TOLERANCE", "MODES", "Mode", "PlannedFile", "Planner", "UpdatePlan"]

Mode = Literal["new", "tighten", "all"]
MODES: tuple[Mode, ...] = get_args(Mode)

DEFAULT_TOLERANCE = 0.05
"""Relative loss of a performance metric that counts as a regression, where nothing says less."""

_ACCEPT = "To accept: add --accept-regression (in pytest: --inferperf-accept-regression)"
_REPLACE = 'To replace it: --mode all --reason "…" (in pytest: --inferperf-update=all --inferperf-reason="…")'
_REPEAT = "Repeat the run"
_NAMED = 3
"""Metrics that the first line of a refusal names; all are listed below it."""


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file to write."""

    path: Path
    shown: str
    before: bytes | None
    """What the file held when the plan was made; None where there was none."""

    after: str | None
    """What it will hold; None where the file is removed."""


@dataclass(frozen=True, kw_only=True)
class UpdatePlan:
    """What an update would do, decided before anything is written."""

    root: Path
    changes: tuple[Change, ...]
    refusals: tuple[str, ...]
    """What was asked for and is not done: a first line that says it all, indented details, and what to type."""

    skipped: tuple[str, ...]
    """What there was nothing to record of, with the reason."""

    files: tuple[PlannedFile, ...]


class Planner:
    """Holds the files as they would be after the records added so far."""

    def __init__(
        self,
        root: Path,
        *,
        mode: Mode,
        reason: str,
        accept_regression: bool,
        now: str,
        tolerance: float,
        doubt: Doubt = no_doubt,
        outdone: Outdone = not_outdone,
        least_sessions: int = 1,
        origin: Origin | None = None,
    ) -> None:
        self.root = root
        self._doubt = doubt
        self._outdone = outdone
        self._least_sessions = least_sessions
        self._origin = origin or Origin()
        self.tolerance = tolerance
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

        self._replaced: dict[Path, dict[str, AccuracyEntry]] = {}
        """Entries of other questions, as they were before the records replaced them."""

    def plan(self) -> UpdatePlan:
        """Return the plan: only files in which something changes are in it."""
        self._restore()
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

    def _restore(self) -> None:
        """Put entries back whose scores were to be replaced by answers to other questions, not all of which were taken."""
        for path, entries in self._replaced.items():
            file = self._accuracy[path]
            for key, old in entries.items():
                lost = sorted(old.scores.keys() - file.tasks[key].scores.keys())
                if not lost:
                    continue
                file = replace(file, tasks={**file.tasks, key: old})
                self.changes = [item for item in self.changes if (item.path, item.key) != (old.path, key)]
                headline = f"the questions changed, so these scores would be lost: {', '.join(lost)}"
                self._refuse(old.path, headline, key, action=_ACCEPT)
            self._accuracy[path] = file

    def usable(self, records: Sequence[ResultRecord]) -> list[ResultRecord]:
        """Return the records that may become baselines, one per key; the others are refused or skipped."""
        chosen: dict[tuple[str, ...], list[ResultRecord]] = {}
        for record in last_attempts(records):
            problem = why_unusable(record)
            if problem:
                self._refuse(record.nodeid, problem, action=_REPEAT)
            elif record.result.performance is None and record.result.accuracy is None:
                compared = record.result.comparisons
                what = (
                    "only compared with another engine, which records nothing" if compared else "nothing was measured"
                )
                self.skipped.append(f"{record.nodeid}: {what}")
            else:
                chosen.setdefault(_address(record), []).append(record)
        found = []
        for same in chosen.values():
            # The one that says most about its own spread.
            first, *others = sorted(same, key=_sessions, reverse=True)
            differing = [item for item in others if item.result.case.engine != first.result.case.engine]
            if differing:
                # Whichever were recorded, the other test would be judged against an engine it does not measure.
                self._refuse(
                    f"{first.nodeid} and {differing[0].nodeid}",
                    f"they share the key {_address(first)[-1]!r} but measure engines with different options",
                    action="Give one of them another served_model_name",
                )
                continue
            self.skipped += [f"{item.nodeid}: the same case as {first.nodeid}, which is used" for item in others]
            # The strictest gate of every test of the case says what is a loss.
            gates = tuple(gate for item in (first, *others) for gate in item.gates)
            verdicts = tuple(verdict for item in (first, *others) for verdict in item.verdicts)
            found.append(replace(first, gates=gates, verdicts=verdicts))
            answers, case = first.result.accuracy, first.result.case
            if answers is not None and case.task is not None:
                with self._broken_files():
                    key = accuracy_key(case, answers.metric)
                    path = accuracy_path(self.root, case)
                    self._answered.add((path, key, case.engine.precision, answers.documents_digest))
        return sorted(found, key=_bits)

    def add(self, record: ResultRecord) -> None:
        """Take one record into the files."""
        result = record.result
        if result.performance is not None and result.engine is not None and result.case.workload is not None:
            with self._broken_files():
                self._add_performance(record, result.performance, result.engine.hardware)
        if result.accuracy is not None and result.case.task is not None:
            with self._broken_files():
                self._add_accuracy(record, result.accuracy)

    @contextlib.contextmanager
    def _broken_files(self) -> Iterator[None]:
        """Turn a baseline file that cannot be read into one refusal, however many records are about it."""
        try:
            yield
        except BaselineError as problem:
            if str(problem) not in self.refusals:
                self.refusals.append(str(problem))

    def _refuse(self, who: str, headline: str, *details: str, action: str) -> None:
        self.refusals.append("\n".join([f"{who}: {headline}", *(f"  {line}" for line in (*details, action))]))

    def _add_performance(self, record: ResultRecord, measured: PerformanceResult, hardware: Hardware) -> None:
        case = record.result.case
        path, key = performance_path(self.root, hardware, case), performance_key(case)
        shown = shown_path(self.root, path)
        if path not in self._before:
            before = read_bytes(path, shown)
            self._performance[path] = load_performance(self.root, hardware, case) or PerformanceFile(
                model=case.engine.served_model_name, hardware=hardware, entries={}
            )
            self._before[path] = before
        file = self._performance[path]
        old = file.entries.get(key)
        other = other_server(old, case) if old is not None else ""
        if other:
            action = "Give one of them another served_model_name"
            self._refuse(record.nodeid, f"{other}, not of {case.engine.server!r}", f"{shown}: {key}", action=action)
            return
        names = measured_metrics(measured)
        wrong = {name: value for name in names for value in _impossible(measured, name)}
        if wrong:
            figures = [f"{name}  {value:g} {parse_metric(name).metric.unit}" for name, value in wrong.items()]
            headline = f"figures must be finite and above 0: {_some(list(wrong))}"
            self._refuse(record.nodeid, headline, f"{shown}: {key}", *figures, action=_REPEAT)
        self.skipped += [
            f"{record.nodeid}: {gate.name} was not measured"
            for gate in record.gates
            if isinstance(gate, PerformanceGate) and gate.limit is None and gate.name not in names
        ]
        names = [name for name in names if name not in wrong]
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
                    sessions=len(sessions),
                )
            )
        wanted = self._wanted(changes)
        if wanted and self._too_few(record, measured, f"{shown}: {key}"):
            return
        if self.mode == "tighten" and old is not None:
            wanted = self._proven(wanted, old, metrics)
        warmup_rounds = max(session.warmup_rounds for session in measured.sessions)
        if not wanted:
            return
        if self._refuse_performance(record, measured, old, wanted, names, warmup_rounds, f"{shown}: {key}"):
            return
        worse = worse_metrics(record, old, wanted, self.tolerance) if old is not None else {}
        for name, item in metrics.items():
            metrics[name] = replace(
                item,
                anchor=new_anchor(
                    None if old is None else old.metrics.get(name),
                    None if old is None else old.provenance,
                    item.level,
                    higher_is_better=parse_metric(name).metric.higher_is_better,
                    # Whatever is this much worse and comes so far was accepted.
                    accepted=name in worse,
                ),
            )
        taken = set(names) if self.mode == "all" else {item.what for item in wanted}
        kept = (
            {}
            if old is None or self.mode == "all"
            else {name: item for name, item in old.metrics.items() if name not in taken}
        )
        replaced = any(item.old is not None for item in wanted)
        entry = PerformanceEntry(
            path=shown,
            key=key,
            identity=performance_identity(case),
            metrics=kept | {name: metrics[name] for name in taken},
            warmup_rounds=warmup_rounds,
            provenance=self._provenance(record, old.provenance.reason if old is not None and kept else ""),
            context=dict(old.context if old is not None and kept and not replaced else record.result.context),
        )
        self._performance[path] = replace(file, entries={**file.entries, key: entry})
        self.changes += wanted

    def _too_few(self, record: ResultRecord, measured: PerformanceResult, where: str) -> bool:
        """Refuse a measurement in fewer sessions than its mark asks for, or than a judge of noise needs."""
        load = record.result.case.workload
        asked = load.sessions if load is not None else 0
        needed = asked or self._least_sessions
        count = len(measured.sessions)
        if count >= needed:
            return False
        whose = "the mark asks for" if asked else "a judge of noise needs"
        self._refuse(
            record.nodeid,
            f"{count} {'session' if count == 1 else 'sessions'} measured, and {whose} {needed}",
            where,
            action="Repeat the run with --inferperf-set=sessions=10"
            + ("" if asked else ", or accept a baseline without known error: --accept-uncalibrated"),
        )
        return True

    def _refuse_performance(
        self,
        record: ResultRecord,
        measured: PerformanceResult,
        old: PerformanceEntry | None,
        wanted: Sequence[Change],
        names: Sequence[str],
        warmup_rounds: int,
        where: str,
    ) -> bool:
        """Refuse what must not change an entry; False where it may."""
        if old is None:
            return False
        if self.mode != "all":
            if old.provenance.kind == "published":
                self._refuse(
                    record.nodeid, f"the baseline is published ({old.provenance.source})", where, action=_REPLACE
                )
                return True
            if old.warmup_rounds != warmup_rounds:
                # Values measured after other warm-ups cannot stand in one entry.
                headline = f"the baseline was measured after {old.warmup_rounds} warm-up rounds, this run after {warmup_rounds}"
                self._refuse(record.nodeid, headline, where, action=_REPLACE)
                return True
            return False
        if self.accept_regression:
            return False
        worse = worse_metrics(record, old, wanted, self.tolerance)
        lost = {
            name: f"{figure(item.level)} {parse_metric(name).metric.unit} -> not measured"
            for name, item in sorted(old.metrics.items())
            if name not in names
        }
        disarmed = {
            name: f"{len(item.sessions)} sessions -> {len(measured.sessions)}"
            for name, item in sorted(old.metrics.items())
            if name in names and len(measured.sessions) < LEAST_BASELINE_SESSIONS <= len(item.sessions)
        }
        if not worse and not lost and not disarmed:
            return False
        gated = {gate.name for gate in record.gates if isinstance(gate, PerformanceGate)}
        headline = "; ".join(
            f"{what}: {_some([name for name in rows if name in gated] or list(rows), of=len(rows))}"
            for what, rows in (
                ("worse beyond the tolerance", worse),
                ("not measured this time and would be lost", lost),
                (f"fewer than the {LEAST_BASELINE_SESSIONS} sessions that a judge of noise needs", disarmed),
            )
            if rows
        )
        rows = disarmed | worse | lost
        width = max(map(len, rows))
        details = [
            f"{name:<{width}}  {rows[name]}{'  [gated]' if name in gated else ''}"
            for name in sorted(rows, key=lambda name: name not in gated)
        ]
        self._refuse(record.nodeid, headline, where, *details, action=_ACCEPT)
        return True

    def _add_accuracy(self, record: ResultRecord, measured: AccuracyResult) -> None:
        case = record.result.case
        precision, key = case.engine.precision, accuracy_key(case, measured.metric)
        path = accuracy_path(self.root, case)
        shown = shown_path(self.root, path)
        if path not in self._before:
            before = read_bytes(path, shown)
            self._accuracy[path] = load_accuracy(self.root, case) or AccuracyFile(
                model=case.engine.served_model_name, tasks={}
            )
            self._before[path] = before
        file = self._accuracy[path]
        old = file.tasks.get(key)
        stored = old.scores.get(precision) if old is not None else None
        where = f"{shown}: {key} {precision}"
        try:
            outcomes = as_stored(measured.outcomes)
        except BaselineError as problem:
            self._refuse(
                record.nodeid, str(problem), where, action="Correct the metric of the task, then repeat the run"
            )
            return
        if not math.isfinite(measured.score):
            self._refuse(record.nodeid, f"the score is {measured.score:g}", where, action=_REPEAT)
            return
        same_questions = old is not None and _same_questions(old, measured)
        answers = (measured.score, outcomes, measured.unparseable)
        if stored is not None and same_questions and (stored.score, stored.outcomes, stored.unparseable) == answers:
            lacks_repeat = stored.repeat is None and measured.repeat is not None
            lacks_logprobs = stored.logprobs is None and measured.logprobs is not None
            if not (lacks_repeat or lacks_logprobs):
                return
        moved = accuracy_change(shown, key, precision, stored, measured)
        if (old is None or same_questions) and not self._wanted([moved]):
            if self.mode == "tighten" and moved.unparseable is not None and moved.unparseable[0] < moved.unparseable[1]:
                before_share, share = moved.unparseable
                self.skipped.append(
                    f"{where}: not tightened: {before_share:.2f} % -> {share:.2f} % of answers unparseable"
                )
            return
        kept = old.scores if old is not None and same_questions else {}
        if self._refuse_accuracy(record, path, old, moved, measured, where):
            return
        if self._refuse_lax(record, precision, outcomes, kept, measured, where):
            return
        worse = {}
        if moved.old is not None and stored is not None and same_questions:
            worse = worse_answers(record, moved, moved.old, measured, stored.anchor)
        score = ScoreEntry(
            score=measured.score,
            outcomes=outcomes,
            unparseable=measured.unparseable,
            provenance=self._provenance(record),
            context=dict(record.result.context),
            repeat=measured.repeat,
            logprobs=measured.logprobs,
            anchor=new_anchor(
                stored if same_questions else None,
                None if stored is None else stored.provenance,
                measured.score,
                higher_is_better=measured.higher_is_better,
                accepted=bool(worse),
            ),
        )
        entry = AccuracyEntry(
            path=shown,
            key=key,
            identity=accuracy_identity(case, measured.metric),
            metric=measured.metric,
            higher_is_better=measured.higher_is_better,
            documents_digest=measured.documents_digest,
            num_documents=len(measured.outcomes),
            scores={**kept, precision: score},
        )
        if old is not None and not same_questions and not self.accept_regression:
            self._replaced.setdefault(path, {}).setdefault(key, old)
        self._accuracy[path] = replace(file, tasks={**file.tasks, key: entry})
        self.changes.append(moved)

    def _refuse_accuracy(
        self,
        record: ResultRecord,
        path: Path,
        old: AccuracyEntry | None,
        moved: Change,
        measured: AccuracyResult,
        where: str,
    ) -> bool:
        """Refuse what must not change a score; False where it may."""
        if old is None:
            return False
        stored = old.scores.get(moved.what)
        if not _same_questions(old, measured):
            what = "the questions changed"
            if old.higher_is_better != measured.higher_is_better:
                what = (
                    f"the file says that {old.metric} is better when {_direction(old)}, this run {_direction(measured)}"
                )
            if self.mode != "all":
                self._refuse(record.nodeid, f"{what}; the reference must be recorded again", where, action=_REPLACE)
                return True
            lost = [
                item
                for item in sorted(old.scores)
                if (path, old.key, item, measured.documents_digest) not in self._answered
            ]
            if lost and not self.accept_regression:
                headline = f"{what}, so these scores would be lost: {', '.join(lost)}"
                self._refuse(record.nodeid, headline, where, action=_ACCEPT)
                return True
            return False
        if stored is not None and stored.provenance.kind == "published" and self.mode != "all":
            self._refuse(
                record.nodeid, f"the baseline is published ({stored.provenance.source})", where, action=_REPLACE
            )
            return True
        if self.mode != "all" or self.accept_regression or moved.old is None:
            return False
        worse = worse_answers(record, moved, moved.old, measured, stored.anchor if stored is not None else None)
        if worse:
            self._refuse(
                record.nodeid,
                f"worse beyond what is allowed: {', '.join(worse)}",
                where,
                *(f"{name}  {figures}" for name, figures in worse.items()),
                action=_ACCEPT,
            )
        return bool(worse)

    def _refuse_lax(
        self,
        record: ResultRecord,
        precision: str,
        outcomes: Sequence[float],
        siblings: Mapping[str, ScoreEntry],
        measured: AccuracyResult,
        where: str,
    ) -> bool:
        """Refuse answers that a coarser precision of the same model gives better; False where none does."""
        if self.mode == "all" and self.accept_regression:
            return False
        higher = measured.higher_is_better
        lax = lax_siblings(precision, outcomes, siblings, higher_is_better=higher, outdone=self._outdone)
        if lax:
            self._refuse(
                record.nodeid,
                f"{precision} is finer than {', '.join(lax)} and answers worse: as a baseline it would be too lax",
                where,
                *(f"vs {other} {siblings[other].score:g}  {measured.score:g}  {why}" for other, why in lax.items()),
                action=f"Look at the checkpoint and the other score. {_REPLACE} --accept-regression",
            )
        return bool(lax)

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

    def _proven(
        self, better: Sequence[Change], old: PerformanceEntry, metrics: Mapping[str, MetricBaseline]
    ) -> list[Change]:
        """Return the gains that are more than a lucky run, and say which are not."""
        found = []
        for item in better:
            row = parse_metric(item.what).metric
            stored, measured = old.metrics[item.what].sessions, metrics[item.what].sessions
            why = self._doubt(stored, measured, row.higher_is_better)
            if why:
                self.skipped.append(f"{item.path}: {item.key}: {item.what} is not tightened: {why}")
            else:
                found.append(item)
        return found

    def _provenance(self, record: ResultRecord, kept: str = "") -> Provenance:
        """Return where values come from that are recorded now; `kept` is the reason of others that stay beside them."""
        reason = self.reason
        if kept and reason not in kept.split("; "):
            reason = f"{kept}; {reason}" if reason else kept
        elif kept:
            reason = kept
        return Provenance(
            kind="measured",
            reason=reason,
            recorded=self.now,
            author=self._origin.author,
            commit=record.result.context.get("git_commit", ""),
            results=self._origin.results,
        )


def _address(record: ResultRecord) -> tuple[str, ...]:
    """Return what decides where a record is filed; records that share it share a baseline."""
    result, case = record.result, record.result.case
    hardware = result.engine.hardware.slug if result.performance is not None and result.engine is not None else ""
    keys = [performance_key(case)] if result.performance is not None and case.workload is not None else []
    keys += (
        [f"{accuracy_key(case, result.accuracy.metric)} {case.engine.precision}"]
        if result.accuracy is not None and case.task
        else []
    )
    return (case.engine.served_model_name, hardware, " and ".join(keys))


def _same_questions(old: AccuracyEntry, measured: AccuracyResult) -> bool:
    same_direction = old.higher_is_better == measured.higher_is_better
    return same_direction and old.documents_digest in ("", measured.documents_digest)


def _direction(scored: AccuracyEntry | AccuracyResult) -> str:
    return "higher" if scored.higher_is_better else "lower"


def _impossible(measured: PerformanceResult, name: str) -> list[float]:
    """Return the first value of a metric that cannot be right: time and throughput are above 0 and finite."""
    values = (value for rounds in measured.rounds(name) for value in rounds)
    return [value for value in values if not (math.isfinite(value) and value > 0)][:1]


def _some(names: Sequence[str], *, of: int = 0) -> str:
    """Name the first few metrics, and count the others."""
    shown = names[:_NAMED]
    more = max(of, len(names)) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _bits(record: ResultRecord) -> tuple[int, ...]:
    """Sort coarser precisions first, so that a finer one meets the answers that it must not fall below."""
    bits = precision_bits(record.result.case.engine.precision) if record.result.accuracy is not None else None
    return (sum(bits), *bits) if bits is not None else (0,)


def _sessions(record: ResultRecord) -> int:
    return len(record.result.performance.sessions) if record.result.performance is not None else 0
