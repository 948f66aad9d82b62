"""The workload keywords of the `inferperf` mark become a workload here, or a clear `MarkError`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytest_inferperf.errors import MarkError, SettingsError
from pytest_inferperf.marks.origin import Origin
from pytest_inferperf.marks.recorded import check_only_file, with_dataset, with_trace
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.lengths import parse_lengths
from pytest_inferperf.model.sweep import Sweep
from pytest_inferperf.model.workload import Workload

__all__ = ["LOOPS", "check_needs", "make_workload"]

LOOPS = ("concurrency", "request_rate")
"""Closed loop or open loop: a workload has one of them."""


def make_workload(values: Mapping[str, Any], origin: Origin) -> Workload:
    """Make the workload of checked keywords, one value each. Raises `MarkError` where they do not fit together."""
    for name, value in values.items():
        if isinstance(value, Sweep):
            ((_, axis),) = value.axes
            first, *_ = [make_workload({**values, name: item}, origin) for item in axis]
            return replace(first, swept=name, sweep=axis)
    values = dict(values)
    from_file = check_only_file(values)
    for name in ("isl", "osl"):
        if name in values:
            values[name] = _lengths(name, values[name])
        elif not from_file:
            raise MarkError(
                f"inferperf: {name} is missing; a workload needs isl= and osl=, in tokens, or a file: dataset= or "
                "trace=."
            )
    if not 0 <= values.get("shared_prefix", 0.0) < 1:
        raise MarkError(
            f"inferperf: shared_prefix={values['shared_prefix']!r} must be from 0 to below 1; 0.5 is half of each prompt."
        )
    if from_file == "trace":
        values["concurrency"] = 0
    elif "request_rate" in values:
        _open_loop(values)
    else:
        for name in ("arrival", "burstiness"):
            if name in values:
                raise MarkError(
                    f"inferperf: {name}={values[name]!r} says how requests arrive under open loop, and request_rate= is "
                    "missing."
                )
    concurrency = values.get("concurrency", 1)
    if values.get("num_requests", concurrency) < concurrency:
        raise MarkError(
            f"inferperf: num_requests={values['num_requests']} is below concurrency={concurrency}: that concurrency "
            "would never be held."
        )
    workload = (
        {"dataset": with_dataset, "trace": with_trace}[from_file](values, origin) if from_file else Workload(**values)
    )
    _check_hosts(workload)
    return workload


def _check_hosts(workload: Workload) -> None:
    """Refuse hosts that would have nothing to send. Raises `MarkError`."""
    most = workload.concurrency or workload.requests_per_round
    if workload.hosts > most:
        why = f"{most} are in flight" if workload.concurrency else f"a round has {most}"
        raise MarkError(
            f"inferperf: hosts={workload.hosts}: each host needs a request to send, and {why}. hosts={most} would do."
        )


def _lengths(name: str, value: int | str) -> int | str:
    """Return a length as files spell it."""
    try:
        return parse_lengths(value).value
    except SettingsError as error:
        message = f"inferperf: {name}={error}"
    raise MarkError(message)


def _open_loop(values: dict[str, Any]) -> None:
    from pytest_inferperf.measure.load.arrivals import Arrivals

    rate = values["request_rate"] = float(values["request_rate"])
    if "concurrency" in values:
        raise MarkError(
            f"inferperf: concurrency={values['concurrency']} and request_rate={rate:g}: a closed loop keeps that many "
            "requests in flight, an open loop sends that many per second. Keep one."
        )
    shape = {
        "kind" if name == "arrival" else name: values[name] for name in ("arrival", "burstiness") if name in values
    }
    try:
        Arrivals(rate=rate, **shape)
    except SettingsError as error:
        message = f"inferperf: {str(error).replace('rate ', 'request_rate ', 1)}"
    else:
        values["concurrency"] = 0
        return
    raise MarkError(message)


def check_needs(workload: Workload, engine: EngineSpec) -> None:
    """Refuse a load that this engine of ours cannot be put under. Raises `MarkError`."""
    if engine.server:
        return
    if workload.endpoint != "completions":
        raise MarkError(
            f"inferperf: endpoint={workload.endpoint!r}: only a server has one, and the engine runs in a process of our "
            'own. Say which server to start (serve="vllm"), or where one runs (url="http://host:8000").'
        )
    if workload.is_open_loop:
        raise MarkError(
            f"inferperf: {workload.open_loop_keyword}: an open loop needs a server, and the engine runs in a "
            'process of our own. Say which server to start (serve="vllm"), or where one runs (url="http://host:8000"); or '
            "give a concurrency."
        )
