"""What runs on a node: it answers at once, however slow its engine is, so that nobody takes it for lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_inferperf.cluster import host as hosts
from pytest_inferperf.cluster.host import Host
from pytest_inferperf.cluster.place import lines_of


class Worker:
    """Stands in for an engine process: its stream says one thing, and the next once it `goes_on`."""

    pid = 1
    latest: Worker

    def __init__(self, **_: object) -> None:
        self.goes_on = threading.Event()
        self.ended: list[str] = []
        Worker.latest = self

    def stream(self, *_: object, **__: object) -> Iterator[int]:
        yield 1
        assert self.goes_on.wait(60)
        yield 2

    def call(self, *_: object, **__: object) -> str:
        return "answer"

    def close(self, *, ended: str) -> None:
        self.ended.append(ended)

    def kill(self) -> None:
        self.ended.append("killed")
        self.goes_on.set()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(hosts, "WorkerProcess", Worker)
    monkeypatch.setattr(hosts, "GRACE_S", 0.2)
    # It changes them, for a process of its own.
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
    found = Host(0)
    found.start(1, "engine x", "")
    yield found
    Worker.latest.goes_on.set()


def ask(host: Host, *, stream: bool) -> None:
    host.begin(1, json.dumps({"name": "ask", "args": {}, "timeout_s": 600, "stream": stream}).encode())


def said(host: Host, wait_s: float = 60) -> list[Any]:
    """Return what came of the call, but for how long it took."""
    found = [json.loads(item) for item in host.more(1, wait_s)]
    if found and found[-1][0] == "took":
        found += [json.loads(item) for item in host.more(1, wait_s)]
    return [item for item in found if item[0] != "took"]


def test_a_call_after_a_stream_that_was_left_waits_for_the_engine_and_holds_nobody_up(host: Host) -> None:
    ask(host, stream=True)
    assert said(host) == [["chunk", 1]]
    # It returns, although the engine is in the middle of its stream for as long as it likes.
    ask(host, stream=False)
    assert said(host, 0.1) == []
    Worker.latest.goes_on.set()
    # Nothing of the stream is taken for an answer to the call.
    assert said(host) == [["result", "answer"]]


def test_of_calls_that_wait_the_last_alone_is_made(host: Host) -> None:
    ask(host, stream=True)
    assert said(host) == [["chunk", 1]]
    ask(host, stream=True)
    ask(host, stream=False)
    Worker.latest.goes_on.set()
    assert said(host) == [["result", "answer"]]


def test_an_engine_is_closed_politely_and_in_the_middle_of_a_stream_not(host: Host) -> None:
    ask(host, stream=False)
    assert said(host) == [["result", "answer"]]
    host.close(1, "is closed")
    assert Worker.latest.ended == ["is closed"]
    host.start(1, "engine x", "")
    ask(host, stream=True)
    assert said(host) == [["chunk", 1]]
    host.close(1, "is closed")
    assert Worker.latest.ended == ["killed"]


@pytest.mark.parametrize(
    ("text", "lines"), [("", ["ValueError"]), (" \n", ["ValueError"]), ("one\ntwo\n", ["one", "two"])]
)
def test_an_error_that_says_nothing_is_named_by_its_type(text: str, lines: list[str]) -> None:
    assert lines_of(ValueError(text)) == lines
