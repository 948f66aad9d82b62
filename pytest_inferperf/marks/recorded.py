"""Workloads from files in the `inferperf` mark: the file is found, read and counted at collection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pytest_inferperf.errors import MarkError, SettingsError
from pytest_inferperf.marks.origin import Origin, existing
from pytest_inferperf.model.workload import Workload

__all__ = ["FILES", "check_only_file", "with_dataset", "with_trace"]

_File = TypeVar("_File")


FILES = ("dataset", "trace")
"""Keywords that name a file: a workload has one of them."""

_TOLD: dict[str, tuple[str, tuple[str, ...]]] = {
    "dataset": ("prompts are drawn, or those of the file", ("isl", "shared_prefix")),
    "trace": (
        "the trace says when requests are due, and how many tokens each has",
        ("isl", "osl", "shared_prefix", "concurrency", "request_rate", "arrival", "burstiness", "turns", "think_time"),
    ),
}
"""What a file tells, and the keywords that say it otherwise."""


def check_only_file(values: Mapping[str, Any]) -> str:
    """Return the keyword that names the file of the workload; "" for none.

    Raises `MarkError` for two of them, and for what does not go together with the one.
    """
    found = [name for name in FILES if name in values]
    if len(found) > 1:
        raise MarkError(
            f"inferperf: dataset={values['dataset']!r} and trace={values['trace']!r}: a workload has one file. Keep one."
        )
    if "trace_speed" in values:
        if "trace" not in found:
            raise MarkError(
                f"inferperf: trace_speed={values['trace_speed']!r} says how fast a trace is replayed, and trace= is missing."
            )
        if not values["trace_speed"] > 0:
            raise MarkError(f"inferperf: trace_speed={values['trace_speed']!r} must be above 0; 2 is twice as fast.")
    _check_turns(values)
    for keyword in found:
        why, others = _TOLD[keyword]
        for name in others:
            if name in values:
                raise MarkError(
                    f"inferperf: {name}={values[name]!r} and {keyword}={values[keyword]!r}: {why}. Keep one."
                )
    return found[0] if found else ""


def _check_turns(values: Mapping[str, Any]) -> None:
    """Refuse turns of what has none. Raises `MarkError`."""
    turns = values.get("turns", 1)
    if "think_time" in values and turns == 1:
        raise MarkError(
            f"inferperf: think_time={values['think_time']!r} is the time between the turns of a conversation; say how many "
            "with turns=."
        )
    if turns > 1 and ("dataset" not in values or values.get("endpoint") != "chat"):
        raise MarkError(
            f"inferperf: turns={turns}: turns are those of the conversations in a file, asked as chats: give dataset= and "
            'endpoint="chat".'
        )


def with_dataset(values: Mapping[str, Any], origin: Origin) -> Workload:
    """Make the workload of a file, known by its content. Raises `MarkError` for a file that is none or too short."""
    from pytest_inferperf.measure.recorded.datasets import read_dataset

    name = str(values["dataset"])
    path, dataset = _read("dataset", name, origin, read_dataset)
    workload = Workload(**{**values, "dataset": dataset.label, "dataset_path": str(path)})
    records = dataset.usable(needs_length=not workload.osl, turns=workload.turns)
    usable = len(records)
    if not usable:
        raise MarkError(
            f"inferperf: dataset={name!r}: none of its {len(dataset.records)} records says how long the output is, by "
            '"output_tokens" or by an answer. Give osl=, in tokens.'
        )
    if workload.turns > 1 and max(map(len, records)) == 1:
        raise MarkError(
            f"inferperf: turns={workload.turns}: no record of dataset={name!r} has a second turn. Leave turns out."
        )
    _check_enough(workload, name, usable)
    return workload


def with_trace(values: Mapping[str, Any], origin: Origin) -> Workload:
    """Make the workload of a trace, of all its requests or the first. Raises `MarkError` for a file that is none."""
    from pytest_inferperf.measure.recorded.traces import read_trace

    name = str(values["trace"])
    path, trace = _read("trace", name, origin, read_trace)
    count = values.get("num_requests", len(trace.rows))
    if count > len(trace.rows):
        raise MarkError(
            f"inferperf: num_requests={count}: trace={name!r} has {len(trace.rows)}. Leave num_requests= out for all."
        )
    speed = float(values.get("trace_speed", 1.0))
    told = {"trace": trace.label, "trace_path": str(path), "trace_speed": speed, "num_requests": count}
    return Workload(**{**values, **told})


def _read(keyword: str, name: str, origin: Origin, read: Callable[[Path], _File]) -> tuple[Path, _File]:
    path = workload_file(keyword, name, origin)
    try:
        return path, read(path)
    except SettingsError as error:
        problem = f"inferperf: {keyword}={name!r}: {error}"
    raise MarkError(problem)


def workload_file(keyword: str, name: str, origin: Origin) -> Path:
    """Find a file by its path relative to the test file; it must lie within the rootdir. Raises `MarkError`."""
    path = existing(name, origin.folder)
    if path is None or not path.is_file():
        near = sorted(item.name for item in (origin.folder / name).parent.glob("*") if item.suffix in _SUFFIXES)
        valid = f" Files there: {', '.join(near)}." if near else ""
        raise MarkError(f"inferperf: {keyword}={name!r}: no such file, relative to {origin.folder}.{valid}")
    if origin.root is not None and not path.is_relative_to(origin.root):
        raise MarkError(
            f"inferperf: {keyword}={name!r}: {path} lies outside of the rootdir {origin.root}; a suite brings its own "
            "files. Copy it to the tests."
        )
    return path


_SUFFIXES = (".json", ".jsonl", ".csv")


def _check_enough(workload: Workload, name: str, usable: int) -> None:
    rounds, count = workload.warmup_rounds + workload.rounds, workload.requests_per_round
    if rounds * count <= usable:
        return
    fits = usable // rounds
    advice = f"{'num_requests' if fits >= workload.concurrency else 'concurrency'}={fits} would do" if fits else ""
    less = f"{advice}, or fewer rounds=" if advice else f"Give at most {usable} rounds= and warmup_rounds= together"
    raise MarkError(
        f"inferperf: dataset={name!r} has {usable} usable records, and {rounds} rounds ({workload.warmup_rounds} of "
        f"warm-up) of {count} requests, none of them twice, need {rounds * count}. {less}, or a longer file."
    )
