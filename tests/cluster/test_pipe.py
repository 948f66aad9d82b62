"""What pytest and the process that holds the connection to Ray say to each other."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.cluster.pipe import receive, written


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = Pipe()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    "message",
    [
        None,
        [None, "kill", [3]],
        [7, "found", [[0, b"\x80\x05\xff"], [1, b""], [1, -9]]],
        [7, "found", {"CPU": 2.0, "node:127.0.0.1": 1e-4, "base64": 1.0}],
        {"address": "local", "num_cpus": None, "include_dashboard": False},
        ["ask", 60.0, "load", "start", [b"{}", b"[]"]],
    ],
)
def test_what_is_said_is_heard(ends: tuple[Connection, Connection], message: Any) -> None:
    ends[0].send_bytes(written(message))
    assert receive(ends[1]) == message


def test_tuples_are_lists(ends: tuple[Connection, Connection]) -> None:
    ends[0].send_bytes(written((1, "found", ({"CPU": 1.0}, ()))))
    assert receive(ends[1]) == [1, "found", [{"CPU": 1.0}, []]]


def test_what_is_no_plain_data_is_not_sent() -> None:
    with pytest.raises(TypeError, match=r"PosixPath is not sent to the process that holds the connection to Ray\.$"):
        written([Path("x")])


class Deed:
    """Pickle would run it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("data", [b"", b"[1,", b'{"base64":"*"}', b"\xff"])
def test_what_is_no_message(ends: tuple[Connection, Connection], data: bytes) -> None:
    ends[0].send_bytes(data)
    with pytest.raises(ValueError, match=r"."):
        receive(ends[1])


def test_a_pickle_is_not_run(ends: tuple[Connection, Connection], tmp_path: Path) -> None:
    ends[0].send_bytes(pickle.dumps(Deed(tmp_path / "done")))
    with pytest.raises(ValueError, match=r"."):
        receive(ends[1])
    assert not (tmp_path / "done").exists()
