"""Open loop: which connection sends a request that is due, and how many are kept ready for those to come.

A request waits for the first connection that is ready, be it a new one or one whose answer has ended: none is tied to a
connection that is still being opened. New ones are opened a few at a time: a server that falls behind would else have
to accept one for each request that is due, fall behind further, and never come back.
"""

from __future__ import annotations

import collections

from pytest_inferperf.engines.openai.connection import ConnectionFailed
from pytest_inferperf.measure.load.slots import CONNECT_AT_ONCE, Request, Slot, Slots

__all__ = ["MIN_SPARE", "Pool"]

MIN_SPARE = 16
"""Connections that are ready when nothing is in flight; with more, a quarter of all."""


class Pool:
    """Slots without a request, and requests without a slot."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        # Dictionaries for their order: the connection that was used last is used next.
        self._ready: dict[Slot, None] = {}
        self._opening: dict[Slot, None] = {}
        self._closed: list[Slot] = []
        self._waiting: collections.deque[Request] = collections.deque()

    @property
    def stuck(self) -> bool:
        """Whether requests wait, and no connection for them is being opened."""
        return bool(self._waiting) and not self._opening

    def put(self, request: Request) -> Slot | None:
        """Return the slot that sends a request that is due; without one that is ready, let it wait."""
        if self._ready:
            return self._ready.popitem()[0]
        self._waiting.append(request)
        return None

    def give(self, slot: Slot) -> Request | None:
        """Take a slot whose connection is ready; return the request that has waited longest, for it to send."""
        self._opening.pop(slot, None)
        if self._waiting:
            return self._waiting.popleft()
        self._ready[slot] = None
        return None

    def take_back(self, slot: Slot) -> None:
        """Take a slot without a connection."""
        self._closed.append(slot)

    def lost(self, slot: Slot) -> bool:
        """Take that a slot without a request has lost its connection; return whether it was one of the pool."""
        if slot not in self._ready and slot not in self._opening:
            return False
        self._ready.pop(slot, None)
        self._opening.pop(slot, None)
        self._closed.append(slot)
        return True

    def refused(self) -> Request | None:
        """Return the request that fails for a connection that could not be opened: the one that has waited longest."""
        return self._waiting.popleft() if self._waiting else None

    def grow(self) -> ConnectionFailed | None:
        """Open connections for the requests that wait, and some more; return why one could not even be begun."""
        slots = self._slots
        spare = max(MIN_SPARE, len(slots.all) // 4)
        wanted = spare + len(self._waiting) - len(self._ready) - len(self._opening)
        for _ in range(min(wanted, CONNECT_AT_ONCE - len(self._opening))):
            if self._closed:
                slot = self._closed.pop()
            elif len(slots.all) < slots.room:
                slot = slots.add()
            else:
                break
            try:
                slots.connect(slot)
            except ConnectionFailed as error:
                self._closed.append(slot)
                return error
            self._opening[slot] = None
        return None
