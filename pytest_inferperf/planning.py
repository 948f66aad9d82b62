"""Plan a run before anything is built: engines, GPUs, what each gate can find, and the time by past results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
from pytest_inferperf.engines.servers.presets import loads_model
from pytest_inferperf.errors import BaselineError, InferperfError
from pytest_inferperf.gates.forecast import OnFile, Unknown, forecast
from pytest_inferperf.gates.looks import SESSIONS
from pytest_inferperf.model.case import Case, EngineSpec, GpuRequirement
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling, Gate, PerformanceGate
from pytest_inferperf.model.plan import CasePlan, EnginePlan, Plan
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, QUANTIZATIONS
from pytest_inferperf.model.results import Hardware, slug

__all__ = ["Conditions", "PlannedTest", "make_plan"]

EXPECTED_SESSIONS = 1
"""Sessions of a case whose speed has not changed: most are decided at the first look."""


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


def make_plan(tests: Sequence[PlannedTest], conditions: Conditions) -> Plan:
    """Plan tests in the order in which they will run. Nothing is built, loaded, downloaded or written.

    What is wrong with a model, a backend or a baseline file becomes part of the plan.
    """
    engines: dict[EngineSpec, list[PlannedTest]] = {}
    for test in tests:
        engines.setdefault(test.engine, []).append(test)
    files = _Files(conditions)
    return Plan(
        engines=tuple(_engine(spec, mine, files, conditions) for spec, mine in engines.items()),
        power=conditions.power,
        past=conditions.past_shown if conditions.past else "",
    )


def _engine(spec: EngineSpec, tests: Sequence[PlannedTest], files: _Files, conditions: Conditions) -> EnginePlan:
    by_hook = any(test.by_hook for test in tests)
    # What a hook builds may run anywhere.
    here = None if by_hook else _machine(spec, conditions.gpus)
    load_s = conditions.past.load_s(spec, here)
    checkpoint, problem = _checkpoint(spec, conditions.cache_dir, by_hook=by_hook)
    return EnginePlan(
        name=f"{spec.precision} {spec.served_model_name}",
        checkpoint=checkpoint,
        problem=problem,
        gpus=_gpus(spec, tests, conditions.gpus, by_hook=by_hook),
        cases=tuple(_case(test, here, load_s, files, conditions) for test in tests),
        load_s=load_s,
    )


def _case(
    test: PlannedTest, here: Hardware | None, load_s: float | None, files: _Files, conditions: Conditions
) -> CasePlan:
    lacking = why_missing(test.need, conditions.gpus) if test.need is not None else ""
    if test.case is None:
        return CasePlan(nodeid=test.nodeid, skipped=lacking, is_case=False)
    performance, elsewhere = files.performance(test.case, None if lacking else here)
    known = OnFile(
        case=test.case,
        performance=performance,
        performance_on=elsewhere,
        accuracy=files.accuracy(test.case, test.gates),
        default_tolerance=conditions.tolerance,
        alpha=conditions.alpha,
        power=conditions.power,
    )
    duration_s, longest_s = _times(test.case, test.gates, conditions.past, here, load_s)
    return CasePlan(
        nodeid=test.nodeid,
        gates=tuple(forecast(gate, known) for gate in test.gates),
        skipped=lacking and lacking + (" (--inferperf-require-gpu forbids to skip)" if conditions.require_gpu else ""),
        duration_s=duration_s,
        longest_s=longest_s,
    )


def _machine(spec: EngineSpec, gpus: tuple[Gpu, ...]) -> Hardware:
    if spec.url:
        from pytest_inferperf.engines.openai.engine import endpoint_hardware

        return endpoint_hardware(spec)
    return Hardware(name=gpus[0].name, count=spec.world_size, kind="gpu") if gpus else cpu_hardware()


def _checkpoint(spec: EngineSpec, cache_dir: Path | None, *, by_hook: bool) -> tuple[str, str]:
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
        resolve_backend(spec.backend)
    except InferperfError as error:
        problems.append(str(error))
    try:
        text = foresee_checkpoint(spec, cache_dir=cache_dir).text
    except InferperfError as error:
        problems.append(str(error))
    return served + text, "\n".join(problems)


def _gpus(spec: EngineSpec, tests: Sequence[PlannedTest], gpus: tuple[Gpu, ...], *, by_hook: bool) -> str:
    """Say which GPUs the engine and its tests need, beside those that were found."""
    quant = QUANTIZATIONS.get(spec.quant)
    native = max(quant.min_sm if quant is not None else 0, KV_CACHE_DTYPES[spec.kv_cache_dtype].min_sm)
    fast = f"; {spec.precision} is native from SM {native} on" if spec.precision != "BF16" and native else ""
    try:
        on_gpu = not by_hook and resolve_backend(spec.backend).needs_gpu
    except InferperfError:
        on_gpu = False
    wanted = [test.need for test in tests if test.need is not None]
    if not (on_gpu or wanted or spec.world_size > 1):
        return f"none needed{fast}"
    need = GpuRequirement(
        sm=max([native if on_gpu else 0, *(item.sm for item in wanted)]),
        count=max([spec.world_size, *(item.count for item in wanted)]),
        memory_gib=max([0.0, *(item.memory_gib for item in wanted)]),
    )
    return f"{need_words(need)}; found {gpu_words(gpus)}{fast if need.sm < native else ''}"


def _times(
    case: Case, gates: Sequence[Gate], past: Past, here: Hardware | None, load_s: float | None
) -> tuple[float | None, float | None]:
    """Return the expected and the longest duration of a case, seconds; None where it is not known."""
    session_s = past.session_s(case, here)
    if session_s is None:
        return past.evaluation_s(case, here), None
    compared = any(isinstance(gate, PerformanceGate) and gate.limit is None for gate in gates)
    # Every further session is a launch of its own.
    longest_s = SESSIONS.cap * session_s + (SESSIONS.cap - 1) * (load_s or 0.0)
    return EXPECTED_SESSIONS * session_s, longest_s if compared else None


class _Files:
    """The baseline files, each read once."""

    def __init__(self, conditions: Conditions) -> None:
        self._root = conditions.baselines
        self._past = conditions.past
        self._performance: dict[Path, PerformanceFile | Unknown | None] = {}
        self._accuracy: dict[Path, AccuracyFile | Unknown | None] = {}

    def performance(self, case: Case, here: Hardware | None) -> tuple[PerformanceEntry | Missing | Unknown | None, str]:
        """Find the entry of a case for the hardware it will run on, and name that hardware where it is not `here`.

        Without `here` (a hook brings the engine, or the test will not run on this machine) the hardware is that of the
        last past result, else any that has an entry.
        """
        if case.workload is None:
            return None, ""
        key = performance_key(case)
        last = self._past.hardware(case)
        wanted = here or last
        if wanted is not None:
            found = self._entry(case, wanted)
            if isinstance(found, PerformanceEntry | Unknown):
                return found, "" if wanted == here else _words(wanted)
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
        there = f" (there is one for {', '.join(_words(item) for item, _ in others)})" if others else ""
        return Missing(path=shown_path(self._root, path), key=key, reason=lack + there), ""

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

    def accuracy(self, case: Case, gates: Sequence[Gate]) -> AccuracyEntry | Missing | Unknown | None:
        """Find the entry of a case's task, also where its metric is known only once lm-eval has loaded the task."""
        if case.task is None:
            return None
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
        metrics = {gate.metric for gate in gates if isinstance(gate, AccuracyLossCeiling | AccuracyFloor)} - {None}
        metric = next(iter(metrics), None) or self._past.metric(case)
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
