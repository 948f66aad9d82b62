"""`inferperf` and `requires_gpu` marks become cases and requirements here, or a clear `MarkError`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_inferperf.errors import CheckpointError, EngineError, MarkError, SettingsError, choices
from pytest_inferperf.marks.arguments import article, keywords_of, number
from pytest_inferperf.marks.workloads import LOOPS, check_needs, make_workload
from pytest_inferperf.model.case import Case, EngineSpec, GpuRequirement, ReferenceEngine, Scalar, Task
from pytest_inferperf.model.gates import Gate
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, QAT, QUANTIZATIONS, check_quant
from pytest_inferperf.model.sweep import Sweep

if TYPE_CHECKING:
    import pytest

__all__ = ["KEYWORDS", "BoundCase", "Origin", "check_value", "engine_like", "parse_cases", "parse_requires_gpu"]


@dataclass(frozen=True, kw_only=True)
class Keyword:
    """One keyword of the `inferperf` mark."""

    target: Literal["engine", "workload", "task"]
    kind: type
    minimum: float = 0
    also: type | None = None
    """A second type that a value may have."""

    positive: bool = False
    """Whether the minimum itself is out of range."""

    @property
    def kinds(self) -> str:
        """The types in words: `an int`, `a float or an int`."""
        return " or ".join(article(kind.__name__) for kind in (self.kind, self.also) if kind is not None)


KEYWORDS: dict[str, Keyword] = {
    "model": Keyword(target="engine", kind=str),
    "served_model_name": Keyword(target="engine", kind=str),
    "quant": Keyword(target="engine", kind=str),
    "recipe": Keyword(target="engine", kind=str),
    "kv_cache_dtype": Keyword(target="engine", kind=str),
    "tp": Keyword(target="engine", kind=int, minimum=1),
    "pp": Keyword(target="engine", kind=int, minimum=1),
    "ep": Keyword(target="engine", kind=int, minimum=1),
    "backend": Keyword(target="engine", kind=str),
    "calib_dataset": Keyword(target="engine", kind=str),
    "calib_size": Keyword(target="engine", kind=int, minimum=1),
    "qat_dataset": Keyword(target="engine", kind=str),
    "qat_steps": Keyword(target="engine", kind=int, minimum=1),
    "qat_learning_rate": Keyword(target="engine", kind=float, positive=True),
    "serve": Keyword(target="engine", kind=str),
    "url": Keyword(target="engine", kind=str),
    "api_key_env": Keyword(target="engine", kind=str),
    "hardware": Keyword(target="engine", kind=str),
    "engine_options": Keyword(target="engine", kind=dict),
    "isl": Keyword(target="workload", kind=int, minimum=1, also=str),
    "osl": Keyword(target="workload", kind=int, minimum=1, also=str),
    "concurrency": Keyword(target="workload", kind=int, minimum=1),
    "request_rate": Keyword(target="workload", kind=float, also=int),
    "arrival": Keyword(target="workload", kind=str),
    "burstiness": Keyword(target="workload", kind=float, also=int),
    "shared_prefix": Keyword(target="workload", kind=float, also=int),
    "num_requests": Keyword(target="workload", kind=int, minimum=1),
    "rounds": Keyword(target="workload", kind=int, minimum=1),
    "warmup_rounds": Keyword(target="workload", kind=int),
    "seed": Keyword(target="workload", kind=int),
    "sessions": Keyword(target="workload", kind=int),
    "task": Keyword(target="task", kind=str),
    "num_fewshot": Keyword(target="task", kind=int),
    "limit": Keyword(target="task", kind=int, minimum=1),
    "group_by": Keyword(target="task", kind=str),
    "early_stop": Keyword(target="task", kind=bool),
}
"""Every keyword of the `inferperf` mark. A list value is a cross product, except in `engine_options`."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where marks stand: what relative paths are relative to, and what the command line overrides."""

    folder: Path
    """The folder of the test file."""

    overrides: tuple[tuple[str, Scalar], ...] = ()
    """`--inferperf-set` pairs; a dotted `engine_options.NAME` sets one option."""

    backends: tuple[str, ...] = ()
    """Valid backend names; empty when a third-party hook may accept any."""

    default_backend: str = "auto"


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
        _check_value(name, KEYWORDS[name], item)
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
            _check_value(name, keyword, item)
        if many and len(set(value)) != len(value):
            raise MarkError(f"inferperf: {name}={value!r} repeats a value.")


def check_value(name: str, value: object) -> None:
    """Check one value of a keyword of `KEYWORDS`. Raises `MarkError`."""
    _check_value(name, KEYWORDS[name], value)


def _check_value(name: str, keyword: Keyword, value: object) -> None:
    fits = isinstance(value, keyword.kind) or (keyword.also is not None and isinstance(value, keyword.also))
    if not fits or isinstance(value, bool) is not (keyword.kind is bool):
        raise MarkError(
            f"inferperf: {name}={value!r} is {article(type(value).__name__)}; {name} takes {keyword.kinds}"
            f"{'' if keyword.kind is dict else ', or a list of them'}."
        )
    if isinstance(value, float) and (not math.isfinite(value) or (keyword.positive and value <= keyword.minimum)):
        low = f"above {keyword.minimum:g}, and " if keyword.positive else ""
        raise MarkError(f"inferperf: {name}={value} is out of range: {low}finite.")
    if isinstance(value, int | float) and value < keyword.minimum:
        raise MarkError(f"inferperf: {name}={value} is below its minimum {keyword.minimum}.")
    if isinstance(value, str) and not value:
        raise MarkError(f"inferperf: {name} is empty.")
    if name == "quant" and (wrong := check_quant(str(value))):
        raise MarkError(f"inferperf: unknown quant {value!r}.\n{wrong}")
    if name == "kv_cache_dtype" and value not in KV_CACHE_DTYPES:
        raise MarkError(
            f"inferperf: unknown kv_cache_dtype {value!r}.\n{choices(value, KV_CACHE_DTYPES, what='KV cache types')}"
        )
    if isinstance(value, dict):
        for option, item in value.items():
            if isinstance(option, str) and _SECRET.search(option):
                raise MarkError(
                    f"inferperf: engine option {option!r} looks like a secret; options are written into results and "
                    "baselines. Let the engine read it from the environment."
                )
            if isinstance(item, float) and not math.isfinite(item):
                raise MarkError(f"inferperf: engine option {option!r} is {item}; give a finite number.")
            if not isinstance(option, str) or not isinstance(item, str | int | float | bool | None):
                raise MarkError(
                    f"inferperf: engine_options={{{option!r}: {item!r}}}: names are strings; values are strings, "
                    "numbers, booleans or None."
                )


_SECRET = re.compile(r"(?i)api_?key|secret|password|passwd|credential|authorization|(^|_)token$")


def _override(merged: dict[str, Any], origin: Origin) -> None:
    """Apply `--inferperf-set`: to every mark, but a workload keyword only to workloads, a task keyword to tasks."""
    for name, value in origin.overrides:
        if name.startswith("engine_options."):
            option = {name.removeprefix("engine_options."): value}
            _check_value("engine_options", KEYWORDS["engine_options"], option)
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
            _check_value(name, keyword, value)
        except MarkError as error:
            raise MarkError(f"--inferperf-set: {str(error).removeprefix('inferperf: ')}") from None
        if keyword.target == "workload" and "isl" not in merged and "osl" not in merged:
            continue
        if keyword.target == "task" and "task" not in merged:
            continue
        for either in (_SERVERS, LOOPS):
            # The command line says where the engine is, and which loop it is under, whatever the mark said.
            for other in either if name in either else ():
                merged.pop(other, None)
        merged[name] = value


_SERVERS = ("serve", "url")


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
    load = make_workload(workload) if workload else None
    case = Case(engine=_engine(pick("engine"), origin), workload=load, task=_task(task, origin) if task else None)
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


def _engine(values: dict[str, Any], origin: Origin) -> EngineSpec:
    model = str(values["model"])
    folder = _model_folder("model", model, origin)
    for name in ("calib_dataset", "qat_dataset"):
        if texts := values.get(name, ""):
            found = _existing(texts, origin.folder)
            if found is None or not found.is_file():
                raise MarkError(
                    f"inferperf: {name}={texts!r}: no such file, relative to {origin.folder}. "
                    'Give a JSONL file with a "text" field per line.'
                )
            values[name] = str(found)
    backend = _server_backend(values, origin) or values.setdefault("backend", origin.default_backend)
    if origin.backends and backend not in origin.backends:
        raise MarkError(
            f"inferperf: unknown backend {backend!r}.\n{choices(backend, origin.backends, what='Backends')}"
        )
    _check_precision(values, folder, origin)
    values["model"] = str(folder) if folder is not None else model
    # A hub id's last part, or the folder's name: what the model is called, not where it lies.
    values.setdefault("served_model_name", (folder.name if folder else model.rsplit("/", 1)[-1]).lower())
    options = dict(values.get("engine_options", {}))
    if isinstance(draft := options.get("draft_model"), str):
        options["draft_model"] = str(_model_folder("engine option draft_model", draft, origin) or draft)
    values["engine_options"] = tuple(sorted(options.items()))
    spec = EngineSpec(**values)
    if spec.server:
        _check_server(spec)
    return spec


def _model_folder(keyword: str, model: str, origin: Origin) -> Path | None:
    """Find the folder of a model; None for a hub id. Raises `MarkError`."""
    folder = _existing(model, origin.folder)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise MarkError(f"inferperf: {keyword}={model!r}: {folder} has no config.json; give a Hugging Face folder.")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        raise MarkError(
            f"inferperf: {keyword}={model!r}: no such folder, relative to {origin.folder}. "
            'Give a folder in Hugging Face layout, or a hub id such as "org/name".'
        )
    return folder


def _server_backend(values: dict[str, Any], origin: Origin) -> str:
    """Set the backend of an engine in a server, and return it; "" for any other engine. Raises `MarkError`."""
    given = [name for name in _SERVERS if values.get(name)]
    if len(given) > 1:
        raise MarkError(
            f"inferperf: serve={values['serve']!r} and url={values['url']!r}: a server is started here, or runs "
            "elsewhere already. Keep one."
        )
    backend = values.get("backend", "auto")
    if not given:
        if (backend if backend != "auto" else origin.default_backend) == "openai":
            raise MarkError(
                'inferperf: backend="openai" is an engine in a server: say which to start (serve="vllm"), or where one '
                'runs (url="http://host:8000").'
            )
        for name in ("api_key_env", "hardware"):
            if values.get(name):
                raise MarkError(f"inferperf: {name}={values[name]!r} is about an endpoint, and url= is missing.")
        return ""
    if backend not in ("auto", "openai"):
        raise MarkError(
            f"inferperf: backend={backend!r} runs in a process of our own, and {given[0]}={values[given[0]]!r} is a "
            'server. Leave backend out, or say backend="openai".'
        )
    values["backend"] = "openai"
    return "openai"


def _check_server(spec: EngineSpec) -> None:
    """Refuse at collection what could never be opened."""
    if spec.serve:
        from pytest_inferperf.engines.servers.presets import plan_launch

        for name in ("api_key_env", "hardware"):
            if getattr(spec, name):
                raise MarkError(
                    f"inferperf: {name}={getattr(spec, name)!r} is about an endpoint (url=); serve= starts a server on "
                    "this machine."
                )
        try:
            plan_launch(spec.serve, spec, model=spec.model, port=1)
        except EngineError as error:
            raise MarkError(f"inferperf: {error}") from None
        return
    from pytest_inferperf.engines.openai.endpoint import Endpoint

    try:
        Endpoint.parse(spec.url, model=spec.model)
    except SettingsError as error:
        raise MarkError(f"inferperf: {error}") from None


def engine_like(spec: EngineSpec, changes: Mapping[str, Any], origin: Origin) -> EngineSpec:
    """Return a resolved engine with other keywords, checked as the `inferperf` mark checks them.

    `engine_options` merge key by key. What belongs to the old quantization (its recipe; for BF16 the KV cache type and
    the calibration too) does not outlive it, nor does a name that was given to another model. Raises `MarkError`.
    """
    values = {item.name: getattr(spec, item.name) for item in fields(EngineSpec)}
    if changes.get("quant", spec.quant) != spec.quant:
        values["recipe"] = ""
        if changes["quant"] == "BF16":
            for name in ("kv_cache_dtype", "calib_dataset", "calib_size"):
                del values[name]
    if "model" in changes:
        del values["served_model_name"]
    if any(name in changes for name in _SERVERS):
        # Another place to run in: what was said about the old one does not hold there.
        for name in (*_SERVERS, "backend", "api_key_env", "hardware"):
            del values[name]
    options = {**dict(spec.engine_options), **changes.get("engine_options", {})}
    return _engine({**values, **changes, "engine_options": options}, origin)


def _check_precision(values: Mapping[str, Any], folder: Path | None, origin: Origin) -> None:
    """Refuse what the shipped backends could only refuse after a build has begun."""
    quant, recipe = values.get("quant", "BF16"), values.get("recipe", "")
    kv_cache = values.get("kv_cache_dtype", "auto")
    if quant == "BF16" and (recipe or kv_cache != "auto"):
        given = f"recipe={recipe!r}" if recipe else f"kv_cache_dtype={kv_cache!r}"
        raise MarkError(f'inferperf: {given} needs a quantized checkpoint, and quant is BF16. Name one: quant="FP8".')
    if recipe == QAT and not values.get("qat_dataset"):
        raise MarkError(
            'inferperf: recipe="qat" trains the quantized model. Give texts like those the model was trained on, and none '
            'that a task asks: qat_dataset="texts.jsonl", a "text" field per line.'
        )
    if not origin.backends:
        return
    row = QUANTIZATIONS.get(quant)
    built_here = not values.get("url") and folder is not None and not (folder / "hf_quant_config.json").is_file()
    if row is not None and row.needs_calibration and built_here and not values.get("calib_dataset"):
        raise MarkError(
            f"inferperf: quant={quant!r} is calibrated. Give texts like those the model will see: "
            'calib_dataset="texts.jsonl", a "text" field per line.'
        )
    split = [f"{name}={values[name]}" for name in ("tp", "pp", "ep") if values.get(name, 1) != 1]
    if split and values["backend"] == "transformers":
        raise MarkError(f"inferperf: {', '.join(split)}: the transformers backend runs on one device.")


def _existing(name: str, folder: Path) -> Path | None:
    try:
        path = (folder / Path(name).expanduser()).resolve()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError) as error:
        # Too long, a NUL in it, or the home of nobody.
        raise MarkError(f"inferperf: {name[:80]!r} cannot be a path: {error}") from None


def _task(values: dict[str, Any], origin: Origin) -> Task:
    name = str(values.pop("task"))
    path = ""
    if name.endswith((".yaml", ".yml")):
        found = _existing(name, origin.folder)
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
        shown |= {"isl", "osl", *LOOPS, "arrival", "burstiness", "shared_prefix"}
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


def parse_requires_gpu(marks: Sequence[pytest.Mark]) -> GpuRequirement | None:
    """Turn the innermost `requires_gpu` mark, the first, into a requirement; None without one. Raises `MarkError`."""
    if not marks:
        return None
    mark = marks[0]
    values = keywords_of(mark, [item.name for item in fields(GpuRequirement)])
    for name, value in values.items():
        if number(mark, name, value) < 0:
            raise MarkError(f"{mark.name}: {name}={value!r} is negative.")
        if name != "memory_gib" and not isinstance(value, int):
            raise MarkError(f"{mark.name}: {name}={value!r} is {article(type(value).__name__)}; it takes an int.")
    if values.get("count", 1) < 1:
        raise MarkError(f"{mark.name}: count={values['count']!r} is below its minimum 1.")
    return GpuRequirement(**values)
