"""Traces of requests: what is read from the two forms, what is drawn from them, and what is said about broken ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.errors import InvalidRun, SettingsError
from pytest_inferperf.measure.load.arrivals import TraceTimes
from pytest_inferperf.measure.recorded.traces import TraceRow, draw_trace, read_trace
from pytest_inferperf.model.case import Workload

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def mooncake(folder: Path, *rows: tuple[float, int, int, Sequence[int]]) -> Path:
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def workload(path: Path, **values: Any) -> Workload:
    trace = read_trace(path)
    told = {"trace": trace.label, "trace_path": str(path), "num_requests": len(trace.rows)}
    return Workload(**{**told, **values}, concurrency=0)


def test_mooncake(tmp_path: Path) -> None:
    path = mooncake(tmp_path, (1500, 600, 9, (4, 5)), (1750.0, 10, 1, ()), (1750.0, 512, 2, (4,)))
    assert read_trace(path).rows == (
        TraceRow(0.0, 600, 9, (4, 5)),
        TraceRow(0.25, 10, 1),
        TraceRow(0.25, 512, 2, (4,)),
    )


def test_azure(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        "\ufeffTIMESTAMP,GeneratedTokens,ContextTokens\r\n2023-11-16 18:15:46.6805900,44,374\r\n"
        "2023-11-16 18:15:50.9951690,109,396\r\n\r\n2023-11-16 18:15:51.5,3,4\r\n"
    )
    rows = read_trace(path).rows
    assert [(row.isl, row.osl, row.blocks) for row in rows] == [(374, 44, ()), (396, 109, ()), (4, 3, ())]
    assert [row.time_s for row in rows] == pytest.approx([0.0, 4.314579, 4.81941], abs=1e-5)


def test_azure_times_with_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(HEAD + "2024-05-10 00:00:00.009930+00:00,1,1\n2024-05-10 02:00:01.009930+02:00,1,1\n")
    assert [row.time_s for row in read_trace(path).rows] == [0.0, 1.0]


def test_prompts_share_the_blocks_that_the_trace_shares_and_nothing_else(tmp_path: Path) -> None:
    rows = ((0, 1024, 1, (4, 5)), (1, 1200, 1, (4, 5, 6)), (2, 100, 1, ()), (3, 1024, 1, (5, 4)))
    load = workload(mooncake(tmp_path, *rows))
    first, second = (draw_trace(range(50_000), load, round_index=index) for index in range(2))
    assert [len(item.prompt) for item in first] == [1024, 1200, 100, 1024]
    assert first[0].prompt == first[1].prompt[:1024] == first[3].prompt[512:] + first[3].prompt[:512]
    assert first[2].prompt != first[0].prompt[:100]
    assert first == draw_trace(range(50_000), load, round_index=0)
    assert all(one.prompt[:9] != other.prompt[:9] for one in first for other in second)


def test_share_that_a_cache_may_know(tmp_path: Path) -> None:
    """Of 1024, 1200 and 1024 tokens the second begins with 1024 of the first; the third has its blocks in another order."""
    trace = read_trace(mooncake(tmp_path, (0, 1024, 1, (4, 5)), (1, 1200, 1, (4, 5, 6)), (3, 1024, 1, (5, 4))))
    assert trace.shared_share(3) == 1024 / 3248
    assert trace.shared_share(1) == 0


def test_file_that_changed_after_the_collection(tmp_path: Path) -> None:
    load = workload(mooncake(tmp_path, (0, 10, 1, ())))
    mooncake(tmp_path, (0, 1000, 1, ()))
    with pytest.raises(InvalidRun, match="the file has changed since the tests were collected"):
        draw_trace(range(100), load, round_index=0)


def test_rate_of_a_trace() -> None:
    assert TraceTimes((0.0, 0.5, 1.0)).rate == 2.0
    assert TraceTimes((3.0,)).rate == float("inf")


LINE = '{"timestamp": 5, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}\n'
BROKEN = {
    "empty": ("", "mine: the file is empty."),
    "no JSON": ('{"timestamp": 5', "mine, line 1: not JSON ("),
    "no length": ('{"timestamp": 5, "output_length": 1}', 'mine, line 1: "input_length" is missing; a trace is JSON lines {'),
    "time": (LINE.replace("5", '"5"'), '"timestamp" is a number of milliseconds of at least 0, not "5".'),
    "length": (LINE + LINE.replace("600", "0"), "mine, line 2: input_length is a whole number of tokens of at least 1, not 0."),
    "hashes": (LINE.replace("[1, 2]", '["a"]'), '"hash_ids" is a list of whole numbers, not ["a"].'),
    "hash count": (LINE.replace(", 2", ""), '"hash_ids" has 1 blocks, and 600 tokens are 2 of 512 tokens each.'),
    "backwards": (LINE + LINE.replace("5", "2"), "mine, line 2: the time goes back, 0.003 s before the request above: sort"),
    "no column": ("TIMESTAMP,Tokens\n", "mine, line 1: no column 'ContextTokens'; a trace is JSON lines {"),
    "no row": (HEAD, "mine: no request under the head of the file. A trace is"),
    "cells": (HEAD + "2023-11-16 18:15:46,1\n", "mine, line 2: has 2 cells where the head has 3, not "),
    "no time": (HEAD + "noon,1,1\n", 'mine, line 2: TIMESTAMP is a time such as 2023-11-16 18:15:46.68, not "noon".'),
    "no number": (HEAD + "\n2023-11-16 18:15:46,1,1.5\n", 'mine, line 3: GeneratedTokens is a whole number of tokens of at least 1, not "1.5".'),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_trace_is_an_error_with_the_place_and_the_value(tmp_path: Path, name: str) -> None:
    content, says = BROKEN[name]
    (tmp_path / "mine").write_text(content)
    with pytest.raises(SettingsError) as caught:
        read_trace(tmp_path / "mine")
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "mine"))
