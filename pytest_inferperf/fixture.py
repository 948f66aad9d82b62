"""The object behind the `inferperf` fixture: measures and evaluates, and holds what was found until it is judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import BaselineError, InvalidRun, MarkError
from pytest_inferperf.model.case import Case, Workload
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.results import AccuracyResult, CaseResult, PerformanceResult, Session

if TYPE_CHECKING:
    from pytest_inferperf.engines.interface import Engine
    from pytest_inferperf.marks.cases import BoundCase
    from pytest_inferperf.settings import Settings

__all__ = ["RECORDED_SESSIONS", "Inferperf"]

RECORDED_SESSIONS = 10
"""Sessions of a baseline where the mark says nothing. Their number bounds what any later run can resolve."""


class Inferperf:
    """Measures or evaluates the case of one test. What it finds is judged after the test body."""

    def __init__(
        self,
        bound: BoundCase,
        engine: Engine,
        settings: Settings,
        *,
        benchmark: Any | None = None,
        progress: Callable[[str], None] | None = None,
        context: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.bound = bound
        self.engine = engine
        """The built engine, for a test's own asserts."""

        self._settings = settings
        self._benchmark = benchmark
        self._progress = progress
        self._context = context
        self._result = CaseResult(case=bound.case, engine=engine.info)

    @property
    def case(self) -> Case:
        """The resolved case."""
        return self.bound.case

    @property
    def result(self) -> CaseResult:
        """Everything found so far."""
        return self._result

    @property
    def measured(self) -> bool:
        """Whether anything was measured or evaluated."""
        return self._result.performance is not None or self._result.accuracy is not None

    def measure(self) -> PerformanceResult:
        """Run the workload in one session or more: each is one launch of the engine, with warm-up and measured rounds.

        Begins with the `sessions` of the mark. A run that is judged goes on while a gate is undecided and a look is
        left; a run that records goes on to 10 sessions, where the mark says nothing.

        Raises `MarkError` when the case has no workload or was measured before, `InvalidRun` when the figures
        cannot be trusted, `EngineError` when the engine fails, or cannot be launched again and `sessions` asks for it.
        """
        workload = self.case.workload
        if workload is None:
            raise MarkError("inferperf.measure(): the case has no workload; give the inferperf mark isl= and osl=.")
        if self._result.performance is not None:
            raise MarkError("inferperf.measure() was called twice; one test measures its workload once.")
        if workload.sessions > 1 and not self.engine.can_relaunch:
            self.engine.relaunch()  # says what it lacks, before anything is measured
        timer = _BenchmarkTimer(self._benchmark) if self._benchmark is not None else None
        sessions: list[Session] = []
        wanted = max(workload.sessions, 1)
        while len(sessions) < wanted:
            if sessions:
                self.engine.relaunch()
            self._check_validity()
            sessions.append(self._measure_session(workload, len(sessions) + 1, wanted, timer))
            performance = PerformanceResult(sessions=tuple(sessions))
            self._result = replace(self._result, performance=performance, context=dict(self._context()))
            wanted = self._sessions_wanted(workload, performance)
        if self._benchmark is not None:
            names = {name for session in sessions for item in session.rounds for name in item.metrics}
            self._benchmark.extra_info.update(
                {f"inferperf.{name}": performance.median(name) for name in sorted(names)},
                **{"inferperf.simulated": self.engine.info.simulated},
            )
        return performance

    def _measure_session(self, workload: Workload, number: int, wanted: int, timer: _BenchmarkTimer | None) -> Session:
        from pytest_inferperf.gates.looks import SESSIONS
        from pytest_inferperf.measure.session import measure_session

        report = self._progress
        progress = report
        if report is not None and wanted > 1:
            # A look before the last may decide, so a judged run names the most there can be.
            most = max(wanted, SESSIONS.cap)

            def progress(line: str) -> None:
                report(f"session {number} (up to {most}): {line}")

        return measure_session(self.engine, workload, timer=timer, progress=progress)

    def _sessions_wanted(self, workload: Workload, performance: PerformanceResult) -> int:
        """Return how many sessions there should be in all, by what was measured so far."""
        from pytest_inferperf.gates.judge import failed_requests
        from pytest_inferperf.judging import lacks_baseline, next_look

        measured = len(performance.sessions)
        if not self.engine.can_relaunch or failed_requests(performance):
            return measured
        settings, gates = self._settings, self.bound.gates
        try:
            if settings.update is not None and (
                settings.update != "new" or lacks_baseline(self._result, gates, root=settings.baselines)
            ):
                return workload.sessions or RECORDED_SESSIONS
            look = next_look(
                self._result, gates, root=settings.baselines, tolerance=settings.tolerance, alpha=settings.alpha
            )
        except BaselineError:
            # Said when the run is judged, which keeps what was measured.
            look = None
        return max(look or measured, workload.sessions)

    def evaluate(self) -> AccuracyResult:
        """Run the lm-eval task and keep the outcome of every document.

        Raises `MarkError` when the case has no task or was evaluated before, `TaskError` for a wrong task,
        `InvalidRun` when the answers cannot be trusted, `EngineError` when the engine fails.
        """
        from pytest_inferperf.evaluate.run import evaluate

        if self.case.task is None:
            raise MarkError("inferperf.evaluate(): the case has no task; give the inferperf mark task=.")
        if self._result.accuracy is not None:
            raise MarkError("inferperf.evaluate() was called twice; one test evaluates its task once.")
        self._check_validity()
        metrics = {gate.metric for gate in self.bound.gates if not isinstance(gate, PerformanceGate)}
        start = time.perf_counter()
        accuracy = evaluate(
            self.engine,
            self.case.task,
            metric=next(iter(metrics), None),
            search_paths=self._settings.task_paths,
            progress=self._progress,
        )
        accuracy = replace(accuracy, duration_s=time.perf_counter() - start)
        self._result = replace(self._result, accuracy=accuracy, context=dict(self._context()))
        return accuracy

    def _check_validity(self) -> None:
        from pytest_inferperf.measure.validity import check_engine

        reason = check_engine(self.case.engine, self.engine.info)
        if reason:
            raise InvalidRun(reason)


class _BenchmarkTimer:
    """Puts measured rounds into pytest-benchmark's table: `pedantic` for the first, `stats.update` for the rest."""

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark
        self._started = False

    def __call__(self, target: Callable[[], None]) -> None:
        """See `RoundTimer.__call__`."""
        if not self._started:
            self._started = True
            self._benchmark.pedantic(target, rounds=1, iterations=1)
            return
        start = time.perf_counter()
        target()
        duration_s = time.perf_counter() - start
        if self._benchmark.stats is not None:
            self._benchmark.stats.update(duration_s)
