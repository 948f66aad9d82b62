"""Sockets and time: waits finer than epoll's millisecond, and the kernel's own time of what was received.

A process that looks at its sockets late would call everything late. The kernel notes when data arrives; with that, a
timestamp does not depend on when the process ran.
"""

from __future__ import annotations

import resource
import select
import socket
import struct
import sys
import time

__all__ = [
    "READ",
    "TIME_SPACE",
    "WRITE",
    "Poller",
    "await_times",
    "keep_times",
    "raise_file_limit",
    "receive",
    "wall_time_ns",
]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

_FINE_S = 0.002
_TIMESTAMPNS = 35
"""SO_TIMESTAMPNS on Linux, which the socket module does not name."""

_TIME_SIZE = 16
TIME_SPACE = socket.CMSG_SPACE(_TIME_SIZE)
"""Room for the kernel's time in `recvmsg`."""

_unpack = struct.Struct("qq").unpack
_MANY = 1 << 20
"""Open files to ask for where there is no hard limit."""

_MAX_SELECT = 1024
"""`select` takes descriptors below this number only (FD_SETSIZE)."""


class Poller:
    """An epoll whose wait ends some 0.1 ms after its deadline. Owns a descriptor: close it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._fine = self._epoll.fileno() < _MAX_SELECT
        self.register = self._epoll.register
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister

    def wait(self, timeout_s: float, most: int = -1) -> list[tuple[int, int]]:
        """Return (descriptor, mask) of every ready socket, as soon as there is one, or nothing after `timeout_s`.

        At most `most` at once, if given: the others come first the next time.
        """
        if timeout_s <= 0:
            return self._epoll.poll(0, most)
        if timeout_s < _FINE_S and self._fine:
            # An epoll descriptor can itself be waited for, and select counts in microseconds.
            select.select((self._epoll,), (), (), timeout_s)
            return self._epoll.poll(0, most)
        # Rounded down to whole milliseconds: the caller comes back for the rest.
        return self._epoll.poll(max(1, int(1000 * timeout_s) - 1) / 1000 - 0.0005, most)

    def close(self) -> None:
        """Give the descriptor back."""
        self._epoll.close()


def raise_file_limit() -> int:
    """Raise this process's soft limit of open files up to the hard one, and return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MANY
    top = max(soft, _MANY) if hard == resource.RLIM_INFINITY else hard
    if soft < top:
        resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
    return top


def keep_times(sock: socket.socket) -> None:
    """Ask the kernel to note when data for a socket arrives, where it can."""
    if sys.platform.startswith("linux"):
        try:
            sock.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
        except OSError:
            # A kernel or sandbox without them: `receive` then says 0.
            return


def receive(sock: socket.socket, size: int) -> tuple[bytes, int]:
    """Receive, and return with the data the wall time at which its end reached this machine: nanoseconds, 0 if unknown.

    Raises what `socket.recv` raises.
    """
    data, found, _, _ = sock.recvmsg(size, TIME_SPACE)
    return data, wall_time_ns(found)


def wall_time_ns(found: list[tuple[int, int, bytes]]) -> int:
    """Return the time in the ancillary data of `recvmsg(size, TIME_SPACE)`: nanoseconds, 0 if there is none."""
    # There is room for nothing else, and nothing else was asked for.
    if not found or len(found[0][2]) != _TIME_SIZE:
        return 0
    seconds, nanoseconds = _unpack(found[0][2])
    since_epoch: int = seconds * 1_000_000_000 + nanoseconds
    return since_epoch


def await_times(limit_s: float = 1.0) -> bool:
    """Wait until the kernel notes arrivals on TCP sockets, and return whether it does.

    It begins to some time after the first socket of the machine asks for it, and until then tells no times.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        with theirs:
            keep_times(theirs)
            until = time.monotonic() + limit_s
            while True:
                ours.send(b"x")
                if receive(theirs, 1)[1]:
                    return True
                if time.monotonic() > until:
                    return False
                time.sleep(0.001)
