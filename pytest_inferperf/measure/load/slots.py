"""Places for requests in flight, each with its connection, opened before the clock starts and kept open."""

from __future__ import annotations

import time

from pytest_inferperf.engines.openai.connection import Connection, ConnectionFailed
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.late import LateReader
from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.load.talks import Talk
from pytest_inferperf.polling import READ, WRITE, Poller, await_times, raise_file_limit

__all__ = ["CONNECT_AT_ONCE", "CONNECT_TIMEOUT_S", "Request", "Slot", "Slots"]

CONNECT_TIMEOUT_S = 10.0

_clock = time.perf_counter
CONNECT_AT_ONCE = 64
"""Connections that are being opened at the same time."""

_RESERVED_DESCRIPTORS = 64
_OPEN_LOOP_ROOM = 256
"""Sockets that there must be room for under open loop, where nobody knows how many it takes."""


class Request:
    """One request on its way."""

    __slots__ = ("attempts", "fresh", "intended", "isl", "kind", "number", "osl", "payload", "sent", "talk", "turn")

    def __init__(self, kind: int, payload: bytes, intended: float, *, isl: int, osl: int) -> None:
        self.kind = kind
        self.payload = payload
        self.isl, self.osl = isl, osl
        self.intended = intended
        self.sent = 0.0
        self.attempts = 0
        self.number = -1
        """Which of the measured requests of this process it is, later turns not counted, from 0; -1 for the others."""

        self.talk: Talk | None = None
        """The conversation that goes on when it is answered."""

        self.turn = 0
        """Which turn of it, from 0."""

        self.fresh = False
        """Whether it was sent again on a new connection, after a kept one had turned out closed."""


class Slot:
    """A place for one request in flight, with its connection."""

    __slots__ = ("connection", "descriptor", "reader", "request", "since", "used")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.descriptor = -1
        self.reader = LateReader()
        self.request: Request | None = None
        self.since = 0.0
        """When the connection was begun."""

        self.used = False
        """Whether the connection has carried a response."""


class Slots:
    """All slots of a run and the poller of their sockets. Owns every connection: close it.

    Raises `EngineError` where the name of the host is unknown, or the limit of open files is too low.
    """

    def __init__(self, endpoint: Endpoint, *, concurrency: int) -> None:
        self._endpoint = endpoint
        self._tls = endpoint.tls()
        self.room = _descriptors(concurrency or _OPEN_LOOP_ROOM)
        """How many there can be."""

        self._address = endpoint.resolve()
        self.poller = Poller()
        self.all: list[Slot] = []
        self.connected: dict[int, Slot] = {}
        """Slots with a connection, by descriptor."""

    def close(self) -> None:
        """Close every connection."""
        for slot in self.all:
            if slot.connection is not None:
                slot.connection.close()
        self.poller.close()

    def open(self, count: int) -> None:
        """Make slots and open their connections. Raises `EngineError` when one fails."""
        self.all = [Slot() for _ in range(count)]
        todo = list(self.all)
        deadline = _clock() + CONNECT_TIMEOUT_S
        opening: set[int] = set()
        try:
            while todo or opening:
                while todo and len(opening) < CONNECT_AT_ONCE:
                    slot = todo.pop()
                    self.connect(slot)
                    opening.add(slot.descriptor)
                    deadline = _clock() + CONNECT_TIMEOUT_S
                for descriptor, _ in self.poller.wait(0.1):
                    slot = self.connected[descriptor]
                    if slot.connection is None or descriptor not in opening:
                        continue
                    slot.connection.advance()
                    self.poll(slot)
                    if slot.connection.state == "ready":
                        opening.discard(descriptor)
                if _clock() > deadline:
                    raise ConnectionFailed("timeout", f"no connection within {CONNECT_TIMEOUT_S:g} s")
        except ConnectionFailed as error:
            hint = " Is the server running?" if error.cause == "refused" else ""
            raise EngineError(f"{self._endpoint.shown}: cannot connect: {error}.{hint}") from None
        # An arrival without a time would be one that the clock cannot vouch for.
        await_times()

    def add(self) -> Slot:
        """Make one more slot, without a connection."""
        slot = Slot()
        self.all.append(slot)
        return slot

    def connect(self, slot: Slot) -> None:
        """Begin to connect. Raises `ConnectionFailed`."""
        connection = Connection(self._address, tls=self._tls, host=self._endpoint.host)
        slot.connection = connection
        slot.descriptor = connection.sock.fileno()
        slot.since = _clock()
        slot.used = False
        self.connected[slot.descriptor] = slot
        self.poller.register(slot.descriptor, READ | WRITE)

    def disconnect(self, slot: Slot) -> None:
        """Close the connection of a slot, if it has one."""
        if slot.connection is not None:
            del self.connected[slot.descriptor]
            self.poller.unregister(slot.descriptor)
            slot.connection.close()
            slot.connection = None

    def poll(self, slot: Slot) -> None:
        """Wait for what the connection needs next."""
        assert slot.connection is not None
        self.poller.modify(slot.descriptor, READ | WRITE if slot.connection.wants_write else READ)


def _descriptors(sockets: int) -> int:
    """Raise the limit of open files as far as it goes; return how many sockets it leaves room for.

    Raises `EngineError` where that is fewer than asked for.
    """
    top = raise_file_limit()
    room = top - _RESERVED_DESCRIPTORS
    if room < sockets:
        raise EngineError(
            f"{sockets} connections need {sockets + _RESERVED_DESCRIPTORS} open files, and the limit of this process is "
            f"{top}. Raise the hard limit (`ulimit -Hn`, or LimitNOFILE= of the service), or lower the concurrency."
        )
    return room
