"""The object behind the `inferperf` fixture: measures and evaluates, and holds what was found until it is judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import BaselineError, InvalidRun, MarkError
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.results import AccuracyResult, CaseResult, PerformanceResult, Session
from pytest_inferperf.model.verdicts import Status

if TYPE_CHECKING:
    from pytest_inferperf.engines.interface import Engine
    from pytest_inferperf.marks.cases import BoundCase
    from pytest_inferperf.settings import Settings

__all__ = ["Inferperf"]


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
        """Run the workload: warm-up rounds, then measured rounds, on the loaded engine.

        Raises `MarkError` when the case has no workload or was measured before, `InvalidRun` when the figures
        cannot be trusted, `EngineError` when the engine fails.
        """
        from pytest_inferperf.measure.session import measure_session

        if self.case.workload is None:
            raise MarkError("inferperf.measure(): the case has no workload; give the inferperf mark isl= and osl=.")
        if self._result.performance is not None:
            raise MarkError("inferperf.measure() was called twice; one test measures its workload once.")
        self._check_validity()
        timer = _BenchmarkTimer(self._benchmark) if self._benchmark is not None else None
        session = measure_session(self.engine, self.case.workload, timer=timer, progress=self._progress)
        performance = PerformanceResult(sessions=(session,))
        self._result = replace(self._result, performance=performance, context=dict(self._context()))
        if self._benchmark is not None:
            names = {name for item in session.rounds for name in item.metrics}
            self._benchmark.extra_info.update(
                {f"inferperf.{name}": performance.median(name) for name in sorted(names)},
                **{"inferperf.simulated": self.engine.info.simulated},
            )
        self._check_telemetry(session)
        return performance

    def evaluate(self) -> AccuracyResult:
        """Run the lm-eval task and keep the outcome of every document asked.

        The answers are judged after a quarter, half and three quarters of the documents, and the evaluation ends once
        every accuracy gate is decided. Where baselines are recorded, every document is asked. Raises `MarkError` when the case has no task or was evaluated before, `TaskError` for a wrong task,
        `InvalidRun` when the answers cannot be trusted, `EngineError` when the engine fails.
        """
        from pytest_inferperf.evaluate.interim import Asking
        from pytest_inferperf.evaluate.run import evaluate
        from pytest_inferperf.gates.asking import asking_looks, asking_order

        if self.case.task is None:
            raise MarkError("inferperf.evaluate(): the case has no task; give the inferperf mark task=.")
        if self._result.accuracy is not None:
            raise MarkError("inferperf.evaluate() was called twice; one test evaluates its task once.")
        self._check_validity()
        gates = [gate for gate in self.bound.gates if not isinstance(gate, PerformanceGate)]
        metrics = {gate.metric for gate in gates}
        records = self._settings.update is not None
        may_stop = bool(gates) and self.case.task.early_stop and not records
        start = time.perf_counter()
        accuracy = evaluate(
            self.engine,
            self.case.task,
            metric=next(iter(metrics), None),
            search_paths=self._settings.task_paths,
            progress=self._progress,
            asking=Asking(
                order=asking_order,
                looks=asking_looks,
                decided=self._decided if may_stop else None,
                repeat=records,
            ),
        )
        accuracy = replace(accuracy, duration_s=time.perf_counter() - start)
        self._result = replace(self._result, accuracy=accuracy, context=dict(self._context()))
        return accuracy

    def _decided(self, answers: AccuracyResult) -> bool:
        """Say whether every accuracy gate passes or fails by the answers so far.

        A gate that has no figure (no baseline, the wrong scale) decides nothing: its test needs all answers, to be
        recorded from.
        """
        from pytest_inferperf.judging import judge_case

        gates = [gate for gate in self.bound.gates if not isinstance(gate, PerformanceGate)]
        settings = self._settings
        try:
            verdicts = judge_case(
                replace(self._result, accuracy=answers),
                gates,
                root=settings.baselines,
                tolerance=settings.tolerance,
                alpha=settings.alpha,
            )
        except BaselineError:
            return False  # It is reported when the test is judged.
        return all(item.measured is not None and item.status in (Status.PASS, Status.FAIL) for item in verdicts)

    def _check_validity(self) -> None:
        from pytest_inferperf.measure.validity import check_engine

        reason = check_engine(self.case.engine, self.engine.info)
        if reason:
            raise InvalidRun(reason)

    def _check_telemetry(self, session: Session) -> None:
        """Refuse a session, already kept in the result, that the machine disturbed; also where the body goes on."""
        from pytest_inferperf.measure.validity import check_telemetry

        reason = check_telemetry(session.telemetry, self._settings.limits)
        if reason:
            self._result = replace(self._result, invalid=reason)
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
