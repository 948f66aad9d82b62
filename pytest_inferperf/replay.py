"""A run that is replayed: what was found then, judged by today's marks, settings and baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_inferperf.baselines.replay import Replay, edited
from pytest_inferperf.engines.replayed import ReplayedEngine
from pytest_inferperf.errors import MarkError, ResultFileError
from pytest_inferperf.fixture import Inferperf
from pytest_inferperf.model.results import AccuracyResult, Frontier, PerformanceResult

if TYPE_CHECKING:
    from pytest_inferperf.marks.cases import BoundCase
    from pytest_inferperf.settings import Settings

__all__ = ["ReplayedRun"]


class ReplayedRun(Inferperf):
    """Gives what was found then. It is judged after the test body, as if it had been found now."""

    def __init__(
        self, bound: BoundCase, engine: ReplayedEngine, settings: Settings, *, replay: Replay, nodeid: str
    ) -> None:
        super().__init__(bound, engine, settings, nodeid=nodeid)
        self._replay = replay
        self._stored = replay.result(bound.case, nodeid=nodeid)
        self.notes = tuple(edited(self._stored.case, bound.case))

    def measure(self) -> PerformanceResult | Frontier:
        """Return the sessions of the earlier run, of a sweep those of every point.

        Raises `MarkError` like `Inferperf.measure`, `ResultFileError` where nothing was measured, or not every point, and
        `InvalidRun` where the machine disturbed it, or its answers differ, more than the ini settings allow now.
        """
        workload, compared = self.case.workload, self._stored.comparisons
        if workload is None:
            raise MarkError("inferperf.measure(): the case has no workload; give the inferperf mark isl= and osl=.")
        measured = [point.performance for point in self._stored.points() if point.performance is not None]
        if not measured and not compared:
            raise self._lacks("its performance was not measured")
        points = [point.case.workload for point in self._stored.points()]
        if workload.swept and [item and item.identity() for item in points] != [
            item.identity() for item in workload.points()
        ]:
            raise self._lacks("other points of the sweep were measured")
        self._result = self._stored
        sessions = [session for performance in measured for session in performance.sessions]
        for telemetry in (
            *(session.telemetry for session in sessions),
            *(item for one in compared for item in one.telemetry),
        ):
            self._check_telemetry(telemetry)
        blocks = (block.candidate for one in compared for block in one.blocks)
        for rounds in (*(session.rounds for session in sessions), *blocks):
            self._check_agreement(rounds)
        return (
            self._stored.frontier
            or self._stored.performance
            or PerformanceResult(sessions=tuple(session for one in compared for session in one.candidate.sessions))
        )

    def evaluate(self) -> AccuracyResult:
        """Return the answers of the earlier run.

        Raises `MarkError` like `Inferperf.evaluate`, and `ResultFileError` where nothing was evaluated.
        """
        if self.case.task is None:
            raise MarkError("inferperf.evaluate(): the case has no task; give the inferperf mark task=.")
        if self._stored.accuracy is None:
            raise self._lacks("its task was not evaluated")
        self._result = self._stored
        return self._stored.accuracy

    def _lacks(self, what: str) -> ResultFileError:
        why = f" ({self._stored.invalid})" if self._stored.invalid else ""
        return ResultFileError(f"--inferperf-replay: {self._replay.label} has a result of this case, but {what}{why}.")
