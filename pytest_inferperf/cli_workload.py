"""The workload of `inferperf measure`: every workload that marks have, as options, made and checked by the same code."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_inferperf.errors import MarkError, SettingsError
from pytest_inferperf.marks.keywords import KEYWORDS, check_value
from pytest_inferperf.marks.origin import Origin
from pytest_inferperf.marks.workloads import make_workload
from pytest_inferperf.model.workload import OPEN_LOOP_REQUESTS, Workload

__all__ = ["add_workload_options", "settings_of", "workload_of"]

_REQUESTS_PER_STREAM = 4

_OPTIONS = (
    "isl", "osl", "shared_prefix", "dataset", "turns", "think_time", "concurrency", "request_rate", "trace", "trace_speed",
    "arrival", "burstiness", "num_requests",
)  # fmt: skip
"""Keywords of marks that are options here, of the same name."""


def add_workload_options(measure: argparse.ArgumentParser) -> None:
    """Add what says what is sent, and when."""
    add = measure.add_argument
    add("--chat", action="store_true", help="Use /chat/completions with prompts of words, not token ids")
    add("--isl", type=_lengths, metavar="TOKENS", help="Input tokens of each request, or uniform(A,B), normal(MEAN,SD)")
    add("--osl", type=_lengths, metavar="TOKENS", help="Output tokens of each request, exact, or a distribution")
    add(
        "--shared-prefix", type=float, metavar="SHARE", help="Share of each prompt that all have in common (default: 0)"
    )
    add("--dataset", metavar="FILE", help="Take prompts from a file: ShareGPT, OpenAI messages, or plain prompts")
    add(
        "--turns",
        type=int,
        metavar="N",
        help="Most turns of each conversation of the data set, with --chat (default: 1)",
    )
    add("--think-time", type=float, metavar="S", help="From an answer to the next turn, seconds (default: 0)")
    loop = measure.add_mutually_exclusive_group(required=True)
    loop.add_argument("--concurrency", type=int, metavar="N", help="Closed loop: requests in flight")
    loop.add_argument("--request-rate", type=float, metavar="R", help="Open loop: requests per second")
    loop.add_argument("--trace", metavar="FILE", help="Open loop: times and lengths of a file, Mooncake's or Azure's")
    add("--trace-speed", type=float, metavar="X", help="How many times as fast the trace is replayed (default: 1)")
    add("--arrival", help="Open loop: poisson, constant or gamma (default: poisson)")
    add("--burstiness", type=float, help="Shape of gamma arrivals; below 1 comes in bursts (default: 1)")
    add(
        "--num-requests",
        type=int,
        metavar="N",
        help=f"Requests measured, or conversations (default: {_REQUESTS_PER_STREAM} times the concurrency, "
        f"{OPEN_LOOP_REQUESTS} at a rate, all of a trace)",
    )


def _lengths(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def workload_of(arguments: argparse.Namespace, *, seed: int) -> Workload:
    """Return the workload that the options describe, one round of it. Raises `SettingsError` for one that is none."""
    given = {name: getattr(arguments, name) for name in _OPTIONS}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if values.get("concurrency"):
        values.setdefault("num_requests", _REQUESTS_PER_STREAM * values["concurrency"])
    if arguments.chat:
        values["endpoint"] = "chat"
    try:
        for name, value in values.items():
            check_value(name, value)
        return make_workload({**values, "rounds": 1, "warmup_rounds": 0, "seed": seed}, Origin(folder=Path.cwd()))
    except MarkError as error:
        message = _as_options(str(error))
    raise SettingsError(message)


def _as_options(text: str) -> str:
    """Say what a message about a mark says, about options."""
    text = text.removeprefix("inferperf: ").replace('endpoint="chat"', "--chat")
    # What is one round here has no keywords for others.
    text = re.sub(r"(, or fewer rounds=|Give at most \d+ rounds= and warmup_rounds= together, or )", "", text)
    text = re.sub(r"^(?=(isl|osl) is missing)", "--", text)
    name = "|".join(sorted(KEYWORDS, key=len, reverse=True))
    return re.sub(rf"\b({name})=( ?)(?=(\S?))", _option, text)


def _option(found: re.Match[str]) -> str:
    # `isl=9` has a value, `give osl=, in tokens` has none.
    after = " " if found[2] or found[3] not in ("", ",", ".", ";", ")") else ""
    return f"--{found[1].replace('_', '-')}{after}"


def settings_of(workload: Workload) -> dict[str, Any]:
    """Return what the workload is, in the order in which it is shown."""
    rows: tuple[tuple[str, Any, Callable[[Any], object]], ...] = (
        ("dataset", workload.dataset, bool),
        ("trace", workload.trace, bool),
        ("isl", workload.isl, bool),
        ("osl", workload.osl, bool),
        ("turns", workload.turns, lambda value: value > 1),
        ("think_time", workload.think_time, bool),
        ("shared_prefix", workload.shared_prefix, bool),
        ("concurrency", workload.concurrency, bool),
        ("request_rate", workload.request_rate, bool),
        ("trace_speed", workload.trace_speed, lambda value: workload.trace and value != 1),
        ("arrival", workload.arrival, lambda _: workload.request_rate),
        ("burstiness", workload.burstiness, lambda _: workload.arrival == "gamma"),
        ("num_requests", workload.requests_per_round, bool),
        ("seed", workload.seed, lambda _: True),
    )
    return {name: value for name, value, shown in rows if shown(value)}
