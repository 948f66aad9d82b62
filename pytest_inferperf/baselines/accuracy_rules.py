"""The rules for answers: what a record changes in the scores of a model, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_inferperf.baselines.changes import Change, accuracy_change
from pytest_inferperf.baselines.entries import AccuracyEntry, ScoreEntry, accuracy_key
from pytest_inferperf.baselines.format import AccuracyFile, dump_accuracy
from pytest_inferperf.baselines.ledger import ACCEPT, REPEAT, REPLACE, Ledger
from pytest_inferperf.baselines.losses import lax_siblings, new_anchor, worse_answers
from pytest_inferperf.baselines.outcomes import as_stored
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.baselines.store import accuracy_identity, accuracy_path, load_accuracy, read_bytes, shown_path
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.results import AccuracyResult

__all__ = ["AccuracyRules"]


class AccuracyRules:
    """Holds the accuracy files as they would be after the records added so far."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._before: dict[Path, bytes | None] = {}
        self._files: dict[Path, AccuracyFile] = {}
        self._answered: set[tuple[Path, str, str, str]] = set()
        """Scores that the records bring: file, key, precision, digest of the documents."""

        self._replaced: dict[Path, dict[str, AccuracyEntry]] = {}
        """Entries of other questions, as they were before the records replaced them."""

    def files(self) -> dict[Path, tuple[bytes | None, str]]:
        """Return what each file held and what it would hold."""
        self._restore()
        return {path: (self._before[path], dump_accuracy(file)) for path, file in self._files.items()}

    def expect(self, case: Case, answers: AccuracyResult) -> None:
        """Say which score will come, so that others know whether it is lost with its questions."""
        path = accuracy_path(self._ledger.root, case)
        self._answered.add((path, accuracy_key(case, answers.metric), case.engine.precision, answers.documents_digest))

    def add(self, record: ResultRecord, measured: AccuracyResult) -> None:
        """Take the answers of one record into their file. Raises `BaselineError` for a file that cannot be read."""
        case = record.result.case
        precision, key = case.engine.precision, accuracy_key(case, measured.metric)
        path = accuracy_path(self._ledger.root, case)
        shown = shown_path(self._ledger.root, path)
        if path not in self._before:
            before = read_bytes(path, shown)
            self._files[path] = load_accuracy(self._ledger.root, case) or AccuracyFile(
                model=case.engine.served_model_name, tasks={}
            )
            self._before[path] = before
        file = self._files[path]
        present = file.tasks.get(key)
        # Not with what a record before this one put in its place: a score of other questions is compared, too.
        old = self._replaced.get(path, {}).get(key, present)
        stored = old.scores.get(precision) if old is not None else None
        where = f"{shown}: {key} {precision}"
        try:
            outcomes = as_stored(measured.outcomes)
        except BaselineError as problem:
            self._ledger.refuse(
                record.nodeid, str(problem), where, action="Correct the metric of the task, then repeat the run"
            )
            return
        if not math.isfinite(measured.score):
            self._ledger.refuse(record.nodeid, f"the score is {measured.score:g}", where, action=REPEAT)
            return
        same_questions = old is not None and _same_questions(old, measured)
        answers = (measured.score, outcomes, measured.unparseable)
        if stored is not None and same_questions and (stored.score, stored.outcomes, stored.unparseable) == answers:
            lacks_repeat = stored.repeat is None and measured.repeat is not None
            lacks_logprobs = stored.logprobs is None and measured.logprobs is not None
            other_sizes = stored.task_sizes != measured.task_sizes
            if not (lacks_repeat or lacks_logprobs or other_sizes):
                return
        moved = accuracy_change(shown, key, precision, stored, measured)
        if (old is None or same_questions) and not self._ledger.wanted([moved]):
            if (
                self._ledger.mode == "tighten"
                and moved.unparseable is not None
                and moved.unparseable[0] < moved.unparseable[1]
            ):
                before_share, share = moved.unparseable
                self._ledger.skipped.append(
                    f"{where}: not tightened: {before_share:.2f} % -> {share:.2f} % of answers unparseable"
                )
            return
        kept = present.scores if present is not None and _same_questions(present, measured) else {}
        if self._refuses_change(record, path, old, moved, measured, where):
            return
        if self._refuses_lax(record, precision, outcomes, kept, measured, where):
            return
        worse = {}
        # Scores of other questions are compared too, as they are: what gates a score must not fall unseen with them.
        comparable = stored if old is not None and _same_direction(old, measured) else None
        if moved.old is not None and comparable is not None:
            worse = worse_answers(record, moved, moved.old, measured, comparable.anchor)
        score = ScoreEntry(
            score=measured.score,
            outcomes=outcomes,
            unparseable=measured.unparseable,
            task_sizes=measured.task_sizes,
            provenance=self._ledger.provenance(record),
            context=dict(record.result.context),
            repeat=measured.repeat,
            logprobs=measured.logprobs,
            anchor=new_anchor(
                comparable,
                None if comparable is None else comparable.provenance,
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
        if old is not None and not same_questions and not self._ledger.accept_regression:
            self._replaced.setdefault(path, {}).setdefault(key, old)
        self._files[path] = replace(file, tasks={**file.tasks, key: entry})
        self._ledger.changes.append(moved)

    def _refuses_change(
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
            if self._ledger.mode != "all":
                self._ledger.refuse(
                    record.nodeid, f"{what}; the reference must be recorded again", where, action=REPLACE
                )
                return True
            lost = [
                item
                for item in sorted(old.scores)
                if (path, old.key, item, measured.documents_digest) not in self._answered
            ]
            if lost and not self._ledger.accept_regression:
                headline = f"{what}, so these scores would be lost: {', '.join(lost)}"
                self._ledger.refuse(record.nodeid, headline, where, action=ACCEPT)
                return True
            if stored is not None and not _same_direction(old, measured) and not self._ledger.accept_regression:
                headline = f"{what}, so nobody can say whether its score is a regression"
                self._ledger.refuse(record.nodeid, headline, where, action=ACCEPT)
                return True
        elif stored is not None and stored.provenance.kind == "published" and self._ledger.mode != "all":
            self._ledger.refuse(
                record.nodeid, f"the baseline is published ({stored.provenance.source})", where, action=REPLACE
            )
            return True
        if self._ledger.mode != "all" or self._ledger.accept_regression or moved.old is None:
            return False
        worse = worse_answers(record, moved, moved.old, measured, stored.anchor if stored is not None else None)
        if worse:
            others = "" if _same_questions(old, measured) else ", on other questions"
            self._ledger.refuse(
                record.nodeid,
                f"worse beyond what is allowed{others}: {', '.join(worse)}",
                where,
                *(f"{name}  {figures}" for name, figures in worse.items()),
                action=ACCEPT,
            )
        return bool(worse)

    def _refuses_lax(
        self,
        record: ResultRecord,
        precision: str,
        outcomes: Sequence[float],
        siblings: Mapping[str, ScoreEntry],
        measured: AccuracyResult,
        where: str,
    ) -> bool:
        """Refuse answers that a coarser precision of the same model gives better; False where none does."""
        if self._ledger.mode == "all" and self._ledger.accept_regression:
            return False
        higher = measured.higher_is_better
        lax = lax_siblings(precision, outcomes, siblings, higher_is_better=higher, outdone=self._ledger.outdone)
        if lax:
            self._ledger.refuse(
                record.nodeid,
                f"{precision} is finer than {', '.join(lax)} and answers worse: as a baseline it would be too lax",
                where,
                *(f"vs {other} {siblings[other].score:g}  {measured.score:g}  {why}" for other, why in lax.items()),
                action=f"Look at the checkpoint and the other score. {REPLACE} --accept-regression",
            )
        return bool(lax)

    def _restore(self) -> None:
        """Put entries back whose scores were to be replaced by answers to other questions, not all of which were taken."""
        for path, entries in self._replaced.items():
            file = self._files[path]
            for key, old in entries.items():
                lost = sorted(old.scores.keys() - file.tasks[key].scores.keys())
                if not lost:
                    continue
                file = replace(file, tasks={**file.tasks, key: old})
                self._ledger.changes = [
                    item for item in self._ledger.changes if (item.path, item.key) != (old.path, key)
                ]
                headline = f"the questions changed, so these scores would be lost: {', '.join(lost)}"
                self._ledger.refuse(old.path, headline, key, action=ACCEPT)
            self._files[path] = file


def _same_questions(old: AccuracyEntry, measured: AccuracyResult) -> bool:
    return _same_direction(old, measured) and old.documents_digest in ("", measured.documents_digest)


def _same_direction(old: AccuracyEntry, measured: AccuracyResult) -> bool:
    return old.higher_is_better == measured.higher_is_better


def _direction(scored: AccuracyEntry | AccuracyResult) -> str:
    return "higher" if scored.higher_is_better else "lower"
