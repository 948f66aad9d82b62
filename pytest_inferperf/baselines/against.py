"""Another run in the place of the baseline files: entries made in memory, judged by the same rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_inferperf.baselines.changes import why_unusable
from pytest_inferperf.baselines.entries import (
    AccuracyEntry,
    MetricBaseline,
    Missing,
    PerformanceEntry,
    Provenance,
    ScoreEntry,
    accuracy_key,
    performance_key,
    source_of,
)
from pytest_inferperf.baselines.outcomes import as_stored
from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, record_points
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.results import AccuracyResult, Hardware

__all__ = ["RunReference", "answers_entry"]


@dataclass(frozen=True, kw_only=True)
class RunReference:
    """A result file whose cases stand in for the baselines."""

    label: str
    """The path of the file as it was given."""

    file: ResultFile

    def performance(self, case: Case, hardware: Hardware, *, nodeid: str = "") -> PerformanceEntry | Missing:
        """Make an entry of what the run measured for a case on the same hardware; of two tests of the case, `nodeid`'s."""
        key = performance_key(case)
        record, reason = self._record(case, nodeid, hardware)
        if record is None:
            return self._missing(key, reason)
        measured = record.result.performance
        if measured is None or not measured.sessions:
            return self._missing(key, "its performance was not measured")
        names = {name for session in measured.sessions for item in session.rounds for name in item.metrics}
        return PerformanceEntry(
            path=source_of(self.label),
            key=key,
            metrics={
                name: MetricBaseline(sessions=tuple(tuple(rounds) for rounds in measured.rounds(name) if rounds))
                for name in names
            },
            warmup_rounds=max(session.warmup_rounds for session in measured.sessions),
            provenance=self._provenance,
            context=record.result.context,
        )

    def accuracy(self, case: Case, metric: str, *, nodeid: str = "") -> AccuracyEntry | Missing:
        """Make an entry of the answers of a case; the one score in it is called by the label."""
        key = accuracy_key(case, metric)
        record, reason = self._record(case, nodeid, None)
        if record is None:
            return self._missing(key, reason)
        answers = record.result.accuracy
        if answers is None:
            return self._missing(key, "its task was not evaluated")
        if answers.metric != metric:
            return self._missing(key, f"its outcomes are of {answers.metric}")
        return answers_entry(self.label, case, answers, record.result.context, recorded=self.file.created)

    @property
    def _provenance(self) -> Provenance:
        return Provenance(kind="measured", recorded=self.file.created)

    def _missing(self, key: str, reason: str) -> Missing:
        return Missing(path=source_of(self.label), key=key, reason=reason)

    def _record(self, case: Case, nodeid: str, hardware: Hardware | None) -> tuple[ResultRecord | None, str]:
        """Find the record of a case, or say why there is none."""
        same = [
            item
            for whole in self.file.records
            for item in record_points(whole)
            if item.result.case.identity() == case.identity()
        ]
        if not same:
            return None, "no result of this case"
        if hardware is not None:
            engines = [item.result.engine for item in same]
            here = [item for item in same if item.result.engine and item.result.engine.hardware == hardware]
            if not here:
                found = sorted({info.hardware.words for info in engines if info is not None})
                where = ", ".join(found) or "unknown hardware"
                return None, f"its result of this case is from {where}, not {hardware.words}"
            same = here
        record = next((item for item in same if item.nodeid == nodeid), same[0])
        unusable = why_unusable(record)
        return (None, f"its result of this case is no reference: {unusable}") if unusable else (record, "")


def answers_entry(
    label: str, case: Case, answers: AccuracyResult, context: Mapping[str, str], *, recorded: str = ""
) -> AccuracyEntry:
    """Make an entry that holds the answers of one reference, called `label`."""
    try:
        # As they would be read from a file: the candidate's are rounded likewise before the two are paired.
        outcomes = as_stored(answers.outcomes)
    except BaselineError:
        outcomes = answers.outcomes
    return AccuracyEntry(
        path=source_of(label),
        key=accuracy_key(case, answers.metric),
        metric=answers.metric,
        higher_is_better=answers.higher_is_better,
        documents_digest=answers.documents_digest,
        num_documents=len(outcomes),
        scores={
            label: ScoreEntry(
                score=answers.score,
                outcomes=outcomes,
                unparseable=answers.unparseable,
                task_sizes=answers.task_sizes,
                provenance=Provenance(kind="measured", recorded=recorded),
                context=context,
                repeat=answers.repeat,
                logprobs=answers.logprobs,
            )
        },
    )
