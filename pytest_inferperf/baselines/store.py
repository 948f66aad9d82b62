"""Baseline files as values: where they are, reading, writing out, and looking up the entry of a case.

<root>/performance/<hardware>/<model>.json    one entry per precision, parallelism and workload
<root>/accuracy/<model>.json                  one entry per task and metric, one score per precision in it
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pytest_inferperf.baselines.documents import SCHEMA_VERSION, check_schema, dump_json, parse_json
from pytest_inferperf.baselines.entries import (
    AccuracyEntry,
    Anchor,
    MetricBaseline,
    Missing,
    PerformanceEntry,
    Provenance,
    ScoreEntry,
    accuracy_key,
    performance_key,
)
from pytest_inferperf.baselines.outcomes import (
    decode,
    decode_bits,
    decode_logprobs,
    encode,
    encode_bits,
    encode_logprobs,
)
from pytest_inferperf.errors import BaselineError, MarkError, SettingsError, choices
from pytest_inferperf.model.case import Case, EngineSpec, Task, Workload
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, check_quant, precision_key, split_precision
from pytest_inferperf.model.results import Hardware, Repeat, slug
from pytest_inferperf.model.workload import WORKLOAD_IDENTITY

__all__ = [
    "AccuracyFile",
    "PerformanceFile",
    "accuracy_identity",
    "accuracy_path",
    "baseline_files",
    "dump_accuracy",
    "dump_performance",
    "load_accuracy",
    "load_performance",
    "lookup_accuracy",
    "lookup_performance",
    "other_server",
    "parse_accuracy",
    "parse_performance",
    "performance_identity",
    "performance_path",
    "read_accuracy",
    "read_bytes",
    "read_performance",
    "shown_path",
    "stored_score",
]

_ENGINE_IDENTITY = ("quant", "kv_cache_dtype", "tp", "pp", "ep")
_PERFORMANCE_IDENTITY = (*_ENGINE_IDENTITY, *WORKLOAD_IDENTITY, "serve", "recipe")
_ACCURACY_IDENTITY = ("task", "num_fewshot", "limit")
_LONGEST_NAME = 255 - len(".json") - len("..0123456789abcdef.tmp")
"""Characters of a file or folder name that leave room for what is added to it while it is written."""


@dataclass(frozen=True, kw_only=True)
class PerformanceFile:
    """Everything recorded for one model on one kind of hardware."""

    model: str
    hardware: Hardware
    entries: Mapping[str, PerformanceEntry]
    """By key: `NVFP4-tp8-isl1024-osl1024-c64`."""


@dataclass(frozen=True, kw_only=True)
class AccuracyFile:
    """Everything recorded for one model, whatever it runs on."""

    model: str
    tasks: Mapping[str, AccuracyEntry]
    """By key: `gsm8k-exact_match`, `gsm8k-fewshot5-limit250-exact_match`."""


def performance_path(root: Path, hardware: Hardware, case: Case) -> Path:
    """Return the file that holds, or would hold, the performance baseline of a case."""
    folder = _checked(hardware.slug, hardware.name, "the hardware's name")
    return _inside(root, root / "performance" / folder / _model_file(case))


def accuracy_path(root: Path, case: Case) -> Path:
    """Return the file that holds, or would hold, the accuracy baselines of a case's model."""
    return _inside(root, root / "accuracy" / _model_file(case))


def shown_path(root: Path, path: Path) -> str:
    """Name a baseline file relative to the root's parent: `baselines/performance/nvidia-b200-8x/x.json`."""
    parent = root.absolute().parent
    full = path.absolute()
    return full.relative_to(parent).as_posix() if full.is_relative_to(parent) else path.as_posix()


def baseline_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the performance files and the accuracy files below `root`, sorted."""
    performance = sorted((root / "performance").glob("*/*.json"))
    accuracy = sorted((root / "accuracy").glob("*.json"))
    return [_inside(root, path) for path in performance], [_inside(root, path) for path in accuracy]


def lookup_performance(root: Path, hardware: Hardware, case: Case) -> PerformanceEntry | Missing:
    """Find the entry of a case measured on `hardware`.

    Raises `BaselineError` for a file that cannot be read or belongs to another model or other hardware.
    """
    path, key = performance_path(root, hardware, case), performance_key(case)
    shown = shown_path(root, path)
    file = load_performance(root, hardware, case)
    if file is None:
        return Missing(path=shown, key=key, reason="no such file")
    entry = file.entries.get(key)
    if entry is None:
        return Missing(path=shown, key=key, reason="no such entry")
    other = other_server(entry, case)
    return Missing(path=shown, key=key, reason=other) if other else entry


def other_server(entry: PerformanceEntry, case: Case) -> str:
    """Say that an entry was measured behind another server; "" where it was not.

    A key holds the command line in lower case letters, digits, `.` and `-`: `-c 4` and `-C 4` give the same.
    """
    stored = str(entry.identity.get("serve", ""))
    return "" if stored == case.engine.server else f"the entry is that of serve={stored!r}"


def lookup_accuracy(root: Path, case: Case, metric: str) -> AccuracyEntry | Missing:
    """Find the entry of a case's task and an lm-eval metric of it, with the scores of every recorded precision.

    Raises `BaselineError` for a file that cannot be read or belongs to another model.
    """
    path, key = accuracy_path(root, case), accuracy_key(case, metric)
    shown = shown_path(root, path)
    file = load_accuracy(root, case)
    if file is None:
        return Missing(path=shown, key=key, reason="no such file")
    return file.tasks.get(key) or Missing(path=shown, key=key, reason="no such entry")


def stored_score(root: Path, case: Case, *, metric: str | None = None) -> float | None:
    """Return what the case's task is known to score, a share between 0 and 1; None where nothing says so.

    The case's own precision is asked before any other, and `metric` before the others of the task. A file that cannot
    be read says nothing here; the judge reports it.
    """
    try:
        file = load_accuracy(root, case) if case.task is not None else None
    except BaselineError:
        return None
    found = [
        (name != case.engine.precision, entry.metric != metric, name, stored.score)
        for entry in (file.tasks.values() if file is not None else ())
        if entry.higher_is_better and dict(entry.identity) == accuracy_identity(case, entry.metric)
        for name, stored in entry.scores.items()
        if 0 < stored.score <= 1
    ]
    return min(found)[-1] if found else None


def load_performance(root: Path, hardware: Hardware, case: Case) -> PerformanceFile | None:
    """Read the performance file of a case and check that it belongs to it; None where there is none."""
    path = performance_path(root, hardware, case)
    shown = shown_path(root, path)
    raw = read_bytes(path, shown)
    if raw is None:
        return None
    file = _parse_performance(raw, shown)
    _check_model(file.model, case.engine.served_model_name, shown)
    if file.hardware != hardware:
        raise BaselineError(
            f"{shown}: holds baselines of {_hardware_words(file.hardware)}, but the engine runs on"
            f" {_hardware_words(hardware)}. Correct the file's hardware, or move it to where it belongs."
        )
    return file


def load_accuracy(root: Path, case: Case) -> AccuracyFile | None:
    """Read the accuracy file of a case and check that it belongs to it; None where there is none."""
    path = accuracy_path(root, case)
    shown = shown_path(root, path)
    raw = read_bytes(path, shown)
    if raw is None:
        return None
    file = _parse_accuracy(raw, shown)
    _check_model(file.model, case.engine.served_model_name, shown)
    return file


def read_performance(path: Path, *, shown: str = "") -> PerformanceFile:
    """Read a whole performance file. Raises `BaselineError` for whatever is wrong with it."""
    return _parse_performance(_read_existing(path, shown or str(path)), shown or str(path))


def read_accuracy(path: Path, *, shown: str = "") -> AccuracyFile:
    """Read a whole accuracy file. Raises `BaselineError` for whatever is wrong with it."""
    return _parse_accuracy(_read_existing(path, shown or str(path)), shown or str(path))


def read_bytes(path: Path, shown: str) -> bytes | None:
    """Return the bytes of a file, None where there is none. Raises `BaselineError` where it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise BaselineError(f"{shown}: cannot be read: {problem.strerror or problem}.") from None


def dump_performance(file: PerformanceFile) -> str:
    """Write out a performance file; `read_performance` is its inverse."""
    return dump_json(
        {
            "schema_version": SCHEMA_VERSION,
            "model": file.model,
            "hardware": {"name": file.hardware.name, "count": file.hardware.count, "kind": file.hardware.kind},
            "entries": {key: _performance_to_json(entry) for key, entry in file.entries.items()},
        }
    )


def dump_accuracy(file: AccuracyFile) -> str:
    """Write out an accuracy file; `read_accuracy` is its inverse, but for scores beyond float16's precision."""
    return dump_json(
        {
            "schema_version": SCHEMA_VERSION,
            "model": file.model,
            "tasks": {key: _accuracy_to_json(entry) for key, entry in file.tasks.items()},
        }
    )


def performance_identity(case: Case) -> dict[str, str | int]:
    """Return what a performance entry stores beside its key. The model and the hardware are named by the file."""
    return {name: value for name, value in case.identity().items() if name in _PERFORMANCE_IDENTITY}


def accuracy_identity(case: Case, metric: str) -> dict[str, str | int]:
    """Return what an accuracy entry stores beside its key. The precision is a level below it."""
    found = {name: value for name, value in case.identity().items() if name in _ACCURACY_IDENTITY}
    return found | {"metric": metric}


def _model_file(case: Case) -> str:
    name = case.engine.served_model_name
    return _checked(slug(name), name, "served_model_name") + ".json"


def _checked(part: str, name: str, what: str) -> str:
    """Check that a name makes a file or folder name."""
    if len(part) > _LONGEST_NAME:
        raise BaselineError(
            f"{what} {name[:40]!r}… has {len(name)} characters; baselines are filed under it, and a file name has room"
            f" for {_LONGEST_NAME}. Give a shorter one."
        )
    return part


def _inside(root: Path, path: Path) -> Path:
    """Check that a path stays in the root, links included. A name is a slug already; this is the second lock."""
    try:
        real, real_root = path.resolve(), root.resolve()
    except (OSError, RuntimeError) as problem:
        raise BaselineError(f"{shown_path(root, path)}: cannot be read: {problem}.") from None
    if not real.is_relative_to(real_root):
        raise BaselineError(
            f"{shown_path(root, path)}: leads to {real}, outside of {real_root}."
            " Baselines stay inside their root folder."
        )
    return path


def _check_model(found: str, wanted: str, shown: str) -> None:
    if found != wanted:
        raise BaselineError(
            f"{shown}: holds baselines of model {found!r}, but the model is {wanted!r}; both names give the same file"
            " name. Give one of them another served_model_name."
        )


def _hardware_words(hardware: Hardware) -> str:
    return f"{hardware.count} x {hardware.name} ({hardware.kind})"


def _read_existing(path: Path, shown: str) -> bytes:
    raw = read_bytes(path, shown)
    if raw is None:
        raise BaselineError(f"{shown}: no such file.")
    return raw


def _parse(raw: bytes, shown: str) -> Any:
    hint = f"Restore it (git restore {shown}) or delete it and record it again."
    return parse_json(raw, shown, error=BaselineError, cut_short=hint, hint=hint)


# Every case of a suite looks into the same few files, and checking one takes half a second for 100 entries. The key is
# the whole content, so a changed file is parsed anew whatever its time stamp says; nobody modifies what is returned.
@functools.lru_cache(maxsize=32)
def _parse_performance(raw: bytes, shown: str) -> PerformanceFile:
    return parse_performance(_parse(raw, shown), shown)


@functools.lru_cache(maxsize=32)
def _parse_accuracy(raw: bytes, shown: str) -> AccuracyFile:
    return parse_accuracy(_parse(raw, shown), shown)


def parse_performance(data: Any, shown: str) -> PerformanceFile:
    """Check the data of a performance file and make it a value. Raises `BaselineError` for whatever is wrong with it."""
    check_schema(data, "performance", shown, error=BaselineError)
    return PerformanceFile(
        model=data["model"],
        hardware=Hardware(**data["hardware"]),
        entries={key: _performance_from_json(shown, key, entry) for key, entry in data["entries"].items()},
    )


def parse_accuracy(data: Any, shown: str) -> AccuracyFile:
    """Check the data of an accuracy file and make it a value. Raises `BaselineError` for whatever is wrong with it."""
    check_schema(data, "accuracy", shown, error=BaselineError)
    return AccuracyFile(
        model=data["model"],
        tasks={key: _accuracy_from_json(shown, key, entry) for key, entry in data["tasks"].items()},
    )


def _performance_from_json(shown: str, key: str, data: dict[str, Any]) -> PerformanceEntry:
    where = f'{shown}: $.entries["{key}"]'
    identity: dict[str, Any] = data["identity"]
    _check_precision(identity["quant"], identity["kv_cache_dtype"], f"{where}.identity")
    sizes = {name: identity[name] for name in _ENGINE_IDENTITY}
    others = {name: identity.get(name, "") for name in ("serve", "recipe")}
    engine = EngineSpec(model="", served_model_name="", **others, **sizes)
    case = Case(engine=engine, workload=Workload.from_identity(identity))
    try:
        expected = performance_key(case)
    except SettingsError as problem:
        raise BaselineError(f"{where}.identity: {problem}") from None
    _check_key(key, expected, where)
    for name in data["metrics"]:
        try:
            parse_metric(name)
        except MarkError as problem:
            message = f"{where}.metrics: {problem}"
        else:
            continue
        raise BaselineError(message)
    metrics = {
        name: MetricBaseline(
            sessions=tuple(tuple(map(float, rounds)) for rounds in item.get("sessions", ())),
            value=float(item["value"]) if "value" in item else None,
            tolerance=item.get("tolerance"),
            anchor=Anchor(**item["anchor"]) if "anchor" in item else None,
        )
        for name, item in data["metrics"].items()
    }
    return PerformanceEntry(
        path=shown,
        key=key,
        identity=identity,
        metrics=metrics,
        warmup_rounds=data.get("warmup_rounds", 0),
        provenance=Provenance(**data["provenance"]),
        context=data.get("context", {}),
    )


def _performance_to_json(entry: PerformanceEntry) -> dict[str, Any]:
    data: dict[str, Any] = {
        "identity": dict(entry.identity),
        "provenance": _provenance_to_json(entry.provenance),
        "context": dict(entry.context),
        "metrics": {name: _metric_to_json(item) for name, item in entry.metrics.items()},
    }
    if entry.provenance.kind == "measured":
        data["warmup_rounds"] = entry.warmup_rounds
    return data


def _metric_to_json(item: MetricBaseline) -> dict[str, Any]:
    data: dict[str, Any] = {"value": item.value} if item.value is not None else {"sessions": item.sessions}
    if item.tolerance is not None:
        data["tolerance"] = item.tolerance
    return data | _anchor_to_json(item.anchor)


def _accuracy_from_json(shown: str, key: str, data: dict[str, Any]) -> AccuracyEntry:
    where = f'{shown}: $.tasks["{key}"]'
    identity: dict[str, Any] = data["identity"]
    task = Task(name=identity["task"], num_fewshot=identity.get("num_fewshot"), limit=identity.get("limit"))
    case = Case(engine=EngineSpec(model="", served_model_name=""), task=task)
    _check_key(key, accuracy_key(case, identity["metric"]), where)
    documents = cast("dict[str, Any]", data.get("documents", {"count": 0, "digest": ""}))
    scores = {
        precision: _score_from_json(f'{where}.scores["{precision}"]', precision, item, documents["count"])
        for precision, item in data["scores"].items()
    }
    if not documents["digest"] and any(item.outcomes for item in scores.values()):
        raise BaselineError(f"{where}: the key 'documents' is missing: measured scores need it.")
    return AccuracyEntry(
        path=shown,
        key=key,
        identity=identity,
        metric=identity["metric"],
        higher_is_better=data["higher_is_better"],
        documents_digest=documents["digest"],
        num_documents=documents["count"],
        scores=scores,
    )


def _score_from_json(where: str, precision: str, data: dict[str, Any], count: int) -> ScoreEntry:
    quant, kv_cache_dtype, recipe = split_precision(precision)
    _check_precision(quant, kv_cache_dtype, where)
    written = precision_key(quant, kv_cache_dtype, recipe)
    if precision != written:
        raise BaselineError(f"{where}: the default KV cache type is not written out: use {written!r} as the key.")
    outcomes = decode(data["outcomes"], where=f"{where}.outcomes") if "outcomes" in data else ()
    flags = data.get("unparseable")
    unparseable = None if flags is None else decode_bits(flags, where=f"{where}.unparseable")
    for name, found in (("outcomes", outcomes), ("unparseable", unparseable)):
        if "outcomes" in data and count and found is not None and len(found) != count:
            raise BaselineError(f"{where}.{name}: {len(found)} for {count} documents. Every document has one.")
    return ScoreEntry(
        score=float(data["score"]),
        outcomes=outcomes,
        unparseable=unparseable,
        provenance=Provenance(**data["provenance"]),
        context=data.get("context", {}),
        repeat=Repeat(**data["repeat"]) if "repeat" in data else None,
        logprobs=decode_logprobs(data["logprobs"], where=f"{where}.logprobs") if "logprobs" in data else None,
        anchor=Anchor(**data["anchor"]) if "anchor" in data else None,
    )


def _accuracy_to_json(entry: AccuracyEntry) -> dict[str, Any]:
    data: dict[str, Any] = {
        "identity": dict(entry.identity),
        "higher_is_better": entry.higher_is_better,
        "scores": {precision: _score_to_json(score) for precision, score in entry.scores.items()},
    }
    if entry.documents_digest:
        data["documents"] = {"count": entry.num_documents, "digest": entry.documents_digest}
    return data


def _score_to_json(score: ScoreEntry) -> dict[str, Any]:
    data: dict[str, Any] = {
        "score": score.score,
        "provenance": _provenance_to_json(score.provenance),
        "context": dict(score.context),
    }
    if score.provenance.kind == "measured":
        data["outcomes"] = encode(score.outcomes)
        data["unparseable"] = None if score.unparseable is None else encode_bits(score.unparseable)
    if score.repeat is not None:
        data["repeat"] = {"questions": score.repeat.questions, "flips": score.repeat.flips}
    if score.logprobs is not None:
        data["logprobs"] = encode_logprobs(score.logprobs)
    return data | _anchor_to_json(score.anchor)


def _provenance_to_json(provenance: Provenance) -> dict[str, Any]:
    data = {"kind": provenance.kind, "reason": provenance.reason, "recorded": provenance.recorded}
    optional = ("source", "author", "commit", "results")
    return data | {name: getattr(provenance, name) for name in optional if getattr(provenance, name)}


def _anchor_to_json(anchor: Anchor | None) -> dict[str, Any]:
    if anchor is None:
        return {}
    data = {"level": anchor.level, "recorded": anchor.recorded, "commit": anchor.commit}
    return {"anchor": {name: value for name, value in data.items() if value != ""}}


def _check_precision(quant: str, kv_cache_dtype: str, where: str) -> None:
    wrong = check_quant(quant)
    if wrong:
        raise BaselineError(f"{where}: unknown quantization {quant!r}. {wrong}")
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        valid = choices(kv_cache_dtype, KV_CACHE_DTYPES, what="KV cache types")
        raise BaselineError(f"{where}: unknown KV cache type {kv_cache_dtype!r}. {valid}")


def _check_key(key: str, computed: str, where: str) -> None:
    if key != computed:
        raise BaselineError(
            f"{where}: the key does not fit its identity, which gives {computed!r}. Correct one of them."
        )
