"""Open loop: requests wait for the first connection that is ready, and connections are opened a few at a time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pytest_inferperf.engines.openai.connection import ConnectionFailed
from pytest_inferperf.measure.load.arrivals import Arrivals
from pytest_inferperf.measure.load.pool import MIN_SPARE, Pool
from pytest_inferperf.measure.load.slots import CONNECT_AT_ONCE, Request, Slot, Slots
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.measure.load.conftest import Peer, answer, endpoint, load, scripted


@contextmanager
def pool(port: int) -> Iterator[tuple[Pool, Slots]]:
    slots = Slots(endpoint(port), concurrency=0)
    try:
        yield Pool(slots), slots
    finally:
        slots.close()


@pytest.fixture
def listening() -> Iterator[int]:
    """The port of a server that accepts nothing, and so refuses nothing either."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield listener.getsockname()[1]


def request() -> Request:
    return Request(1, b"", 0.0, isl=1, osl=1)


def test_the_connection_that_was_used_last_is_used_next(listening: int) -> None:
    with pool(listening) as (it, slots):
        first, second = slots.add(), slots.add()
        assert it.give(first) is None
        assert it.give(second) is None
        assert it.put(request()) is second
        assert it.put(request()) is first


def test_requests_wait_in_their_order_for_whichever_connection_is_ready_first(listening: int) -> None:
    with pool(listening) as (it, slots):
        one, two = request(), request()
        assert it.put(one) is None
        assert it.put(two) is None
        stuck = [it.stuck]
        it.grow()
        assert [*stuck, it.stuck] == [True, False], "connections for them are being opened"
        # Not one of those: a slot whose answer has just ended.
        assert it.give(Slot()) is one
        assert it.give(next(iter(slots.connected.values()))) is two


def test_connections_are_opened_a_few_at_a_time_however_many_requests_wait(listening: int) -> None:
    with pool(listening) as (it, slots):
        for _ in range(10 * CONNECT_AT_ONCE):
            it.put(request())
        for _ in range(10):
            it.grow()
        assert len(slots.all) == CONNECT_AT_ONCE


def test_without_requests_there_are_some_to_spare(listening: int) -> None:
    with pool(listening) as (it, slots):
        for _ in range(3):
            assert it.grow() is None
        assert len(slots.all) == MIN_SPARE


def test_a_lost_connection_is_opened_anew_on_its_slot(listening: int) -> None:
    with pool(listening) as (it, slots):
        it.grow()
        slot = slots.all[0]
        slots.disconnect(slot)
        assert it.lost(slot)
        assert not it.lost(Slot()), "a slot that waits to send again is none of the pool"
        it.grow()
        assert len(slots.all) == MIN_SPARE
        assert slot.connection is not None


def test_one_request_fails_for_each_connection_that_is_refused(listening: int) -> None:
    with pool(listening) as (it, _):
        one, two = request(), request()
        it.put(one)
        it.put(two)
        assert [it.refused(), it.refused(), it.refused()] == [one, two, None]


def test_what_cannot_even_be_begun_is_said(listening: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pool(listening) as (it, slots):

        def connect(slot: Slot) -> None:
            raise ConnectionFailed("connection", "no ports are left")

        monkeypatch.setattr(slots, "connect", connect)
        error = it.grow()
        assert error is not None
        assert str(error) == "no ports are left"
        assert len(slots.all) == 1, "the slot is kept for the next attempt"
        it.grow()
        assert len(slots.all) == 1


ACCEPTED, PAUSE_S, ANSWER_S = 16, 1.5, 0.05


@contextmanager
def slow_to_accept() -> Iterator[int]:
    """A server that answers at once on the connections that it has, and is slow to take more of them."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1)
    threads: list[threading.Thread] = []
    socks: list[socket.socket] = []
    ended = threading.Event()

    def serve(sock: socket.socket) -> None:
        try:
            while sock.recv(65536):
                time.sleep(ANSWER_S)
                sock.sendall(answer(4))
        except OSError:
            return

    def accept() -> None:
        try:
            while True:
                if len(socks) == ACCEPTED:
                    ended.wait(PAUSE_S)
                socks.append(listener.accept()[0])
                threads.append(threading.Thread(target=serve, args=(socks[-1],)))
                threads[-1].start()
        except OSError:
            return

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(20)
        for sock in socks:
            sock.close()
        for thread in threads:
            thread.join(20)


def test_no_request_is_tied_to_a_connection_that_does_not_come() -> None:
    """Requests need a few connections more than there are, and those that there are become free in time."""
    with slow_to_accept() as port:
        run = load(endpoint(port), num_requests=200, arrivals=Arrivals(rate=250.0, kind="constant"))
    rows = run.records.columns()
    slow = int((rows["done"] - rows["intended"] > PAUSE_S / 2).sum())
    assert not run.failures
    # The kernel opens two or three for a server that does not accept, and what is sent there waits for it.
    assert slow <= 8


def test_a_server_that_closes_after_each_answer_gets_new_connections() -> None:
    def once(peer: Peer) -> None:
        if peer.request():
            peer.send(answer(4).replace(b"Transfer-Encoding", b"Connection: close\r\nTransfer-Encoding"))

    with scripted(once) as port:
        run = load(endpoint(port), num_requests=60, arrivals=Arrivals(rate=200.0, kind="constant"))
    assert not run.failures
    assert run.reconnects >= 60


def test_requests_to_a_server_that_has_gone_fail_at_once() -> None:
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0)) as server:
        threading.Timer(0.3, server.stop).start()
        began = time.monotonic()
        run = load(endpoint(server.port), num_requests=100, arrivals=Arrivals(rate=100.0, kind="constant"))
    assert set(run.failures) <= {"refused", "reset", "closed"}
    assert 20 <= sum(failure.count for failure in run.failures.values()) < 100
    # Their own time is 20 s.
    assert time.monotonic() - began < 15
