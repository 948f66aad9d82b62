"""`inferperf` marks become cases here, or a clear `MarkError`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import CheckpointError, EngineError, MarkError, choices
from pytest_inferperf.marks.engines import SERVERS, make_engine
from pytest_inferperf.marks.keywords import KEYWORDS, check_value
from pytest_inferperf.marks.origin import Origin, existing
from pytest_inferperf.marks.recorded import FILES
from pytest_inferperf.marks.workloads import LOOPS, check_needs, make_workload
from pytest_inferperf.model.case import Case, ReferenceEngine, Task
from pytest_inferperf.model.gates import Gate
from pytest_inferperf.model.sweep import Sweep
from pytest_inferperf.model.workload import WORKLOAD_IDENTITY

if TYPE_CHECKING:
    import pytest

__all__ = ["BoundCase", "parse_cases"]


@dataclass(frozen=True, kw_only=True)
class BoundCase:
    """A case with the gates that judge it: what `callspec.params` carries."""

    case: Case
    gates: tuple[Gate, ...]
    against: ReferenceEngine | None = None
    """The engine whose answers stand in for stored ones (`--inferperf-against`); None for the baseline files."""

    def __repr__(self) -> str:
        return f"<case {self.case.engine.served_model_name} {self.case.engine.precision}, {len(self.gates)} gates>"


def parse_cases(marks: Sequence[pytest.Mark], origin: Origin) -> list[tuple[str, Case]]:
    """Merge `inferperf` marks, outermost first, into cases with their ids.

    Inner keywords replace outer ones; `engine_options` merge key by key. Raises `MarkError`.
    """
    merged: dict[str, Any] = {}
    for mark in marks:
        _check_mark(mark)
        for name, value in [*_swept(mark), *mark.kwargs.items()]:
            if name == "engine_options":
                merged[name] = {**merged.get(name, {}), **value}
            else:
                merged[name] = value
    _override(merged, origin)
    if "model" not in merged:
        raise MarkError('inferperf: no model. Give one: @pytest.mark.inferperf(model="org/name or folder", …).')
    lists = {name: value for name, value in merged.items() if isinstance(value, list | tuple)}
    axes = [[(name, item) for item in value] for name, value in lists.items()]
    cases = []
    for combination in itertools.product(*axes):
        values = {**merged, **dict(combination)}
        case = _case(values, origin)
        cases.append((_case_id(case, varied=set(lists)), case))
    _check_distinct(cases)
    return cases


def _swept(mark: pytest.Mark) -> list[tuple[str, Sweep]]:
    """Return the one keyword that the sweep of a mark gives; none without a sweep. Raises `MarkError`."""
    found = [(name, values) for item in mark.args for name, values in item.axes]
    if not mark.args:
        return []
    example = "sweep(concurrency=[1, 8, 64])"
    if len(found) != 1:
        raise MarkError(f"inferperf: a sweep goes along one keyword, {' or '.join(LOOPS)}, such as {example}.")
    name, values = found[0]
    if name not in LOOPS:
        raise MarkError(
            f"inferperf: sweep({name}=…): {choices(name, LOOPS, what='What can be swept')} Such as {example}."
        )
    if name in mark.kwargs:
        raise MarkError(f"inferperf: {name} is swept and given too, {mark.kwargs[name]!r}; keep one.")
    if len(set(values)) != len(values) or len(values) < 2:
        raise MarkError(f"inferperf: sweep({name}={list(values)!r}): give at least two values, each once.")
    for item in values:
        check_value(name, item)
    return [(name, Sweep(axes=((name, values),)))]


def _check_mark(mark: pytest.Mark) -> None:
    if mark.args and not all(isinstance(item, Sweep) for item in mark.args):
        raise MarkError(
            f"inferperf: takes keywords only, not {mark.args[0]!r}. {choices(mark.args[0], KEYWORDS, what='Keywords')}"
        )
    for name, value in mark.kwargs.items():
        keyword = KEYWORDS.get(name)
        if keyword is None:
            raise MarkError(f"inferperf: unknown keyword {name!r}.\n{choices(name, KEYWORDS, what='Keywords')}")
        many = isinstance(value, list | tuple)
        if many and not value:
            raise MarkError(f"inferperf: {name}={value!r} is empty; give at least one value.")
        if many and name == "engine_options":
            raise MarkError("inferperf: engine_options takes one dict, not a list.")
        for item in value if many else (value,):
            check_value(name, item)
        if many and len(set(value)) != len(value):
            raise MarkError(f"inferperf: {name}={value!r} repeats a value.")


def _override(merged: dict[str, Any], origin: Origin) -> None:
    """Apply `--inferperf-set`: to every mark, but a workload keyword only to workloads, a task keyword to tasks."""
    for name, value in origin.overrides:
        if name.startswith("engine_options."):
            option = {name.removeprefix("engine_options."): value}
            check_value("engine_options", option)
            merged["engine_options"] = {**merged.get("engine_options", {}), **option}
            continue
        keyword = KEYWORDS.get(name)
        if keyword is None or keyword.kind is dict:
            valid = [key for key in KEYWORDS if key != "engine_options"]
            raise MarkError(
                f"--inferperf-set: unknown keyword {name!r}.\n{choices(name, valid, what='Keywords')} "
                "Or engine_options.NAME."
            )
        try:
            check_value(name, value)
        except MarkError as error:
            raise MarkError(f"--inferperf-set: {str(error).removeprefix('inferperf: ')}") from None
        if keyword.target == "workload" and not {"isl", "osl", *FILES} & merged.keys():
            continue
        if keyword.target == "task" and "task" not in merged:
            continue
        for either in (SERVERS, LOOPS, FILES):
            # The command line says where the engine is, and which loop it is under, whatever the mark said.
            for other in either if name in either else ():
                merged.pop(other, None)
        merged[name] = value


def _case(values: Mapping[str, Any], origin: Origin) -> Case:
    def pick(target: str) -> dict[str, Any]:
        return {name: value for name, value in values.items() if KEYWORDS[name].target == target}

    workload, task = pick("workload"), pick("task")
    if workload and task:
        raise MarkError(
            f"inferperf: {', '.join(sorted(workload))} belong to a workload and {', '.join(sorted(task))} to a task; "
            "one test measures a workload or evaluates a task. Write two tests."
        )
    if task and "task" not in task:
        raise MarkError(f'inferperf: {", ".join(sorted(task))} need a task: task="gsm8k", or a YAML file.')
    load = make_workload(workload, origin) if workload else None
    case = Case(engine=make_engine(pick("engine"), origin), workload=load, task=_task(task, origin) if task else None)
    if load is not None and origin.backends:
        # An engine that a hook brings may be a server too.
        check_needs(load, case.engine)
    if origin.backends:
        _check_tensorrt_llm(case)
    return case


def _check_tensorrt_llm(case: Case) -> None:
    """Refuse what TensorRT-LLM could not run, before a GPU is asked for."""
    from pytest_inferperf.engines.backends import runs_tensorrt_llm

    if not runs_tensorrt_llm(case.engine):
        return
    from pytest_inferperf.engines.tensorrt_llm.checks import check_spec

    folder = Path(case.engine.model)
    try:
        wrong = check_spec(case.engine, case.workload, folder=folder if folder.is_dir() else None)
    except (CheckpointError, EngineError) as error:
        wrong = str(error)
    if wrong:
        raise MarkError(f"inferperf: {wrong}.".replace("..", "."))


def _task(values: dict[str, Any], origin: Origin) -> Task:
    name = str(values.pop("task"))
    path = ""
    if name.endswith((".yaml", ".yml")):
        found = existing(name, origin.folder)
        if found is None or not found.is_file():
            near = sorted(item.name for item in (origin.folder / name).parent.glob("*.y*ml"))
            valid = f" Tasks there: {', '.join(near)}." if near else ""
            raise MarkError(f"inferperf: task={name!r}: no such file, relative to {origin.folder}.{valid}")
        path, name = str(found), found.stem
    return Task(**{**values, "name": name, "path": path})


_ID_PREFIX = {"concurrency": "c", "num_requests": "n", "isl": "isl", "osl": "osl", "num_fewshot": "fewshot"}


def _case_id(case: Case, varied: set[str]) -> str:
    """Build `NVFP4-isl1024-osl1024-c64`: precision and workload or task always, other keywords where they vary."""
    parts = [case.engine.quant]
    shown = {"quant"}
    if case.engine.kv_cache_dtype != "auto" and "kv_cache_dtype" in varied:
        parts.append(f"kv_{case.engine.kv_cache_dtype}")
    shown.add("kv_cache_dtype")
    if case.workload is not None:
        parts += case.workload.names()
        # Whatever is its identity has been named.
        shown |= {*WORKLOAD_IDENTITY} - {"num_requests", "seed"}
    if case.task is not None:
        parts.append(case.task.name)
        shown.add("task")
    for name in KEYWORDS:
        if name in varied and name not in shown:
            owner = {"engine": case.engine, "workload": case.workload, "task": case.task}[KEYWORDS[name].target]
            value = case.engine.served_model_name if name == "model" else getattr(owner, name)
            parts.append(f"{_ID_PREFIX.get(name, name)}{value}" if isinstance(value, int) else str(value))
    return "-".join(parts)


def _check_distinct(cases: Iterable[tuple[str, Case]]) -> None:
    seen: dict[str, Case] = {}
    for case_id, case in cases:
        if case_id in seen:
            raise MarkError(f"inferperf: two cases are called {case_id!r}; a list repeats a value.")
        seen[case_id] = case
