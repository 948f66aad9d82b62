"""Traces: when requests came to a real service, and how many tokens each had.

Two forms are read: Mooncake's JSON lines, whose `hash_ids` tell which blocks of 512 tokens prompts had in common, and the
CSV of the Azure LLM inference traces, which tells nothing of them.
"""

from __future__ import annotations

import csv
import functools
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.errors import InvalidRun, SettingsError
from pytest_inferperf.measure.recorded.files import Place, label_of, parse_line, read_file, state_of_file
from pytest_inferperf.model.case import Workload

__all__ = ["BLOCK", "Trace", "TraceRow", "draw_trace", "read_trace", "trace_of"]

BLOCK = 512
"""Tokens that one hash of a Mooncake trace stands for."""

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
FORMS = (
    'JSON lines {"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [n, …]} (Mooncake), or CSV with the '
    f"columns {', '.join(_COLUMNS)} (Azure)"
)
_FRACTION = re.compile(r"\.(\d+)")


@dataclass(frozen=True)
class TraceRow:
    """One request of a trace."""

    time_s: float
    """Since the first one."""

    isl: int
    osl: int
    blocks: tuple[int, ...] = ()
    """What each block of `BLOCK` tokens is; none where nothing is known of them."""


@dataclass(frozen=True)
class Trace:
    """The requests of a file, in the order of their times."""

    path: Path
    label: str
    rows: tuple[TraceRow, ...]

    def shared_share(self, count: int) -> float:
        """Return the share of the prompt tokens of the first `count` requests that an earlier one began with, too."""
        seen: set[int] = set()
        shared = 0
        for row in self.rows[:count]:
            # Of each block the hash of all up to it: what stands before it must be the same, too.
            chain = list(itertools.accumulate(row.blocks, lambda before, block: hash((before, block)), initial=0))[1:]
            known = sum(1 for item in chain if item in seen)
            seen.update(chain)
            shared += min(known * BLOCK, row.isl)
        return shared / sum(row.isl for row in self.rows[:count])


def read_trace(path: Path) -> Trace:
    """Read a file; one that has not changed is read once. Raises `SettingsError` that names the file, the line, the value."""
    return _read(path, state_of_file(path))


@functools.lru_cache(maxsize=4)
def _read(path: Path, _state: tuple[int, ...]) -> Trace:
    raw, text = read_file(path)
    rows = _mooncake(path, text) if text.lstrip().startswith("{") else _azure(path, text)
    if not rows:
        raise SettingsError(f"{path}: no request under the head of the file. A trace is {FORMS}.")
    first = rows[0][1].time_s
    for (_, before), (place, after) in itertools.pairwise(rows):
        if after.time_s < before.time_s:
            raise place.wrong(
                f"the time goes back, {before.time_s - after.time_s:g} s before the request above: sort the file by time"
            )
    return Trace(
        path,
        label_of(path, raw),
        tuple(TraceRow(row.time_s - first, row.isl, row.osl, row.blocks) for _, row in rows),
    )


def _mooncake(path: Path, text: str) -> list[tuple[Place, TraceRow]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = Place(path, "line", number)
        item = parse_line(place, line)
        for name in ("timestamp", "input_length", "output_length"):
            if name not in item:
                raise place.wrong(f'"{name}" is missing; a trace is {FORMS}')
        time_ms, blocks = item["timestamp"], item.get("hash_ids", [])
        if not isinstance(time_ms, int | float) or isinstance(time_ms, bool) or not 0 <= time_ms < float("inf"):
            raise place.wrong('"timestamp" is a number of milliseconds of at least 0', time_ms)
        isl, osl = (_tokens(place, name, item[name]) for name in ("input_length", "output_length"))
        if not isinstance(blocks, list) or not all(isinstance(block, int) for block in blocks):
            raise place.wrong('"hash_ids" is a list of whole numbers', blocks)
        wanted = -(-isl // BLOCK)
        if blocks and len(blocks) != wanted:
            raise place.wrong(
                f'"hash_ids" has {len(blocks)} blocks, and {isl} tokens are {wanted} of {BLOCK} tokens each'
            )
        rows.append((place, TraceRow(time_ms / 1000, isl, osl, tuple(blocks))))
    return rows


def _azure(path: Path, text: str) -> list[tuple[Place, TraceRow]]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    head, *cells = list(csv.reader(line for _, line in lines))
    head = [name.strip() for name in head]
    missing = [name for name in _COLUMNS if name not in head]
    if missing:
        raise Place(path, "line", lines[0][0]).wrong(f"no column {missing[0]!r}; a trace is {FORMS}", head)
    at = [head.index(name) for name in _COLUMNS]
    rows = []
    for (number, line), row in zip(lines[1:], cells, strict=True):
        place = Place(path, "line", number)
        if len(row) != len(head):
            raise place.wrong(f"has {len(row)} cells where the head has {len(head)}", line)
        time, *cells_of_tokens = (row[index].strip() for index in at)
        time_s = _time_s(place, time)
        isl, osl = (
            _tokens(place, name, int(cell) if cell.isdecimal() else cell)
            for name, cell in zip(_COLUMNS[1:], cells_of_tokens, strict=True)
        )
        rows.append((place, TraceRow(time_s, isl, osl)))
    return rows


def _time_s(place: Place, text: str) -> float:
    try:
        # Six digits of a second are what the parser of every version takes.
        moment = datetime.fromisoformat(_FRACTION.sub(lambda part: f".{part[1]:0<6.6}", text))
    except ValueError:
        raise place.wrong(f"{_COLUMNS[0]} is a time such as 2023-11-16 18:15:46.68", text) from None
    # A time without an offset must not jump where this machine's clock does.
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _tokens(place: Place, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise place.wrong(f"{name} is a whole number of tokens of at least 1", value)
    return value


def trace_of(workload: Workload) -> Trace:
    """Read the trace of a workload that has one. Raises `InvalidRun` where it is no longer the one that was collected."""
    found = read_trace(Path(workload.trace_path))
    if found.label != workload.trace:
        raise InvalidRun(f"{found.path}: the file has changed since the tests were collected: run them again.")
    return found


def draw_trace(vocabulary: Sequence[int], workload: Workload, *, round_index: int) -> list[GenerationRequest]:
    """Draw the prompts of one round: equal blocks of the trace are equal tokens, and nothing else is, in no other round."""
    workload_name = f"{sorted(workload.identity().items())}"

    def tokens(name: str, count: int) -> list[int]:
        # Other workloads replay the same trace on the same server.
        return random.Random(f"{workload_name}/{round_index}/{name}").choices(vocabulary, k=count)

    block = functools.lru_cache(maxsize=4096)(lambda number: tokens(f"block {number}", BLOCK))
    requests = []
    for index, row in enumerate(trace_of(workload).rows[: workload.requests_per_round]):
        if row.blocks:
            prompt = [token for number in row.blocks for token in block(number)][: row.isl]
        else:
            prompt = tokens(f"request {index}", row.isl)
        requests.append(GenerationRequest(prompt=tuple(prompt), max_tokens=row.osl, ignore_eos=True))
    return requests
