"""The object behind the `inferperf` fixture: measures and evaluates, and holds what was found until it is judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import BaselineError, InvalidRun, MarkError, NodeLost
from pytest_inferperf.measure.interruption import ComparisonInterrupted, rounds_so_far
from pytest_inferperf.measure.occasions import Occasions
from pytest_inferperf.measure.progress import SILENT, Progress
from pytest_inferperf.model.case import Case, ReferenceEngine, Task, Workload
from pytest_inferperf.model.gates import (
    AccuracyFloor,
    AccuracyLossCeiling,
    ErrorRateCeiling,
    PerformanceGate,
    SpeedupFloor,
    rules_of,
)
from pytest_inferperf.model.results import (
    AccuracyResult,
    CaseResult,
    Comparison,
    Frontier,
    PerformanceResult,
    Point,
    Round,
    Session,
)
from pytest_inferperf.model.verdicts import Status

if TYPE_CHECKING:
    from pytest_inferperf.engines.interface import Engine
    from pytest_inferperf.marks.cases import BoundCase
    from pytest_inferperf.measure.witness import Honesty
    from pytest_inferperf.settings import Settings

__all__ = ["RECORDED_SESSIONS", "Inferperf"]

RECORDED_SESSIONS = 10
"""Sessions of a baseline where the mark says nothing. Their number bounds what any later run can resolve."""

_INTERRUPTED = "the run was interrupted"


class Inferperf:
    """Measures or evaluates the case of one test. What it finds is judged after the test body."""

    def __init__(
        self,
        bound: BoundCase,
        engine: Engine,
        settings: Settings,
        *,
        benchmark: Any | None = None,
        progress: Progress | None = None,
        context: Callable[[], Mapping[str, str]] = dict,
        open_reference: Callable[[ReferenceEngine], Engine] | None = None,
        answers: dict[Any, Comparison] | None = None,
        occasions: dict[str, int] | None = None,
        nodeid: str = "",
    ) -> None:
        self.bound = bound
        self.engine = engine
        """The built engine, for a test's own asserts."""

        self._settings = settings
        self._benchmark = benchmark
        self._progress = progress or SILENT
        self._context = context
        self._open_reference = open_reference or _no_reference
        self._answers = {} if answers is None else answers
        self._occasions = Occasions(occasions)
        self._occasion = 0
        self._nodeid = nodeid
        self._result = CaseResult(case=bound.case, engine=engine.info)
        self._notes: dict[str, None] = {}

    notes: tuple[str, ...] = ()
    """What every verdict on it should say beside itself."""

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
        found = self._result
        return any((found.performance, found.frontier, found.accuracy, found.comparisons))

    def measure(self) -> PerformanceResult | Frontier:
        """Run the workload in one session or more: each is one launch of the engine, with warm-up and measured rounds.

        Begins with the `sessions` of the mark. A run that is judged goes on while a gate is undecided and a look is
        left; a run that records goes on to 10 sessions, where the mark says nothing.

        A sweep is measured point after point in every session, and returned as a `Frontier` with a result for each point.

        Speedup gates are measured in blocks of rounds interleaved with their reference engines; with no other gate,
        those rounds are all that is measured.

        Raises `MarkError` when the case has no workload or was measured before, `InvalidRun` when the figures
        cannot be trusted, `EngineError` when the engine fails, or cannot be launched again and `sessions` asks for it.
        """
        workload = self.case.workload
        if workload is None:
            raise MarkError("inferperf.measure(): the case has no workload; give the inferperf mark isl= and osl=.")
        if self._result.performance is not None or self._result.frontier is not None or self._result.comparisons:
            raise MarkError("inferperf.measure() was called twice; one test measures its workload once.")
        self._occasion = self._occasions.take(self.case)
        try:
            return self._measure_sweep(workload) if workload.swept else self._measure(workload)
        except Exception as error:
            if self.measured and not self._result.invalid:
                # A part of what was asked for carries no verdict, also where the body goes on.
                self._result = replace(self._result, invalid=f"the measurement failed: {error}")
            raise
        except KeyboardInterrupt:
            # What was measured is kept, and no verdict and no baseline comes of it.
            if self.measured and not self._result.invalid:
                self._result = replace(self._result, invalid=_INTERRUPTED)
            raise

    def _measure(self, workload: Workload) -> PerformanceResult:
        speedups = [gate for gate in self.bound.gates if isinstance(gate, SpeedupFloor)]
        if not speedups or any(isinstance(gate, PerformanceGate | ErrorRateCeiling) for gate in self.bound.gates):
            performance = self._measure_sessions(workload)
            self._compare(workload, speedups)
            return performance
        self._check_validity()
        self._compare(workload, speedups)
        found = self._result.comparisons
        return PerformanceResult(sessions=tuple(item for one in found for item in one.candidate.sessions))

    def _measure_sessions(self, workload: Workload) -> PerformanceResult:
        if workload.sessions > 1 and not self.engine.can_relaunch:
            self.engine.relaunch()  # says what it lacks, before anything is measured
        timer = _BenchmarkTimer(self._benchmark) if self._benchmark is not None else None
        sessions: list[Session] = []
        wanted = max(workload.sessions, 1)
        while len(sessions) < wanted:
            if sessions:
                self.engine.relaunch()
            self._check_validity()
            try:
                sessions.append(self._measure_session(workload, len(sessions) + 1, wanted, timer))
            except KeyboardInterrupt as error:
                if rounds := rounds_so_far(error):
                    self._keep_sessions([*sessions, Session(rounds=rounds, warmup_rounds=workload.warmup_rounds)])
                raise
            performance = self._keep_sessions(sessions)
            self._check_telemetry(sessions[-1].telemetry)
            self._check_agreement(sessions[-1].rounds)
            wanted = self._sessions_wanted(workload, performance)
        if self._benchmark is not None:
            names = {name for session in sessions for item in session.rounds for name in item.metrics}
            self._benchmark.extra_info.update(
                {f"inferperf.{name}": performance.median(name) for name in sorted(names)},
                **{"inferperf.simulated": self.engine.info.simulated},
            )
        return performance

    def _keep_sessions(self, sessions: Sequence[Session]) -> PerformanceResult:
        performance = PerformanceResult(sessions=tuple(sessions))
        self._result = self._with(performance=performance)
        return performance

    def _with(self, **found: Any) -> CaseResult:
        """Return the result with what was found, and with what no result has said of the machines yet."""
        self._notes |= dict.fromkeys(self.engine.take_notes())
        return replace(self._result, context=dict(self._context()), notes=tuple(self._notes), **found)

    def _measure_sweep(self, workload: Workload) -> Frontier:
        if workload.sessions > 1 and not self.engine.can_relaunch:
            self.engine.relaunch()  # says what it lacks, before anything is measured
        found: list[tuple[Workload, list[Session]]] = [(point, []) for point in workload.points()]
        count, wanted = 0, max(workload.sessions, 1)
        while count < wanted:
            if count:
                self.engine.relaunch()
            self._check_validity()
            count += 1
            for point, sessions in found:
                try:
                    sessions.append(self._measure_session(point, count, wanted, None))
                except KeyboardInterrupt as error:
                    if rounds := rounds_so_far(error):
                        sessions.append(Session(rounds=rounds, warmup_rounds=point.warmup_rounds))
                        self._keep_points(found)
                    raise
                # What ends the run at a later point leaves this one in the result.
                frontier = self._keep_points(found)
                self._check_telemetry(sessions[-1].telemetry)
                self._check_agreement(sessions[-1].rounds)
            # A point that needs a further launch has all of them measured again.
            wanted = max(self._sessions_wanted(workload, point.performance) for point in frontier.points)
        return frontier

    def _keep_points(self, found: Sequence[tuple[Workload, Sequence[Session]]]) -> Frontier:
        frontier = Frontier(
            points=tuple(
                Point(workload=point, performance=PerformanceResult(sessions=tuple(sessions)))
                for point, sessions in found
                if sessions
            )
        )
        self._result = self._with(frontier=frontier)
        return frontier

    def _measure_session(self, workload: Workload, number: int, wanted: int, timer: _BenchmarkTimer | None) -> Session:
        from pytest_inferperf.gates.looks import SESSIONS
        from pytest_inferperf.measure.session import measure_session

        progress = self._progress
        if wanted > 1:
            # A look before the last may decide, so a judged run names the most there can be.
            progress = progress.within(f"session {number} (up to {max(wanted, SESSIONS.cap)})")
        measure = partial(
            measure_session,
            self.engine,
            workload,
            rules=rules_of(self.bound.gates),
            timer=timer,
            progress=progress,
            gpu_hour_price=self._settings.gpu_hour_price,
            honesty=self._honesty,
            occasion=self._occasion,
        )
        try:
            return measure()
        except NodeLost:
            # The sessions so far are kept; this one begins again, on another node of the same kind.
            self.engine.relaunch()
            return measure()

    @property
    def _honesty(self) -> Honesty:
        from pytest_inferperf.measure.witness import Honesty

        limit = self._settings.limits["inferperf_max_count_error"]
        return Honesty(max_count_error=limit, audit=self._settings.audit)

    def _sessions_wanted(self, workload: Workload, performance: PerformanceResult) -> int:
        """Return how many sessions there should be in all, by what was measured so far."""
        from pytest_inferperf.gates.judge import failed_requests
        from pytest_inferperf.judging import lacks_baseline, next_look

        measured = len(performance.sessions)
        if not self.engine.can_relaunch or failed_requests(self.bound.gates, performance):
            return measured
        settings, gates = self._settings, self.bound.gates
        planned = workload.sessions
        try:
            if settings.update is not None and (
                settings.update != "new" or lacks_baseline(self._result, gates, root=settings.baselines)
            ):
                planned = workload.sessions or RECORDED_SESSIONS
            # A run that records is judged too, by the baselines it found.
            look = next_look(
                self._result,
                gates,
                root=settings.baselines,
                tolerance=settings.tolerance,
                alpha=settings.alpha,
                against=settings.against_run,
                nodeid=self._nodeid,
            )
        except BaselineError:
            # Said when the run is judged, which keeps what was measured.
            look = None
        return max(look or measured, planned)

    def _compare(self, workload: Workload, gates: Sequence[SpeedupFloor]) -> None:
        """Measure blocks against each reference engine while a gate on it is open. Raises like `measure`."""
        from pytest_inferperf.gates.speedup import judge_speedup
        from pytest_inferperf.measure.blocks import measure_blocks

        rounds_seen = workload.rounds if self._result.performance is not None else 0
        for reference in dict.fromkeys(gate.reference for gate in gates):
            own = [gate for gate in gates if gate.reference == reference]

            def next_look(found: Comparison, own: Sequence[SpeedupFloor] = own) -> int | None:
                tolerance, alpha = self._settings.tolerance, self._settings.alpha
                verdicts = [
                    judge_speedup(gate, found, self._result, default_tolerance=tolerance, alpha=alpha) for gate in own
                ]
                return min((item.next_look for item in verdicts if item.next_look is not None), default=None)

            try:
                found = measure_blocks(
                    self.engine,
                    reference,
                    workload,
                    open_reference=self._open_reference,
                    next_look=next_look,
                    rules=rules_of(self.bound.gates),
                    progress=self._progress,
                    gpu_hour_price=self._settings.gpu_hour_price,
                    honesty=self._honesty,
                    rounds_seen=rounds_seen,
                    occasion=self._occasion,
                )
            except ComparisonInterrupted as error:
                self._keep(error.found)
                raise
            self._keep(found)
            rounds_seen += 2 * len(found.blocks)
            for telemetry in found.telemetry:
                self._check_telemetry(telemetry)
            for block in found.blocks:
                self._check_agreement(block.candidate)

    def _keep(self, found: Comparison) -> None:
        # The candidate may have been launched anew.
        self._result = self._with(engine=self.engine.info, comparisons=(*self._result.comparisons, found))

    def evaluate(self) -> AccuracyResult:
        """Run the lm-eval task and keep the outcome of every document asked.

        The answers are judged after a quarter, half and three quarters of the documents, and the evaluation ends once
        every accuracy gate is decided. Where baselines are recorded, every document is asked.

        Raises `MarkError` when the case has no task or was evaluated before, `TaskError` for a wrong task, `InvalidRun`
        when the answers cannot be trusted, `EngineError` when the engine fails.
        """
        from pytest_inferperf.evaluate.interim import Asking
        from pytest_inferperf.evaluate.run import evaluate
        from pytest_inferperf.gates.asking import asking_looks, asking_order

        if self.case.task is None:
            raise MarkError("inferperf.evaluate(): the case has no task; give the inferperf mark task=.")
        if self._result.accuracy is not None:
            raise MarkError("inferperf.evaluate() was called twice; one test evaluates its task once.")
        self._check_validity()
        gates = [gate for gate in self.bound.gates if isinstance(gate, AccuracyLossCeiling | AccuracyFloor)]
        metric = next((gate.metric for gate in gates), None)
        if self.bound.against is not None and any(isinstance(gate, AccuracyLossCeiling) for gate in gates):
            try:
                found = self._reference_answers(self.bound.against, self.case.task, metric)
            except NodeLost:
                # Opened again it goes on elsewhere, and so does the candidate once it is asked.
                found = self._reference_answers(self.bound.against, self.case.task, metric)
            self._keep(found)
        records = self._settings.update is not None
        may_stop = bool(gates) and self.case.task.early_stop and not records
        start = time.perf_counter()
        with self.engine.evaluators(self.case.task.replicas) as engine:
            accuracy = evaluate(
                engine,
                self.case.task,
                metric=metric,
                search_paths=self._settings.task_paths,
                progress=self._progress,
                asking=Asking(
                    order=asking_order,
                    looks=asking_looks,
                    decided=self._decided if may_stop else None,
                    repeat=records,
                ),
            )
            self._notes |= dict.fromkeys(engine.take_notes())
        accuracy = replace(accuracy, duration_s=time.perf_counter() - start)
        self._result = self._with(accuracy=accuracy)
        return accuracy

    def _reference_answers(self, reference: ReferenceEngine, task: Task, metric: str | None) -> Comparison:
        """Let a reference engine answer the task, once in a run. Raises like `evaluate`."""
        from pytest_inferperf.evaluate.interim import Asking
        from pytest_inferperf.evaluate.run import evaluate
        from pytest_inferperf.gates.asking import asking_looks, asking_order
        from pytest_inferperf.measure.blocks import held_reference
        from pytest_inferperf.measure.validity import check_engine

        key = (reference, task, metric)
        if key not in self._answers:
            self._progress(f"evaluate {task.name} with the reference {reference.label}")
            with held_reference(self.engine, reference, self._open_reference) as engine:
                reason = check_engine(reference.spec, engine.info)
                if reason:
                    raise InvalidRun(f"the reference {reference.label}: {reason}")
                found = evaluate(
                    engine,
                    task,
                    metric=metric,
                    search_paths=self._settings.task_paths,
                    progress=self._progress,
                    asking=Asking(order=asking_order, looks=asking_looks),
                )
                self._answers[key] = Comparison(reference=reference, engine=engine.info, accuracy=found)
        return self._answers[key]

    def _decided(self, answers: AccuracyResult) -> bool:
        """Say whether every accuracy gate passes or fails by the answers so far.

        A gate that has no figure (no baseline, the wrong scale) decides nothing: its test needs all answers, to be
        recorded from.
        """
        from pytest_inferperf.judging import judge_case

        gates = [gate for gate in self.bound.gates if isinstance(gate, AccuracyLossCeiling | AccuracyFloor)]
        settings = self._settings
        try:
            verdicts = judge_case(
                replace(self._result, accuracy=answers),
                gates,
                root=settings.baselines,
                tolerance=settings.tolerance,
                alpha=settings.alpha,
                against=settings.against_run,
                nodeid=self._nodeid,
            )
        except BaselineError:
            return False  # It is reported when the test is judged.
        return all(item.measured is not None and item.status in (Status.PASS, Status.FAIL) for item in verdicts)

    def _check_validity(self) -> None:
        from pytest_inferperf.measure.validity import check_engine

        reason = check_engine(self.case.engine, self.engine.info)
        if reason:
            raise InvalidRun(reason)

    def _check_telemetry(self, telemetry: Mapping[str, float]) -> None:
        from pytest_inferperf.measure.validity import check_telemetry

        self._refuse(check_telemetry(telemetry, self._settings.limits))

    def _check_agreement(self, rounds: Sequence[Round]) -> None:
        from pytest_inferperf.measure.agreement import check_agreement

        self._refuse(check_agreement(rounds, self._settings.limits))

    def _refuse(self, reason: str) -> None:
        """Refuse figures, already kept in the result, for a reason, if there is one; also where the body goes on."""
        if reason:
            self._result = replace(self._result, invalid=reason)
            raise InvalidRun(reason)


def _no_reference(reference: ReferenceEngine) -> Engine:
    raise MarkError(f"nothing opens the reference engine {reference.label}: give Inferperf open_reference=.")


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
