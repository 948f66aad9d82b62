"""What baseline files hold, and the JSON that they are written as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pytest_inferperf.baselines.documents import SCHEMA_VERSION, check_schema, dump_json
from pytest_inferperf.baselines.entries import (
    AccuracyEntry,
    Anchor,
    MetricBaseline,
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
from pytest_inferperf.hiding import Hide, hide_in, hider
from pytest_inferperf.model.case import Case, EngineSpec, Task, Workload
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, check_quant, precision_key, split_precision
from pytest_inferperf.model.results import Hardware, Repeat

__all__ = [
    "ENGINE_IDENTITY",
    "AccuracyFile",
    "PerformanceFile",
    "dump_accuracy",
    "dump_performance",
    "parse_accuracy",
    "parse_performance",
]

ENGINE_IDENTITY = ("quant", "kv_cache_dtype", "tp", "pp", "ep")


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


def dump_performance(file: PerformanceFile) -> str:
    """Write out a performance file; `read_performance` is its inverse. Secrets in reasons and context are hidden."""
    hide = hider()
    return dump_json(
        {
            "schema_version": SCHEMA_VERSION,
            "model": file.model,
            "hardware": file.hardware.to_json(),
            "entries": {key: _performance_to_json(entry, hide) for key, entry in file.entries.items()},
        }
    )


def dump_accuracy(file: AccuracyFile) -> str:
    """Write out an accuracy file; `read_accuracy` is its inverse, but for scores beyond float16's precision.

    Secrets in reasons and context are hidden.
    """
    hide = hider()
    return dump_json(
        {
            "schema_version": SCHEMA_VERSION,
            "model": file.model,
            "tasks": {key: _accuracy_to_json(entry, hide) for key, entry in file.tasks.items()},
        }
    )


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
    sizes = {name: identity[name] for name in ENGINE_IDENTITY}
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


def _performance_to_json(entry: PerformanceEntry, hide: Hide) -> dict[str, Any]:
    data: dict[str, Any] = {
        "identity": dict(entry.identity),
        **_told(entry, hide),
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
    sizes = tuple(data["task_sizes"]) if "task_sizes" in data else None
    if sizes is not None and sum(sizes) != len(outcomes):
        raise BaselineError(f"{where}.task_sizes: {sum(sizes)} for {len(outcomes)} documents. Each is of one task.")
    return ScoreEntry(
        score=float(data["score"]),
        outcomes=outcomes,
        unparseable=unparseable,
        task_sizes=sizes,
        provenance=Provenance(**data["provenance"]),
        context=data.get("context", {}),
        repeat=Repeat(**data["repeat"]) if "repeat" in data else None,
        logprobs=decode_logprobs(data["logprobs"], where=f"{where}.logprobs") if "logprobs" in data else None,
        anchor=Anchor(**data["anchor"]) if "anchor" in data else None,
    )


def _accuracy_to_json(entry: AccuracyEntry, hide: Hide) -> dict[str, Any]:
    data: dict[str, Any] = {
        "identity": dict(entry.identity),
        "higher_is_better": entry.higher_is_better,
        "scores": {precision: _score_to_json(score, hide) for precision, score in entry.scores.items()},
    }
    if entry.documents_digest:
        data["documents"] = {"count": entry.num_documents, "digest": entry.documents_digest}
    return data


def _score_to_json(score: ScoreEntry, hide: Hide) -> dict[str, Any]:
    data: dict[str, Any] = {
        "score": score.score,
        **_told(score, hide),
    }
    if score.provenance.kind == "measured":
        data["outcomes"] = encode(score.outcomes)
        data["unparseable"] = None if score.unparseable is None else encode_bits(score.unparseable)
    if score.task_sizes is not None:
        data["task_sizes"] = list(score.task_sizes)
    if score.repeat is not None:
        data["repeat"] = {"questions": score.repeat.questions, "flips": score.repeat.flips}
    if score.logprobs is not None:
        data["logprobs"] = encode_logprobs(score.logprobs)
    return data | _anchor_to_json(score.anchor)


def _told(entry: PerformanceEntry | ScoreEntry, hide: Hide) -> dict[str, Any]:
    """Return what people and programs said of an entry. Its identity is as it is: a secret in one is refused."""
    told = {"provenance": _provenance_to_json(entry.provenance), "context": dict(entry.context)}
    return cast("dict[str, Any]", hide_in(told, hide))


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
