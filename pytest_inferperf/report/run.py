"""A run as every face of a report shows it: made from results once, without secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_inferperf.model.verdicts import GateVerdict, Status, worst
from pytest_inferperf.report.lines import plural

if TYPE_CHECKING:
    from pytest_inferperf.baselines.result_file import ResultRecord

__all__ = ["CaseReport", "RunReport", "run_report"]


@dataclass(frozen=True, kw_only=True)
class CaseReport:
    """One test: its verdicts, and what it measured."""

    nodeid: str
    status: Status | None
    """None for a test without gates."""

    invalid: str
    simulated: bool
    verdicts: tuple[GateVerdict, ...]
    metrics: Mapping[str, float]
    """Medians of what was measured, and scores."""


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """One run."""

    created: str
    environment: Mapping[str, str]
    cases: tuple[CaseReport, ...]

    @property
    def status(self) -> Status | None:
        """The worst verdict of the run; INVALID for a test that was not judged because of it; None without gates."""
        found = [item for case in self.cases for item in case.verdicts]
        if any(case.invalid for case in self.cases):
            return Status.INVALID
        return worst(found) if found else None

    @property
    def verdict(self) -> str:
        """One line: the verdict, and the counts that it rests on."""
        found = [item for case in self.cases for item in case.verdicts]
        if self.status is None:
            return f"NOT JUDGED: no gates in {plural(len(self.cases), 'test')}"
        counts = ", ".join(
            f"{count} {status.value}" for status in Status if (count := sum(item.status is status for item in found))
        )
        return f"{self.status.value}: {plural(len(found), 'gate')} in {plural(len(self.cases), 'test')}" + (
            f" ({counts})" if counts else ""
        )

    @property
    def worst_first(self) -> tuple[CaseReport, ...]:
        """The cases, those that did not pass before the others."""
        return tuple(sorted(self.cases, key=lambda case: case.status is Status.PASS and not case.invalid))


def run_report(
    records: Iterable[ResultRecord], *, created: str, environment: Mapping[str, str], hide: Callable[[str], str]
) -> RunReport:
    """Make a report of results; `hide` takes the secrets out of every text."""
    return RunReport(
        created=hide(created),
        environment={hide(key): hide(value) for key, value in environment.items()},
        cases=tuple(_case(record, hide) for record in records),
    )


def _case(record: ResultRecord, hide: Callable[[str], str]) -> CaseReport:
    result = record.result
    metrics: dict[str, float] = {}
    if result.performance is not None:
        names = {name for session in result.performance.sessions for item in session.rounds for name in item.metrics}
        metrics = {name: result.performance[name] for name in sorted(names)}
    if result.accuracy is not None:
        metrics[f"{result.accuracy.task}/{result.accuracy.metric}"] = result.accuracy.score
    return CaseReport(
        nodeid=hide(record.nodeid),
        # Gates that passed say nothing of a run that cannot be trusted, or of a test that failed beside them.
        status=Status.INVALID if result.invalid and record.status in (None, Status.PASS) else record.status,
        invalid=hide(result.invalid),
        simulated=result.engine is not None and result.engine.simulated and result.performance is not None,
        verdicts=tuple(
            replace(
                item,
                gate=hide(item.gate),
                source=hide(item.source),
                reason=hide(item.reason),
                next_step=hide(item.next_step),
                notes=tuple(map(hide, item.notes)),
                details={key: hide(value) if isinstance(value, str) else value for key, value in item.details.items()},
            )
            for item in record.verdicts
        ),
        metrics={hide(name): value for name, value in metrics.items()},
    )
