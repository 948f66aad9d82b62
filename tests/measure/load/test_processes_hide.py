"""A load process on another host has a key of its own there, which no server may have it tell."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.load import processes
from pytest_inferperf.measure.load.framing import frames
from pytest_inferperf.measure.load.messages import read_message
from pytest_inferperf.measure.load.plan import Failure, LoadPlan
from pytest_inferperf.measure.load.processes import Bodies, send_part
from tests.measure.load.conftest import endpoint
from tests.measure.load.test_messages import part

KEY = "correct-horse-battery"
ECHO = f"HTTP 401: the key {KEY} is wrong"


def said(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> tuple[str, Any]:
    """Return what a process says whose load ends so."""

    def run_part(*_: object) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    # Named by the user, it may be called anything.
    monkeypatch.setenv("OF_THIS_HOST", KEY)
    monkeypatch.setattr(processes, "run_part", run_part)
    target, plan = endpoint(1, api_key_env="OF_THIS_HOST"), LoadPlan(num_requests=2, osl=4, concurrency=2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_part(target, plan, lambda _: Bodies(make_body=lambda _: b"{}"), 0, 2, False, theirs)
        theirs.close()
        received = bytearray()
        while data := ours.recv(1 << 20):
            received += data
    (message,) = frames(received)
    assert KEY.encode() not in message
    return read_message(message, who="load process 1 of 2")


def test_in_the_example_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    word, found = said(monkeypatch, part(failures={"http_401": Failure(count=2, example=ECHO)}))
    assert (word, found.failures) == (
        "part",
        {"http_401": Failure(count=2, example="HTTP 401: the key [hidden] is wrong")},
    )


@pytest.mark.parametrize("error", [EngineError(ECHO), RuntimeError(ECHO)])
def test_in_an_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    word, found = said(monkeypatch, error)
    assert word == "error"
    assert "HTTP 401: the key [hidden] is wrong" in str(found.error())
