"""Past runs: how long an engine took to load, and a case to measure. Read from result files, newest first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pytest_inferperf.baselines.result_file import ResultFile, read_result_file
from pytest_inferperf.errors import ResultFileError
from pytest_inferperf.model.case import Case, EngineSpec, ReferenceEngine
from pytest_inferperf.model.results import CaseResult, Comparison, Hardware

__all__ = ["Past", "Took", "read_past", "took"]


@dataclass(frozen=True, kw_only=True)
class Took:
    """How long one test took: once what a load of its engine takes, and all the rest."""

    load_s: float
    work_s: float

    @property
    def total_s(self) -> float:
        """All of it: what the test takes alone."""
        return self.load_s + self.work_s


def took(result: CaseResult) -> Took:
    """Return how long a case took: loads, rounds and warm-up rounds, or its evaluation; and those of its references."""
    load_s = result.engine.load_s if result.engine is not None else 0.0
    work_s = result.accuracy.duration_s if result.accuracy is not None else 0.0
    launches = 0
    for point in result.points():
        sessions = point.performance.sessions if point.performance is not None else ()
        # Every session, but the first, is a launch of its own, in which each point is measured.
        launches = max(launches, len(sessions))
        work_s += sum(
            sum(item.duration_s for item in session.rounds) * (1 + session.warmup_rounds / len(session.rounds))
            for session in sessions
            if session.rounds
        )
    for found in result.comparisons:
        work_s += found.engine.load_s + (found.accuracy.duration_s if found.accuracy is not None else 0.0)
        work_s += sum(one.duration_s for block in found.blocks for one in (*block.reference, *block.candidate))
    return Took(load_s=load_s, work_s=work_s + max(0, launches - 1) * load_s)


def read_past(path: Path) -> Past:
    """Read a result file, or every `*.json` below a folder.

    Raises `ResultFileError` naming the file for one that cannot be read, and for a folder without any.
    """
    paths = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not paths:
        raise ResultFileError(
            f"{path}: no *.json in this folder. A run writes a result file with --inferperf-json=FILE."
        )
    return Past(read_result_file(item) for item in paths)


class Past:
    """The results of past runs. An empty one knows nothing."""

    def __init__(self, files: Iterable[ResultFile] = ()) -> None:
        newest_first = sorted(files, key=lambda file: file.created, reverse=True)
        records = [record for file in newest_first for record in reversed(file.records)]
        found = [record.result for record in records]
        # Of a test that was cut short nobody knows how long it would have taken.
        valid = [(record.nodeid, took(record.result)) for record in records if not record.result.invalid]
        self.took = {nodeid: one for nodeid, one in reversed(valid) if one.work_s > 0}
        """How long each test took the last time, by its name."""

        # A point of a sweep is a case too, and so is the sweep.
        self._results = [one for item in found for one in (item, *(item.points() if item.frontier else ()))]

    def __bool__(self) -> bool:
        return bool(self._results)

    def hardware(self, case: Case) -> Hardware | None:
        """Return where the case was last measured; None when it never was."""
        return next((item.engine.hardware for item in self._of(case, None) if item.engine is not None), None)

    def metric(self, case: Case) -> str | None:
        """Return the lm-eval metric that scored the case's task last; None when it was never evaluated."""
        return next((item.accuracy.metric for item in self._of(case, None) if item.accuracy is not None), None)

    def load_s(self, spec: EngineSpec, here: Hardware | None) -> float | None:
        """Return the seconds the engine took to load, on the hardware `here` if it ever was, else anywhere."""
        for item in _preferred(self._results, here):
            if item.engine is not None and _engine(item.case.engine) == _engine(spec):
                return item.engine.load_s
            for one in item.comparisons:
                if _engine(one.reference.spec) == _engine(spec):
                    return one.engine.load_s
        return None

    def round_s(self, case: Case, here: Hardware | None) -> float | None:
        """Return the mean seconds of a round of the case's workload, measured alone or in blocks."""
        for item in self._of(case, here):
            measured = (
                [one for session in item.performance.sessions for one in session.rounds] if item.performance else []
            )
            rounds = measured or [
                one for found in item.comparisons for block in found.blocks for one in block.candidate
            ]
            if rounds:
                return fmean(one.duration_s for one in rounds)
        return None

    def evaluation_s(self, case: Case, here: Hardware | None) -> float | None:
        """Return the seconds that all questions of the case's task take, also where a past run stopped early."""
        for item in self._of(case, here):
            found = item.accuracy
            if found is not None and found.outcomes:
                asked = len(found.outcomes) + (found.repeat.questions if found.repeat is not None else 0)
                return found.duration_s * found.planned / asked
        return None

    def compared(
        self, case: Case, reference: ReferenceEngine, here: Hardware | None
    ) -> tuple[CaseResult, Comparison] | None:
        """Return the last valid result in which the case was compared with a reference engine; None without one."""
        for item in self._of(case, here):
            for one in item.comparisons:
                if not item.invalid and not one.num_failed_requests and _same(one.reference, reference):
                    return item, one
        return None

    def _of(self, case: Case, here: Hardware | None) -> Iterator[CaseResult]:
        identity, engine = case.identity(), _engine(case.engine)
        same = (
            item for item in self._results if item.case.identity() == identity and _engine(item.case.engine) == engine
        )
        return _preferred(same, here)


def _engine(spec: EngineSpec) -> tuple[object, ...]:
    """What makes two engines load and run alike; where their weights lie does not."""
    return spec.served_model_name, spec.precision, spec.tp, spec.pp, spec.ep, spec.server


def _same(one: ReferenceEngine, other: ReferenceEngine) -> bool:
    """Whether two references run alike: the candidate's own options are no part of a case, those of a reference are."""
    return (_engine(one.spec), one.spec.engine_options, one.python) == (
        _engine(other.spec),
        other.spec.engine_options,
        other.python,
    )


def _preferred(results: Iterable[CaseResult], here: Hardware | None) -> Iterator[CaseResult]:
    """Order by hardware, `here` first; stable in all else."""
    return iter(sorted(results, key=lambda item: here is None or item.engine is None or item.engine.hardware != here))
