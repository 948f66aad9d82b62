"""Who builds a checkpoint that many machines want, said in storage that has no locks.

A lease is an object that only one can make. Its owner changes it again and again; who waits takes one that has not changed
for a while, by the waiter's own clock, for that of a dead machine. So the clocks of machines are never compared. Should
two hold a lease after all (two that take over a dead one at once, a storage that lets two make one object), both build,
which costs time and nothing else.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

from pytest_inferperf.errors import StorageError
from pytest_inferperf.hiding import excerpt
from pytest_inferperf.storage import Storage

__all__ = ["Lease", "Watch", "take_lease"]

_LEASE = "lease.json"

BEAT_S = 20.0
"""How often an owner changes its lease."""

DEAD_S = 120.0
"""How long a lease may stay as it is before its owner counts as dead; several beats, some of which may be lost."""


def take_lease(folder: Storage) -> Lease | None:
    """Take the lease of a checkpoint; None where another has it. Raises `StorageError`."""
    lease = Lease(folder)
    return lease if folder.create(_LEASE, lease.text()) else None


class Lease:
    """A lease that is held for a block, and renewed as long."""

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self._owner = f"{socket.gethostname()}, process {os.getpid()}"
        self._id = secrets.token_hex(8)
        self._beats = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="inferperf-lease", daemon=True)

    def text(self) -> bytes:
        """Return what the object holds."""
        return json.dumps({"owner": self._owner, "id": self._id, "beats": self._beats}).encode()

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        # One that stays is taken over in time.
        with suppress(StorageError):
            if self._is_ours():
                self._folder.remove(_LEASE)

    def _renew(self) -> None:
        while not self._over.wait(BEAT_S):
            # The next beat tries again.
            with suppress(StorageError):
                if not self._is_ours():
                    return
                self._beats += 1
                self._folder.write(_LEASE, self.text())

    def _is_ours(self) -> bool:
        return self._id in (self._folder.read(_LEASE) or b"").decode(errors="replace")


class Watch:
    """Looks at the lease of another, and takes it away when its owner is dead."""

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self._seen: bytes | None = None
        self._changed = self._heard = time.monotonic()

    def look(self) -> str:
        """Return the owner of the lease; "" where there is none any more.

        Raises `StorageError` where the storage has not answered for a while.
        """
        now = time.monotonic()
        try:
            found = self._folder.read(_LEASE)
            self._heard = now
        except StorageError:
            if now - self._heard > DEAD_S:
                raise
            return _owner(self._seen or b"")
        if found != self._seen:
            self._seen, self._changed = found, now
        elif found is not None and now - self._changed > DEAD_S:
            # Another that waits may just have taken it over.
            if self._folder.read(_LEASE) == found:
                self._folder.remove(_LEASE)
            return ""
        return "" if found is None else _owner(found)


def _owner(text: bytes) -> str:
    """Return who a lease says it is of; without what could disturb a terminal, since anybody may have written it."""
    found: object = None
    with suppress(ValueError, AttributeError):
        found = json.loads(text).get("owner")
    name = "".join(letter for letter in excerpt(str(found or ""), 100) if letter.isprintable())
    return name or "another machine"
