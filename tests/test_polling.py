"""Waiting, and the kernel's times."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator

import pytest

from pytest_inferperf import polling
from pytest_inferperf.polling import READ, Poller, await_times, keep_times, raise_file_limit, receive

pytestmark = pytest.mark.newest


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mine = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    with mine, peer:
        yield mine, peer


def test_data_that_waited_is_known_to_have_waited(pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    keep_times(mine)
    before = time.time_ns()
    peer.sendall(b"hello")
    after = time.time_ns()
    time.sleep(0.05)
    data, wall_ns = receive(mine, 100)
    assert data == b"hello"
    assert wall_ns == 0 or before - 1_000_000 <= wall_ns <= after + 1_000_000


def test_times_are_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    keep_times(mine)
    known = await_times()
    peer.sendall(b"hello")
    assert bool(receive(mine, 100)[1]) == known


def test_times_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "keep_times", lambda sock: None)
    begin = time.monotonic()
    assert not await_times(0.05)
    assert time.monotonic() - begin < 5


def test_without_times(pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    peer.sendall(b"hello")
    assert receive(mine, 100) == (b"hello", 0)
    mine.setblocking(False)
    with pytest.raises(BlockingIOError):
        receive(mine, 100)
    peer.close()
    mine.setblocking(True)
    assert receive(mine, 100)[0] == b""


@pytest.mark.parametrize("timeout_s", [0.0, 0.0004, 0.0018, 0.011])
def test_a_wait_ends_with_what_is_ready_or_soon_after_its_deadline(
    timeout_s: float, pair: tuple[socket.socket, socket.socket]
) -> None:
    poller = Poller()
    try:
        poller.register(pair[0].fileno(), READ)
        start = time.perf_counter()
        while time.perf_counter() < start + timeout_s:
            assert poller.wait(start + timeout_s - time.perf_counter()) == []
        took = time.perf_counter() - start
        assert timeout_s <= took < timeout_s + 2
        pair[1].sendall(b"x")
        assert poller.wait(5.0) == [(pair[0].fileno(), READ)]
        assert poller.wait(0.0004) == [(pair[0].fileno(), READ)]
    finally:
        poller.close()


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [
        (100, 5000, 5000),
        (5000, 5000, 5000),
        (100, resource.RLIM_INFINITY, 1 << 20),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1 << 20),
    ],
)
def test_the_limit_of_open_files(soft: int, hard: int, then: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda what, value: limits.append(value))
    assert raise_file_limit() == then
    assert limits[-1] == ((soft, hard) if soft in (hard, resource.RLIM_INFINITY) else (then, hard))
