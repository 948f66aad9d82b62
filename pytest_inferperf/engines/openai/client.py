"""Single requests, each waited for: probes, answers of a task, streams. Load has a generator of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from pytest_inferperf.engines.openai.connection import Connection, ConnectionFailed
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.http import HttpError, ResponseReader
from pytest_inferperf.errors import EngineError
from pytest_inferperf.hiding import excerpt
from pytest_inferperf.polling import READ, WRITE, Poller

__all__ = ["exchange", "fetch", "json_of", "start_of"]

_clock = time.perf_counter
_LOOK_S = 1.0


def fetch(endpoint: Endpoint, payload: bytes, *, timeout_s: float) -> ResponseReader:
    """Send one request and return its complete response, of any status. Raises `EngineError` where none comes."""
    *_, reader = exchange(endpoint, payload, timeout_s=timeout_s)
    return reader


def exchange(endpoint: Endpoint, payload: bytes, *, timeout_s: float) -> Iterator[ResponseReader]:
    """Send one request on a connection of its own and yield the response whenever more of it has come.

    Its times are seconds since the send. It is complete when the iterator ends. Raises `EngineError` for a connection
    that fails or breaks, bytes that are no HTTP, and a response that is not complete within `timeout_s`.
    """
    try:
        yield from _exchange(endpoint, payload, timeout_s)
    except (ConnectionFailed, HttpError) as error:
        hint = " Is the server running?" if isinstance(error, ConnectionFailed) and error.cause == "refused" else ""
        raise EngineError(f"{endpoint.shown}: {error}.{hint}") from None


def _exchange(endpoint: Endpoint, payload: bytes, timeout_s: float) -> Iterator[ResponseReader]:
    deadline = _clock() + timeout_s
    reader, sent = ResponseReader(), 0.0
    poller = Poller()
    connection: Connection | None = None
    try:
        connection = Connection(endpoint.resolve(), tls=endpoint.tls(), host=endpoint.host)
        descriptor = connection.sock.fileno()
        poller.register(descriptor, READ | WRITE)
        while True:
            left = deadline - _clock()
            if left <= 0:
                raise ConnectionFailed("timeout", f"no complete answer within {timeout_s:g} s")
            for _, mask in poller.wait(min(_LOOK_S, left)):
                if connection.state != "ready" or mask & WRITE:
                    connection.advance()
                if connection.state == "ready" and not sent:
                    sent = _clock()
                    connection.send(payload)
                poller.modify(descriptor, READ | WRITE if connection.wants_write else READ)
                if not sent or not mask & ~WRITE:
                    continue
                try:
                    data, _ = connection.receive()
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise ConnectionFailed("reset", f"the connection broke ({error.strerror})") from None
                done = reader.feed(data, _clock() - sent) if data else reader.eof()
                if not done and not data:
                    raise ConnectionFailed("closed", "the server closed the connection before its answer was complete")
                yield reader
                if done:
                    return
    finally:
        poller.close()
        if connection is not None:
            connection.close()


def json_of(answer: ResponseReader) -> Any:
    """Return what an answer says in JSON; None where it is no JSON."""
    try:
        return json.loads(b"".join(answer.pieces))
    except ValueError:
        return None


def start_of(answer: ResponseReader) -> str:
    """Return how an answer begins, without secrets, for a message."""
    return excerpt(b"".join(answer.pieces), 200).strip()
