"""Plan a run before anything is built: engines, GPUs, what each gate can find, and the time by past results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from pytest_inferperf.baselines.against import RunReference, answers_entry
from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, PerformanceEntry, accuracy_key, performance_key
from pytest_inferperf.baselines.past import Past
from pytest_inferperf.baselines.store import (
    AccuracyFile,
    PerformanceFile,
    accuracy_identity,
    accuracy_path,
    load_accuracy,
    load_performance,
    performance_path,
    read_performance,
    shown_path,
)
from pytest_inferperf.engines.backends import resolve_backend
from pytest_inferperf.engines.checkpoint.outlook import foresee_checkpoint
from pytest_inferperf.engines.hardware import Gpu, cpu_hardware, gpu_words, need_words, why_missing
from pytest_inferperf.engines.needs import implied_need, joint_need, native_sm
from pytest_inferperf.engines.servers.presets import loads_model
from pytest_inferperf.errors import BaselineError, InferperfError
from pytest_inferperf.gates.forecast import OnFile, Unknown, forecast
from pytest_inferperf.gates.looks import BLOCKS, SESSIONS
from pytest_inferperf.model.case import Case, EngineSpec, GpuRequirement, ReferenceEngine, Task, Workload
from pytest_inferperf.model.gates import (
    AccuracyFloor,
    AccuracyLossCeiling,
    ErrorRateCeiling,
    Gate,
    PerformanceGate,
    SpeedupFloor,
)
from pytest_inferperf.model.plan import CasePlan, EnginePlan, Foresight, GateForecast, Plan, ReferencePlan
from pytest_inferperf.model.results import Hardware, slug

__all__ = ["Conditions", "PlannedTest", "make_plan"]

ROUNDS_PER_BLOCK = 2
"""Rounds of each engine in a block."""


@dataclass(frozen=True, kw_only=True)
class PlannedTest:
    """One collected test, as the plan needs it."""

    nodeid: str
    engine: EngineSpec
    case: Case | None = None
    """None for a test that only takes the engine."""

    gates: tuple[Gate, ...] = ()
    need: GpuRequirement | None = None
    by_hook: bool = False
    """Whether a hook is asked for the engine before the shipped backends are."""

    against: ReferenceEngine | None = None
    """The engine that answers in the place of stored answers; None where the run has none."""

    @property
    def speedups(self) -> tuple[ReferenceEngine, ...]:
        """The engines that blocks are measured against, each once."""
        return tuple(dict.fromkeys(gate.reference for gate in self.gates if isinstance(gate, SpeedupFloor)))

    @property
    def asks_reference(self) -> bool:
        """Whether the reference engine has to answer the task."""
        return self.against is not None and any(isinstance(gate, AccuracyLossCeiling) for gate in self.gates)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a plan is made for: the machine, the baselines, and how gates judge."""

    baselines: Path
    """Folder of the baseline files."""

    cache_dir: Path | None = None
    """Folder of built checkpoints; None for the user's cache folder."""

    gpus: tuple[Gpu, ...] = ()
    require_gpu: bool = False
    tolerance: float = 0.05
    alpha: float = 0.05
    power: float = 0.9
    """The probability with which a loss is to be found."""

    past: Past = field(default_factory=Past)
    past_shown: str = ""
    """Where the past results were read from, for the reader."""

    against: RunReference | None = None
    """A run that stands in for the baseline files."""

    against_engine: str = ""
    """The label of the engine that stands in for them."""


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
        self._files = _Files(conditions)
        self._answered: set[tuple[object, ...]] = set()
        """What an earlier test of the run will have asked."""

    def engine(self, spec: EngineSpec, tests: Sequence[PlannedTest]) -> EnginePlan:
        conditions = self._conditions
        by_hook = any(test.by_hook for test in tests)
        # What a hook builds may run anywhere.
        here = None if by_hook else _machine(spec, conditions.gpus)
        load_s = self._past.load_s(spec, here)
        checkpoint, problem = _checkpoint(spec, conditions.cache_dir, by_hook=by_hook)
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
            self._conditions.cache_dir,
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
        performance, elsewhere = self._files.performance(test.case, None if lacking else here, nodeid=test.nodeid)
        past = ((item, self._past.compared(test.case, item, here)) for item in test.speedups)
        known = OnFile(
            case=test.case,
            performance=performance,
            performance_on=elsewhere,
            accuracy=self._accuracy(test, here),
            compared={item: found[1] for item, found in past if found is not None},
            default_tolerance=conditions.tolerance,
            alpha=conditions.alpha,
            power=conditions.power,
        )
        gates = tuple(self._forecast(gate, known) for gate in test.gates)
        duration_s, longest_s = self._times(test, test.case, gates, here, load_s, asks=test.against in opened)
        return CasePlan(
            nodeid=test.nodeid,
            gates=gates,
            skipped=lacking
            and lacking + (" (--inferperf-require-gpu forbids to skip)" if conditions.require_gpu else ""),
            duration_s=duration_s,
            longest_s=longest_s,
            sessions=_sessions(test, test.case.workload) or 1,
        )

    def _forecast(self, gate: Gate, known: OnFile) -> GateForecast:
        found = forecast(gate, known)
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

    def _times(
        self,
        test: PlannedTest,
        case: Case,
        gates: Sequence[GateForecast],
        here: Hardware | None,
        load_s: float | None,
        *,
        asks: bool,
    ) -> tuple[float | None, float | None]:
        """Return the expected and the longest duration of a case, seconds; None where it is not known.

        Expected is what an unchanged engine takes: every gate its mean, so that the slowest of a case decides. `asks`:
        whether the reference engine has to answer the task first.
        """
        if case.task is not None:
            return self._task_times(test, case, case.task, gates, here, load_s, asks=asks)
        if case.workload is None:
            return None, None
        round_s = self._past.round_s(case, here)
        if round_s is None:
            return None, None
        expected = longest = 0.0
        paired = list(zip(test.gates, gates, strict=True))
        least = _sessions(test, case.workload)
        if least:
            stored = [found for gate, found in paired if isinstance(gate, PerformanceGate) and gate.limit is None]
            used = max([least, *(found.used for found in stored if found.used is not None)])
            most = max(least, SESSIONS.cap) if stored else least
            session_s = round_s * (case.workload.rounds + case.workload.warmup_rounds)
            expected, longest = (
                # Every further session is a launch of its own.
                count * session_s + (count - 1) * (load_s or 0.0)
                for count in (used, most)
            )
        for reference in test.speedups:
            block_s = self._block_s(case, case.workload, reference, round_s, here, load_s)
            if block_s is None:
                return None, None
            known = [
                found.used
                for gate, found in paired
                if isinstance(gate, SpeedupFloor) and gate.reference == reference and found.used is not None
            ]
            first, each = block_s
            expected += first + max([BLOCKS.looks[0], *known]) * each
            longest += first + BLOCKS.cap * each
        return expected, longest if longest > expected else None

    def _block_s(
        self,
        case: Case,
        workload: Workload,
        reference: ReferenceEngine,
        round_s: float,
        here: Hardware | None,
        load_s: float | None,
    ) -> tuple[float, float] | None:
        """Return the seconds before the first block, and those of each block; None where the reference is unknown."""
        other_load_s = self._past.load_s(reference.spec, here)
        other_s = self._reference_round_s(case, reference, here)
        if other_load_s is None or other_s is None:
            return None
        both = round_s + other_s
        if reference.reload:
            launches = other_load_s + (load_s or 0.0)
            return 0.0, launches + (workload.warmup_rounds + ROUNDS_PER_BLOCK) * both
        return other_load_s + workload.warmup_rounds * both, ROUNDS_PER_BLOCK * both

    def _reference_round_s(self, case: Case, reference: ReferenceEngine, here: Hardware | None) -> float | None:
        found = self._past.compared(case, reference, here)
        rounds = [item.duration_s for block in found[1].blocks for item in block.reference] if found is not None else []
        return fmean(rounds) if rounds else self._past.round_s(replace(case, engine=reference.spec), here)

    def _task_times(
        self,
        test: PlannedTest,
        case: Case,
        task: Task,
        gates: Sequence[GateForecast],
        here: Hardware | None,
        load_s: float | None,
        *,
        asks: bool,
    ) -> tuple[float | None, float | None]:
        whole_s = self._past.evaluation_s(case, here)
        if whole_s is None:
            return None, None
        # A gate of which nothing is known decides nothing before every question is asked.
        shares = [1.0 if found.used is None else found.used for found in gates] if task.early_stop else []
        expected = whole_s * max(shares, default=1.0)
        longest = whole_s
        reference = test.against
        if reference is not None and asks:
            other_s = self._reference_answers_s(case, reference, here)
            if other_s is None:
                return None, None
            if reference.reload:
                other_s += load_s or 0.0
            expected, longest = expected + other_s, longest + other_s
        return expected, longest if longest > expected else None

    def _reference_answers_s(self, case: Case, reference: ReferenceEngine, here: Hardware | None) -> float | None:
        """Return the seconds of loading the reference engine and asking it every question."""
        load_s = self._past.load_s(reference.spec, here)
        found = self._past.compared(case, reference, here)
        asked = found[1].accuracy if found is not None else None
        whole_s = (
            asked.duration_s
            if asked is not None
            else self._past.evaluation_s(replace(case, engine=reference.spec), here)
        )
        return None if load_s is None or whole_s is None else load_s + whole_s


def _engine_name(spec: EngineSpec) -> str:
    return f"{spec.precision} {spec.served_model_name}"


def _sessions(test: PlannedTest, workload: Workload | None) -> int:
    """Return the sessions that are run whatever they say; 0 for a task, and where speedup gates alone measure blocks."""
    kinds = {type(gate) for gate in test.gates}
    if workload is None or (SpeedupFloor in kinds and not kinds & {PerformanceGate, ErrorRateCeiling}):
        return 0
    return max(1, workload.sessions)


def _machine(spec: EngineSpec, gpus: tuple[Gpu, ...]) -> Hardware:
    if spec.url:
        from pytest_inferperf.engines.openai.engine import endpoint_hardware

        return endpoint_hardware(spec)
    return Hardware(name=gpus[0].name, count=spec.world_size, kind="gpu") if gpus else cpu_hardware()


def _checkpoint(spec: EngineSpec, cache_dir: Path | None, *, by_hook: bool, backend: bool = True) -> tuple[str, str]:
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
        text = foresee_checkpoint(spec, cache_dir=cache_dir).text
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
    split = [GpuRequirement(count=item.world_size) for item in specs if item.world_size > 1]
    implied = [] if by_hook else [implied_need(item) for item in specs]
    # Engines that are held at once share the GPUs.
    need = joint_need([*split, *implied, *(test.need for test in tests)])
    if need is None:
        return f"none needed{fast}"
    return f"{need_words(need)}; found {gpu_words(gpus)}{fast if need.sm < native else ''}"


class _Files:
    """The baseline files, each read once."""

    def __init__(self, conditions: Conditions) -> None:
        self._root = conditions.baselines
        self._past = conditions.past
        self._run = conditions.against
        self._run_past = Past([conditions.against.file]) if conditions.against is not None else Past()
        self._performance: dict[Path, PerformanceFile | Unknown | None] = {}
        self._accuracy: dict[Path, AccuracyFile | Unknown | None] = {}

    def performance(
        self, case: Case, here: Hardware | None, *, nodeid: str = ""
    ) -> tuple[PerformanceEntry | Missing | Unknown | None, str]:
        """Find the entry of a case for the hardware it will run on, and name that hardware where it is not `here`.

        Without `here` (a hook brings the engine, or the test will not run on this machine) the hardware is that of the
        last past result, else any that has an entry.
        """
        if case.workload is None:
            return None, ""
        if self._run is not None:
            there = here or self._past.hardware(case) or self._run_past.hardware(case) or cpu_hardware()
            found = self._run.performance(case, there, nodeid=nodeid)
            return found, "" if there == here or isinstance(found, Missing) else _words(there)
        key = performance_key(case)
        last = self._past.hardware(case)
        wanted = here or last
        if wanted is not None:
            entry = self._entry(case, wanted)
            if isinstance(entry, PerformanceEntry | Unknown):
                return entry, "" if wanted == here else _words(wanted)
        others, broken = self._stored(case)
        if here is None and others:
            return others[0][1], _words(others[0][0])
        if wanted is None and broken:
            return broken[0], ""
        if wanted is None:
            folder = shown_path(self._root, self._root / "performance")
            return Missing(path=folder, key=key, reason="no entry for any hardware"), ""
        path = performance_path(self._root, wanted, case)
        lack = "no such entry" if self._performance.get(path) is not None else "no such file"
        others_words = f" (there is one for {', '.join(_words(item) for item, _ in others)})" if others else ""
        return Missing(path=shown_path(self._root, path), key=key, reason=lack + others_words), ""

    def _entry(self, case: Case, hardware: Hardware) -> PerformanceEntry | Unknown | None:
        try:
            path = performance_path(self._root, hardware, case)
            if path not in self._performance:
                self._performance[path] = load_performance(self._root, hardware, case)
        except BaselineError as error:
            return Unknown(reason=str(error), broken=True)
        file = self._performance[path]
        return file.entries.get(performance_key(case)) if isinstance(file, PerformanceFile) else file

    def _stored(self, case: Case) -> tuple[list[tuple[Hardware, PerformanceEntry]], list[Unknown]]:
        """Find the entries of a case on whatever hardware, and the files that might hold one but cannot be read."""
        name = case.engine.served_model_name
        entries: list[tuple[Hardware, PerformanceEntry]] = []
        broken: list[Unknown] = []
        for path in sorted((self._root / "performance").glob(f"*/{slug(name)}.json")):
            if path not in self._performance:
                try:
                    self._performance[path] = read_performance(path, shown=shown_path(self._root, path))
                except BaselineError as error:
                    self._performance[path] = Unknown(reason=str(error), broken=True)
            file = self._performance[path]
            if isinstance(file, Unknown):
                broken.append(file)
            elif file is not None and file.model == name:
                entry = file.entries.get(performance_key(case))
                if entry is not None:
                    entries.append((file.hardware, entry))
        return entries, broken

    def accuracy(
        self, case: Case, gates: Sequence[Gate], *, nodeid: str = ""
    ) -> AccuracyEntry | Missing | Unknown | None:
        """Find the entry of a case's task, also where its metric is known only once lm-eval has loaded the task."""
        if case.task is None:
            return None
        metrics = {gate.metric for gate in gates if isinstance(gate, AccuracyLossCeiling | AccuracyFloor)} - {None}
        metric = next(iter(metrics), None) or self._past.metric(case)
        if self._run is not None:
            return self._run.accuracy(case, metric or self._run_past.metric(case) or "METRIC", nodeid=nodeid)
        try:
            path = accuracy_path(self._root, case)
            if path not in self._accuracy:
                self._accuracy[path] = load_accuracy(self._root, case)
        except BaselineError as error:
            return Unknown(reason=str(error), broken=True)
        file = self._accuracy[path]
        if isinstance(file, Unknown):
            return file
        shown = shown_path(self._root, path)
        entries = list(file.tasks.values()) if file is not None else []
        if metric is not None:
            key = accuracy_key(case, metric)
            found = file.tasks.get(key) if file is not None else None
        else:
            key = accuracy_key(case, "METRIC")
            mine = [item for item in entries if item.identity == accuracy_identity(case, item.metric)]
            if len(mine) > 1:
                names = ", ".join(sorted(item.metric for item in mine))
                return Unknown(
                    reason=f"{shown} scores {case.task.name} by {names}; which one judges is known once the task is "
                    "loaded (metric= in the mark says it before)"
                )
            found = mine[0] if mine else None
        return found or Missing(path=shown, key=key, reason="no such entry" if file is not None else "no such file")


def _words(hardware: Hardware) -> str:
    return f"{hardware.count} x {hardware.name}"
