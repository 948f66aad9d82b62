"""Plan a run before anything is built: engines, GPUs, what each gate can find, and the time by past results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_inferperf.baselines.against import answers_entry
from pytest_inferperf.baselines.entries import AccuracyEntry, Missing
from pytest_inferperf.engines.backends import resolve_backend
from pytest_inferperf.engines.checkpoint.outlook import foresee_checkpoint
from pytest_inferperf.engines.hardware import Gpu, cpu_hardware, gpu_words, need_words, why_missing
from pytest_inferperf.engines.mpi_launch import find_launch, nodes_of
from pytest_inferperf.engines.needs import implied_need, joint_need, native_sm, needs_gpu, of_this_node
from pytest_inferperf.engines.servers.presets import loads_model
from pytest_inferperf.errors import InferperfError
from pytest_inferperf.gates.forecast import OnFile, Unknown, forecast
from pytest_inferperf.gates.frontier_forecast import forecast_frontier
from pytest_inferperf.model.case import EngineSpec, GpuRequirement, ReferenceEngine
from pytest_inferperf.model.gates import AccuracyLossCeiling, FrontierFloor, Gate
from pytest_inferperf.model.plan import CasePlan, EnginePlan, Foresight, GateForecast, Plan, ReferencePlan
from pytest_inferperf.model.results import Hardware
from pytest_inferperf.planning.conditions import Conditions, PlannedTest
from pytest_inferperf.planning.files import Files
from pytest_inferperf.planning.times import Times, least_sessions

__all__ = ["make_plan"]


def make_plan(tests: Sequence[PlannedTest], conditions: Conditions) -> Plan:
    """Plan tests in the order in which they will run. Nothing is built, loaded, downloaded or written.

    What is wrong with a model, a backend or a baseline file becomes part of the plan.
    """
    engines: dict[EngineSpec, list[PlannedTest]] = {}
    for test in tests:
        engines.setdefault(test.engine, []).append(test)
    planner = _Planner(conditions)
    return Plan(
        engines=tuple(planner.engine(spec, mine) for spec, mine in engines.items()),
        power=conditions.power,
        past=conditions.past_shown if conditions.past else "",
        against=_against_words(conditions),
    )


def _against_words(conditions: Conditions) -> str:
    if conditions.against is not None:
        return f"{conditions.against.label}: its sessions and answers stand in for the baselines"
    if conditions.against_engine:
        return f"{conditions.against_engine}: runs, and answers, in this run; no baseline is read"
    return ""


class _Planner:
    """One plan in the making."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._past = conditions.past
        self._files = Files(conditions)
        self._times = Times(conditions.past)
        self._answered: set[tuple[object, ...]] = set()
        """What an earlier test of the run will have asked."""

    def engine(self, spec: EngineSpec, tests: Sequence[PlannedTest]) -> EnginePlan:
        conditions = self._conditions
        by_hook = any(test.by_hook for test in tests)
        # What a hook builds may run anywhere.
        here = None if by_hook else _machine(spec, conditions.gpus)
        load_s = self._past.load_s(spec, here)
        checkpoint, problem = _checkpoint(spec, conditions, by_hook=by_hook)
        opened = {test.nodeid: self._opened(test) for test in tests}
        references = list(dict.fromkeys(item for items in opened.values() for item in items))
        return EnginePlan(
            name=_engine_name(spec),
            checkpoint=checkpoint,
            problem=problem,
            gpus=_gpus(spec, tests, references, conditions.gpus, by_hook=by_hook),
            cases=tuple(self._case(test, here, load_s, opened[test.nodeid]) for test in tests),
            load_s=load_s,
            references=tuple(self._reference(item, here, by_hook=by_hook) for item in references),
        )

    def _opened(self, test: PlannedTest) -> tuple[ReferenceEngine, ...]:
        """Return the engines that a test opens beside its own: one that answered its task in this run is not asked again."""
        found = list(test.speedups)
        metric = next((gate.metric for gate in test.gates if isinstance(gate, AccuracyLossCeiling)), None)
        key = (test.against, test.case.task if test.case is not None else None, metric)
        runs = test.need is None or not why_missing(test.need, self._conditions.gpus)
        if test.asks_reference and test.against is not None and runs and key not in self._answered:
            self._answered.add(key)
            found.append(test.against)
        return tuple(found)

    def _reference(self, reference: ReferenceEngine, here: Hardware | None, *, by_hook: bool) -> ReferencePlan:
        checkpoint, problem = _checkpoint(
            reference.spec,
            self._conditions,
            # Which backends another environment has is not known here.
            by_hook=by_hook and not reference.python,
            backend=not reference.python,
        )
        return ReferencePlan(
            name=_engine_name(reference.spec),
            label=reference.label,
            checkpoint=checkpoint,
            problem=problem,
            reload=reference.reload,
            python=reference.python,
            load_s=self._past.load_s(reference.spec, here),
        )

    def _case(
        self, test: PlannedTest, here: Hardware | None, load_s: float | None, opened: tuple[ReferenceEngine, ...]
    ) -> CasePlan:
        conditions = self._conditions
        lacking = why_missing(test.need, conditions.gpus) if test.need is not None else ""
        if test.case is None:
            return CasePlan(nodeid=test.nodeid, skipped=lacking, is_case=False)
        past = ((item, self._past.compared(test.case, item, here)) for item in test.speedups)
        compared = {item: found[1] for item, found in past if found is not None}
        points = {}
        for point in test.case.points():
            performance, elsewhere = self._files.performance(point, None if lacking else here, nodeid=test.nodeid)
            points[point.workload.load_name if point.workload is not None else ""] = OnFile(
                case=point,
                performance=performance,
                performance_on=elsewhere,
                accuracy=self._accuracy(test, here),
                compared=compared,
                default_tolerance=conditions.tolerance,
                alpha=conditions.alpha,
                power=conditions.power,
            )
        paired = self._forecasts(test, points)
        duration_s, longest_s = self._times.case(test, test.case, paired, here, load_s, asks=test.against in opened)
        return CasePlan(
            nodeid=test.nodeid,
            gates=tuple(found for _, found in paired),
            skipped=lacking
            and lacking + (" (--inferperf-require-gpu forbids to skip)" if conditions.require_gpu else ""),
            duration_s=duration_s,
            longest_s=longest_s,
            sessions=least_sessions(test, test.case.workload) or 1,
        )

    def _forecasts(self, test: PlannedTest, points: Mapping[str, OnFile]) -> list[tuple[Gate, GateForecast]]:
        """Pair gates with what they will be able to say, in the order of their rows: of a sweep, each at every point."""
        whole = [gate for gate in test.gates if isinstance(gate, FrontierFloor)]
        swept = len(points) > 1
        found = [
            (gate, replace(row, gate=f"{load} {row.gate}") if swept else row)
            for load, known in points.items()
            for gate in test.gates
            if not isinstance(gate, FrontierFloor)
            for row in [self._reworded(forecast(gate, known))]
        ]
        return found + [(gate, self._reworded(forecast_frontier(gate, points))) for gate in whole]

    def _reworded(self, found: GateForecast) -> GateForecast:
        run = self._conditions.against
        if found.state is Foresight.MISSING and run is not None:
            step = f"record it where the reference runs: pytest {{nodeid}} --inferperf-json={run.label}"
            return replace(found, next_step=step)
        return found

    def _accuracy(self, test: PlannedTest, here: Hardware | None) -> AccuracyEntry | Missing | Unknown | None:
        """Find the answers that a case is paired with, or those that the reference engine gave when it last was asked."""
        assert test.case is not None
        reference = test.against
        if reference is None or not test.asks_reference:
            return self._files.accuracy(test.case, test.gates, nodeid=test.nodeid)
        past = self._past.compared(test.case, reference, here)
        if past is not None and past[1].accuracy is not None:
            entry = answers_entry(reference.label, test.case, past[1].accuracy, {})
            own = past[0].accuracy
            if own is None or own.is_partial:
                return entry
            ours = answers_entry(test.case.engine.precision, test.case, own, {})
            return replace(entry, scores={**ours.scores, **entry.scores})
        stored = self._files.accuracy(test.case, test.gates)
        if isinstance(stored, AccuracyEntry) and reference.spec.served_model_name == test.case.engine.served_model_name:
            score = stored.scores.get(reference.spec.precision)
            if score is not None and score.outcomes:
                return replace(stored, scores={**stored.scores, reference.label: score})
        return Unknown(reason=f"{reference.label} answers in the run; what its answers can tell is known after it")


def _engine_name(spec: EngineSpec) -> str:
    return f"{spec.precision} {spec.served_model_name}"


def _machine(spec: EngineSpec, gpus: tuple[Gpu, ...]) -> Hardware:
    if spec.url:
        from pytest_inferperf.engines.openai.connecting import endpoint_hardware

        return endpoint_hardware(spec)
    if not gpus:
        return cpu_hardware()
    nodes = nodes_of(spec, find_launch()) if needs_gpu(spec) else 1
    return Hardware(name=gpus[0].name, count=spec.world_size, kind="gpu", nodes=nodes)


def _checkpoint(spec: EngineSpec, conditions: Conditions, *, by_hook: bool, backend: bool = True) -> tuple[str, str]:
    """Say where the checkpoint comes from, and what keeps the engine from being opened; "" for nothing."""
    if by_hook:
        return "left to pytest_inferperf_make_engine (a hook of the project or a plugin)", ""
    if spec.url:
        return f"endpoint {spec.url}: what it has loaded cannot be verified", ""
    if not loads_model(spec):
        return f"served by {spec.serve}, which finds its model itself", ""
    served = f"served by {spec.serve}; " if spec.serve else ""
    problems = []
    text = ""
    try:
        if backend:
            resolve_backend(spec.backend)
    except InferperfError as error:
        problems.append(str(error))
    try:
        text = foresee_checkpoint(spec, cache_dir=conditions.cache_dir, shared=conditions.shared_cache).text
    except InferperfError as error:
        problems.append(str(error))
    return served + text, "\n".join(problems)


def _gpus(
    spec: EngineSpec,
    tests: Sequence[PlannedTest],
    references: Sequence[ReferenceEngine],
    gpus: tuple[Gpu, ...],
    *,
    by_hook: bool,
) -> str:
    """Say which GPUs the engine and its tests need, beside those that were found."""
    specs = list(dict.fromkeys([spec, *(item.spec for item in references)]))
    native = native_sm(spec)
    fast = f"; {spec.precision} is native from SM {native} on" if spec.precision != "BF16" and native else ""
    split = [of_this_node(GpuRequirement(count=item.world_size), item) for item in specs if item.world_size > 1]
    implied = [] if by_hook else [implied_need(item) for item in specs]
    # Engines that are held at once share the GPUs.
    need = joint_need([*split, *implied, *(test.need for test in tests)])
    if need is None:
        return f"none needed{fast}"
    return f"{need_words(need)}; found {gpu_words(gpus)}{fast if need.sm < native else ''}"
