"""When a request or a connection has taken too long, and what is said of an answer that does not come whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_inferperf.engines.openai.connection import ConnectionFailed
from pytest_inferperf.engines.openai.http import HttpError
from pytest_inferperf.engines.openai.late import LateReader
from pytest_inferperf.measure.load.slots import CONNECT_TIMEOUT_S, Slot

__all__ = ["cut_off", "overdue"]


def overdue(slots: Iterable[Slot], now: float, *, timeout_s: float) -> Iterator[tuple[Slot, ConnectionFailed]]:
    """Yield the slots that have waited too long for a connection, or `timeout_s` for an answer, each with what to say."""
    for slot in slots:
        connection, request = slot.connection, slot.request
        if connection is None:
            continue
        if connection.state != "ready":
            if now - slot.since > CONNECT_TIMEOUT_S:
                yield slot, ConnectionFailed("timeout", "no connection in time")
        elif request is not None and request.sent and now - request.sent > timeout_s:
            try:
                slot.reader.catch_up()
            except HttpError as error:
                yield slot, ConnectionFailed("malformed", str(error))
                continue
            size = sum(map(len, slot.reader.pieces))
            what = f"{size} bytes of the body had come" if slot.reader.status else "no status had come"
            yield slot, ConnectionFailed("timeout", f"no complete answer within {timeout_s:g} s; {what}")


def cut_off(reader: LateReader) -> ConnectionFailed:
    """Say that the server closed the connection, and where in the answer."""
    size = sum(map(len, reader.pieces))
    when = f"after {size} bytes of the body" if reader.begun else "before it answered"
    return ConnectionFailed("closed", f"the server closed the connection {when}")
