"""The file one run writes: what was measured, which gates were asked, and how they were judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pytest_inferperf.baselines.documents import SCHEMA_VERSION, check_schema, dump_json, json_path, parse_json
from pytest_inferperf.baselines.outcomes import (
    decode,
    decode_bits,
    decode_logprobs,
    encode,
    encode_bits,
    encode_logprobs,
)
from pytest_inferperf.baselines.write import write_atomic
from pytest_inferperf.errors import MarkError, ResultFileError
from pytest_inferperf.hiding import hide_in, hider
from pytest_inferperf.model.case import Case, EngineSpec, ReferenceEngine, Task, Workload
from pytest_inferperf.model.gates import (
    AccuracyFloor,
    AccuracyLossCeiling,
    ErrorRateCeiling,
    FrontierFloor,
    Gate,
    PerformanceGate,
    SpeedupFloor,
)
from pytest_inferperf.model.metrics import MetricRef, parse_metric
from pytest_inferperf.model.results import (
    Abba,
    AccuracyResult,
    CaseResult,
    Comparison,
    EngineInfo,
    Flip,
    Flips,
    Frontier,
    Hardware,
    PerformanceResult,
    Placement,
    Point,
    Repeat,
    Round,
    Session,
    TurnFigures,
)
from pytest_inferperf.model.verdicts import GateVerdict, Status, worst

__all__ = [
    "ResultFile",
    "ResultRecord",
    "case_from_json",
    "gate_from_json",
    "gate_to_json",
    "key_names",
    "read_result_file",
    "record_from_json",
    "record_points",
    "record_to_json",
    "write_result_file",
]


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """One test: what it measured, its gates, and their verdicts."""

    nodeid: str
    result: CaseResult
    gates: tuple[Gate, ...] = ()
    verdicts: tuple[GateVerdict, ...] = ()
    status: Status | None = None
    """The verdict of the case; None for one that was not judged."""


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    """Everything one run measured."""

    created: str
    """Date and time, ISO 8601, UTC."""

    environment: Mapping[str, str]
    records: tuple[ResultRecord, ...]


def record_points(record: ResultRecord) -> tuple[ResultRecord, ...]:
    """Return a record for each point of a sweep, as of a test of its own; the record itself where nothing was swept."""
    if record.result.frontier is None:
        return (record,)
    found = []
    for point in record.result.points():
        load = f"{point.case.workload.load_name} " if point.case.workload is not None else ""
        mine = tuple(
            replace(item, gate=item.gate.removeprefix(load)) for item in record.verdicts if item.gate.startswith(load)
        )
        found.append(replace(record, result=point, verdicts=mine, status=worst(mine) if mine else record.status))
    return tuple(found)


def key_names(record: ResultRecord) -> set[str]:
    """Return the environment variables that hold API keys of the endpoints of a record, its references' included."""
    gates = (gate.reference.spec for gate in record.gates if isinstance(gate, SpeedupFloor))
    compared = (item.reference.spec for item in record.result.comparisons)
    return {spec.api_key_env for spec in (record.result.case.engine, *gates, *compared)}


def write_result_file(path: Path, file: ResultFile) -> None:
    """Write the file whole or not at all.

    Secrets in its texts are hidden: the file is an artifact that anybody may be handed.
    A record with a figure that is not finite is left out, and after the others are written `ResultFileError` names it.
    Raises `ResultFileError` also for a file that cannot be written.
    """
    hide = hider(also={name for record in file.records for name in key_names(record)})
    records, problems = [], []
    for record in file.records:
        data = record_to_json(record)
        wrong = _not_finite(data)
        if wrong is None:
            records.append(data)
        else:
            problems.append(f"{path}: {record.nodeid} is left out: {json_path(wrong[0])} is {wrong[1]}.")
    whole = {
        "schema_version": SCHEMA_VERSION,
        "created": file.created,
        "environment": dict(file.environment),
        "records": records,
    }
    write_atomic(path, dump_json(hide_in(whole, hide)), shown=str(path), error=ResultFileError)
    if problems:
        cure = "Whatever could not be measured is left out, not NaN; repair what measures it, and run the test again."
        raise ResultFileError("\n".join([*problems, cure]))


def read_result_file(path: Path) -> ResultFile:
    """Read a result file. Raises `ResultFileError` for whatever is wrong with it."""
    shown = str(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        message = f"{shown}: no such file. A run writes one with --inferperf-json=FILE."
    except OSError as problem:
        message = f"{shown}: cannot be read: {problem.strerror or problem}."
    else:
        return _parse(raw, shown)
    raise ResultFileError(message)


def record_to_json(record: ResultRecord) -> dict[str, Any]:
    """Turn a record into dicts, lists, strings, numbers, booleans and None."""
    return {
        "nodeid": record.nodeid,
        "status": None if record.status is None else record.status.value,
        "result": _result_to_json(record.result),
        "gates": [gate_to_json(gate) for gate in record.gates],
        "verdicts": [_verdict_to_json(verdict) for verdict in record.verdicts],
    }


def record_from_json(data: Mapping[str, Any], *, where: str = "record") -> ResultRecord:
    """Turn plain data back into a record; the schema is not checked here.

    Raises `ResultFileError`, which starts with `where`, for outcomes or metrics that make no sense.
    """
    status = data["status"]
    return ResultRecord(
        nodeid=data["nodeid"],
        result=_result_from_json(data["result"], f"{where}.result"),
        gates=tuple(gate_from_json(item, where=f"{where}.gates[{n}]") for n, item in enumerate(data["gates"])),
        verdicts=tuple(_verdict_from_json(item) for item in data["verdicts"]),
        status=None if status is None else Status(status),
    )


def gate_to_json(gate: Gate) -> dict[str, Any]:
    """Turn a gate into plain data."""
    if isinstance(gate, PerformanceGate):
        return {"type": "performance", "metric": gate.name, "limit": gate.limit, "tolerance": gate.tolerance}
    if isinstance(gate, FrontierFloor):
        names = {"metric": gate.metric.name, "over": gate.over.name}
        return {"type": "frontier_floor", **names, "tolerance": gate.tolerance, "points": gate.points}
    if isinstance(gate, ErrorRateCeiling):
        return {"type": "error_rate_ceiling", "share": gate.share}
    if isinstance(gate, SpeedupFloor):
        return {
            "type": "speedup_floor",
            "metric": gate.metric.name,
            "reference": _reference_to_json(gate.reference),
            "ratio": gate.ratio,
            "tolerance": gate.tolerance,
        }
    kind = "accuracy_floor" if isinstance(gate, AccuracyFloor) else "accuracy_loss_ceiling"
    return {"type": kind} | {item.name: getattr(gate, item.name) for item in fields(gate)}


def gate_from_json(data: Mapping[str, Any], *, where: str = "gate") -> Gate:
    """Turn plain data back into a gate. Raises `ResultFileError` for a metric that does not exist."""
    values = {name: value for name, value in data.items() if name != "type"}
    if data["type"] == "frontier_floor":
        return FrontierFloor(**{**values, **{name: _metric(values[name], where) for name in ("metric", "over")}})
    if data["type"] == "error_rate_ceiling":
        return ErrorRateCeiling(**values)
    if data["type"] == "accuracy_floor":
        return AccuracyFloor(**values)
    if data["type"] == "accuracy_loss_ceiling":
        return AccuracyLossCeiling(**values)
    if data["type"] == "speedup_floor":
        reference = _reference_from_json(values["reference"])
        return SpeedupFloor(**{**values, "metric": _metric(values["metric"], where), "reference": reference})
    return PerformanceGate(**{**values, "metric": _metric(values["metric"], where)})


def case_from_json(data: Mapping[str, Any]) -> Case:
    """Turn the data of `Case.to_json` back into a case."""
    options = tuple(sorted(data["engine"]["engine_options"].items()))
    return Case(
        engine=EngineSpec(**{**data["engine"], "engine_options": options}),
        workload=None if data["workload"] is None else _workload(data["workload"]),
        task=None if data["task"] is None else Task(**data["task"]),
    )


def _parse(raw: bytes, shown: str) -> ResultFile:
    data = parse_json(
        raw,
        shown,
        error=ResultFileError,
        cut_short="The run was interrupted or the copy is incomplete: copy the file again, or repeat the run.",
        hint="A result file is what --inferperf-json writes.",
    )
    check_schema(data, "result", shown, error=ResultFileError)
    return ResultFile(
        created=data["created"],
        environment=data["environment"],
        records=tuple(
            record_from_json(item, where=f"{shown}: $.records[{number}]") for number, item in enumerate(data["records"])
        ),
    )


def _metric(name: str, where: str) -> MetricRef:
    try:
        return parse_metric(name)
    except MarkError as problem:
        message = f"{where}: {problem}"
    raise ResultFileError(message)


def _result_to_json(result: CaseResult) -> dict[str, Any]:
    return {
        "case": result.case.to_json(),
        "engine": None if result.engine is None else _engine_to_json(result.engine),
        "performance": None if result.performance is None else _performance_to_json(result.performance),
        **({} if result.frontier is None else {"frontier": _frontier_to_json(result.frontier)}),
        "accuracy": None if result.accuracy is None else _accuracy_to_json(result.accuracy),
        "comparisons": [_comparison_to_json(item) for item in result.comparisons],
        "invalid": result.invalid,
        "context": dict(result.context),
        **({"notes": list(result.notes)} if result.notes else {}),
        **({} if result.placement is None else {"placement": _as_dict(result.placement)}),
    }


def _result_from_json(data: Mapping[str, Any], where: str) -> CaseResult:
    engine, performance, accuracy = data["engine"], data["performance"], data["accuracy"]
    frontier = data.get("frontier")
    return CaseResult(
        case=case_from_json(data["case"]),
        engine=None if engine is None else _engine_from_json(engine),
        performance=None if performance is None else _performance_from_json(performance, f"{where}.performance"),
        frontier=None if frontier is None else _frontier_from_json(frontier, f"{where}.frontier"),
        accuracy=None if accuracy is None else _accuracy_from_json(accuracy, f"{where}.accuracy"),
        comparisons=tuple(
            _comparison_from_json(item, f"{where}.comparisons[{number}]")
            for number, item in enumerate(data["comparisons"])
        ),
        invalid=data["invalid"],
        context=data["context"],
        notes=tuple(data.get("notes", ())),
        placement=Placement(**data["placement"]) if "placement" in data else None,
    )


def _engine_to_json(engine: EngineInfo) -> dict[str, Any]:
    data = _as_dict(engine)
    return data | {
        "hardware": engine.hardware.to_json(),
        "options": _plain(engine.options),
        "versions": dict(engine.versions),
    }


def _engine_from_json(data: Mapping[str, Any]) -> EngineInfo:
    return EngineInfo(**{**data, "hardware": Hardware(**data["hardware"])})


def _reference_to_json(reference: ReferenceEngine) -> dict[str, Any]:
    return _as_dict(reference) | {"spec": Case(engine=reference.spec).to_json()["engine"]}


def _reference_from_json(data: Mapping[str, Any]) -> ReferenceEngine:
    case = case_from_json({"engine": data["spec"], "workload": None, "task": None})
    return ReferenceEngine(**{**data, "spec": case.engine})


def _comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "reference": _reference_to_json(comparison.reference),
        "engine": _engine_to_json(comparison.engine),
        "blocks": [
            {"reference": _rounds_to_json(item.reference), "candidate": _rounds_to_json(item.candidate)}
            for item in comparison.blocks
        ],
        "warmup_rounds": comparison.warmup_rounds,
        "accuracy": None if comparison.accuracy is None else _accuracy_to_json(comparison.accuracy),
        "telemetry": [dict(item) for item in comparison.telemetry],
    }


def _comparison_from_json(data: Mapping[str, Any], where: str) -> Comparison:
    accuracy = data["accuracy"]
    return Comparison(
        reference=_reference_from_json(data["reference"]),
        engine=_engine_from_json(data["engine"]),
        blocks=tuple(
            Abba(
                reference=_rounds_from_json(item["reference"], where),
                candidate=_rounds_from_json(item["candidate"], where),
            )
            for item in data["blocks"]
        ),
        warmup_rounds=data["warmup_rounds"],
        accuracy=None if accuracy is None else _accuracy_from_json(accuracy, f"{where}.accuracy"),
        telemetry=tuple(data["telemetry"]),
    )


def _rounds_to_json(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    found = [
        _as_dict(item) | {"metrics": dict(item.metrics), "turns": [_as_dict(turn) for turn in item.turns]}
        for item in rounds
    ]
    # What a round does not have is left out.
    return [{name: value for name, value in item.items() if value not in (None, [])} for item in found]


def _rounds_from_json(data: Sequence[Mapping[str, Any]], where: str) -> tuple[Round, ...]:
    for name in sorted({name for item in data for name in item["metrics"]}):
        _metric(name, where)
    return tuple(
        Round(**{**item, "turns": tuple(TurnFigures(**turn) for turn in item.get("turns", ()))}) for item in data
    )


def _performance_to_json(performance: PerformanceResult) -> dict[str, Any]:
    return {
        "sessions": [
            {
                "warmup_rounds": session.warmup_rounds,
                "rounds": _rounds_to_json(session.rounds),
                "telemetry": dict(session.telemetry),
            }
            for session in performance.sessions
        ]
    }


def _performance_from_json(data: Mapping[str, Any], where: str) -> PerformanceResult:
    return PerformanceResult(
        sessions=tuple(
            Session(**{**session, "rounds": _rounds_from_json(session["rounds"], where)})
            for session in data["sessions"]
        )
    )


def _frontier_to_json(frontier: Frontier) -> list[dict[str, Any]]:
    return [
        {
            "workload": _as_dict(point.workload) | {"sweep": list(point.workload.sweep)},
            "performance": _performance_to_json(point.performance),
        }
        for point in frontier.points
    ]


def _frontier_from_json(data: Sequence[Mapping[str, Any]], where: str) -> Frontier:
    return Frontier(
        points=tuple(
            Point(
                workload=_workload(item["workload"]),
                performance=_performance_from_json(item["performance"], f"{where}[{number}].performance"),
            )
            for number, item in enumerate(data)
        )
    )


def _workload(data: Mapping[str, Any]) -> Workload:
    return Workload(**{**data, "sweep": tuple(data.get("sweep", ()))})


def _accuracy_to_json(accuracy: AccuracyResult) -> dict[str, Any]:
    flags, asked, repeat = accuracy.unparseable, accuracy.asked, accuracy.repeat
    data = {name: value for name, value in _as_dict(accuracy).items() if name not in ("texts", "flips", "task_sizes")}
    if accuracy.flips:
        data["flips"] = [_as_dict(item) | {"shown": [_as_dict(flip) for flip in item.shown]} for item in accuracy.flips]
    if accuracy.task_sizes is not None:
        data["task_sizes"] = list(accuracy.task_sizes)
    return data | {
        "outcomes": encode(accuracy.outcomes, floats="float64"),
        "asked": None if asked is None else encode_bits(asked),
        "groups": None if accuracy.groups is None else list(accuracy.groups),
        "logprobs": None if accuracy.logprobs is None else encode_logprobs(accuracy.logprobs),
        "repeat": None if repeat is None else _as_dict(repeat),
        "unparseable": None if flags is None else encode_bits(flags),
        "scores": dict(accuracy.scores),
    }


def _accuracy_from_json(data: Mapping[str, Any], where: str) -> AccuracyResult:
    outcomes = decode(data["outcomes"], where=f"{where}.outcomes", error=ResultFileError)
    flags = {
        name: None if data[name] is None else decode_bits(data[name], where=f"{where}.{name}", error=ResultFileError)
        for name in ("asked", "unparseable")
    }
    groups, repeat, logprobs = data["groups"], data["repeat"], data["logprobs"]
    result = AccuracyResult(
        **{
            **data,
            **flags,
            "flips": tuple(
                Flips(**{**item, "shown": tuple(Flip(**flip) for flip in item["shown"])})
                for item in data.get("flips", ())
            ),
            "outcomes": outcomes,
            "task_sizes": tuple(data["task_sizes"]) if "task_sizes" in data else None,
            "groups": None if groups is None else tuple(groups),
            "repeat": None if repeat is None else Repeat(**repeat),
            "logprobs": None
            if logprobs is None
            else decode_logprobs(logprobs, where=f"{where}.logprobs", error=ResultFileError),
        }
    )
    counts = (
        ("unparseable", result.unparseable, len(outcomes)),
        ("groups", result.groups, result.planned),
        ("asked", tuple(filter(None, result.asked or ())) if result.asked is not None else None, len(outcomes)),
    )
    for name, found, expected in counts:
        if found is not None and len(found) != expected:
            raise ResultFileError(f"{where}.{name}: {len(found)} for {expected} documents. Every document has one.")
    if result.task_sizes is not None and sum(result.task_sizes) != len(outcomes):
        total = sum(result.task_sizes)
        raise ResultFileError(f"{where}.task_sizes: {total} for {len(outcomes)} documents. Each is of one task.")
    return result


def _verdict_to_json(verdict: GateVerdict) -> dict[str, Any]:
    return _as_dict(verdict) | {
        "status": verdict.status.value,
        "notes": list(verdict.notes),
        "details": dict(verdict.details),
    }


def _verdict_from_json(data: Mapping[str, Any]) -> GateVerdict:
    return GateVerdict(**{**data, "status": Status(data["status"]), "notes": tuple(data["notes"])})


def _as_dict(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, one level deep."""
    return {item.name: getattr(value, item.name) for item in fields(value)}


def _plain(value: Any) -> Any:
    """Turn a backend's option into JSON; what JSON lacks (a path, an enum) becomes its text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(item) for item in value]
    return str(value)


def _not_finite(value: Any, place: tuple[str | int, ...] = ()) -> tuple[tuple[str | int, ...], float] | None:
    """Find the first number that JSON cannot hold, with its place."""
    if isinstance(value, float) and not math.isfinite(value):
        return place, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (_not_finite(item, (*place, key)) for key, item in inner)
    return next((item for item in found if item is not None), None)
