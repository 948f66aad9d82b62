"""What a prefix cache may know of the records of a file: what the session has sent, and nothing else that the file holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.measure.recorded.datasets import read_dataset
from pytest_inferperf.measure.recorded.requests import _permuted, dataset_of, marked, shared_part, shared_share
from pytest_inferperf.model.case import Workload

MARK = "0123abcd"


def workload(folder: Path, *records: dict[str, Any], **load: Any) -> Workload:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    base = Workload(dataset=read_dataset(path).label, dataset_path=str(path), osl=4, concurrency=1, num_requests=1)
    return replace(base, **load)


def request(*messages: tuple[str, str]) -> GenerationRequest:
    return GenerationRequest(prompt=(), messages=messages, max_tokens=4, ignore_eos=True)


def test_shared_part_is_the_longest_common_start_with_another_text() -> None:
    texts = sorted(["Name a tool.", "Name a toy.", "Who?", "Who?"])
    assert [shared_part(text, texts) for text in texts] == [9, 9, 4, 4]
    assert shared_part("Alone", ["Alone"]) == 0


def test_a_record_that_stands_twice_in_the_file_is_known_once_both_were_sent(tmp_path: Path) -> None:
    text = "How does a lock work, and who made it?"
    load = workload(tmp_path, {"prompt": text}, {"prompt": text})
    known = [
        shared_share(load, [request(("user", text))], round_index=index, mark="") * len(text) for index in range(2)
    ]
    assert known == [0, len(text)]


def test_records_that_are_not_sent_are_in_no_cache(tmp_path: Path) -> None:
    """A hundred records that begin alike: the first one finds none of them, the last one the 99 others."""
    texts = [f"Tell me all about the number {number}." for number in range(100, 200)]
    load = workload(tmp_path, *({"prompt": text} for text in texts))
    _, order = _permuted(dataset_of(load), load)
    first, last = (request(("user", texts[order[index]])) for index in (0, 99))
    assert shared_share(load, [first], round_index=0, mark="") == 0
    assert shared_share(load, [last], round_index=99, mark="") > 0.9


@pytest.mark.parametrize("mark", ["", MARK])
def test_what_fillers_keep_of_a_record_is_known(tmp_path: Path, mark: str) -> None:
    """They have other words of the user, and the same system message."""
    messages = (("system", "Be brief, and be kind."), ("user", "Why?"))
    record = {"messages": [{"role": role, "content": content} for role, content in messages]}
    share = shared_share(workload(tmp_path, record), [request(*messages)], round_index=0, mark=mark)
    total = len("Be brief, and be kind.\n\nWhy?") + len(mark)
    assert share == (len("Be brief, and be kind.") + len(mark)) / total


def test_mark_stands_before_the_first_message() -> None:
    assert marked(request(("system", "a"), ("user", "b")), MARK).messages == (("system", f"{MARK} a"), ("user", "b"))
