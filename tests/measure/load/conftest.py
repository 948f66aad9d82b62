"""Servers for the load tests: simulated ones, and ones that say exactly what a test tells them to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.measure.load.generator import LoadPlan, LoadRun, run_load
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def children() -> set[int]:
    """Return the processes that this one has started, and they."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture
def none_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def chunked(*events: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)


def tokens(count: int) -> list[bytes]:
    return [b'data: {"choices":[{"index":0,"text":" w%d"}]}\n\n' % number for number in range(count)]


def answer(count: int, *, said: int | None = None) -> bytes:
    """A complete streamed answer of `count` tokens, whose usage says `said`."""
    end = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":%d}}\n\n' % (
        count if said is None else said
    )
    return HEAD + chunked(*tokens(count), end, b"data: [DONE]\n\n") + b"0\r\n\r\n"


def plain(status: bytes, body: bytes = b"", *headers: bytes) -> bytes:
    rows = b"".join(row + b"\r\n" for row in headers)
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), rows, body)


class Peer:
    """One connection, as the script of a server sees it."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        """Of the connection, from 0."""

    def request(self) -> bytes:
        """Wait for one request; b"" when the client has gone."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.sock.recv(65536)
            if not more:
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        left = length - len(body)
        while left > 0:
            more = self.sock.recv(262144)
            if not more:
                return b""
            left -= len(more)
        return data

    def requests(self) -> Iterator[int]:
        """Count requests until the client has gone."""
        number = 0
        while self.request():
            yield number
            number += 1

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


Script = Callable[[Peer], None]


@contextmanager
def scripted(script: Script, *, wrap: Callable[[socket.socket], socket.socket] | None = None) -> Iterator[int]:
    """Serve every connection by `script`, in a thread of its own; yields the port. No thread and no socket is left."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    socks: list[socket.socket] = []

    def serve(sock: socket.socket, number: int) -> None:
        # A client that goes away, or a handshake that fails, is what some tests are about.
        with contextlib.suppress(OSError):
            secure = wrap(sock) if wrap is not None else sock
            socks.append(secure)
            with secure:
                script(Peer(secure, number))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                socks.append(sock)
                threads.append(threading.Thread(target=serve, args=(sock, len(threads)), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        # Closing alone does not wake an accept.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(20)
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(20)
        for sock in socks:
            sock.close()
        assert not any(thread.is_alive() for thread in [acceptor, *threads])


def endpoint(port: int, **options: Any) -> Endpoint:
    return Endpoint.parse(f"http://127.0.0.1:{port}", **{"model": "simulated", **options})


def load(target: Endpoint, **options: Any) -> LoadRun:
    """Run a small load of four tokens per request."""
    loop = {} if "arrivals" in options else {"concurrency": 1}
    plan = LoadPlan(**{"num_requests": 4, "osl": 4, "timeout_s": 20.0, **loop, **options})
    prompt: Any = "hello there" if target.chat else [1, 2]
    return run_load(target, plan, lambda index: target.body(prompt, osl=plan.osl))


@contextmanager
def simulated(**behaviour: Any) -> Iterator[Endpoint]:
    with serve_in_thread(Behaviour(**{"ttft_ms": 2.0, "itl_ms": 1.0, **behaviour})) as server:
        yield endpoint(server.port)
