"""Runs a server and ends with it: `python guardian.py LIFELINE STARTER COMMAND…`. Standard library only.

A server starts children of its own, in sessions of their own, and none of them knows pytest. The guardian adopts all of
them (`PR_SET_CHILD_SUBREAPER`), so that whatever happens it can find and end them: when the server ends, when pytest
closes the lifeline pipe, and when pytest is killed. That closes the pipe too, unless a fork of pytest's has a copy of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["adopt_orphans", "descendants", "left_by", "main"]

GRACE_S = 5.0
"""Time between the request to end and the kill."""

_POLL_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    """Run `argv[2:]` until it ends, the lifeline `argv[0]` closes, or the process `argv[1]`, which started this one, ends.

    Return its exit status, 128 + N for signal N.
    """
    lifeline, starter, *command = int(argv[0]), int(argv[1]), *argv[2:]
    os.set_inheritable(lifeline, False)
    parent = os.getppid()
    if left_by(starter):
        return 1
    adopt_orphans()
    wake, wakened = os.pipe()
    os.set_blocking(wakened, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wakened, warn_on_full_buffer=False)
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror or error}", file=sys.stderr, flush=True)
        return 127
    while server.poll() is None:
        ready, _, _ = select.select([lifeline, wake], [], [], 0.5)
        _reap(server)
        if ready or os.getppid() != parent:
            break
    _end_all(server)
    code = server.returncode
    return 128 - code if code is not None and code < 0 else code or 0


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose parent ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def left_by(starter: int) -> bool:
    """Return whether the process that started this one is gone already: killed before this one could look for it.

    It need not be the parent: the interpreter may be the child of a script of its name.
    """
    try:
        return os.getpid() not in descendants(starter)
    except OSError:
        return False  # No /proc, so nobody knows.


def _end_all(server: subprocess.Popen[bytes]) -> None:
    """End every descendant: first politely, then not."""
    deadline = time.monotonic() + GRACE_S
    asked: set[int] = set()
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in left - asked:
            _signal(pid, signal.SIGTERM)
        asked |= left
        time.sleep(_POLL_S)
        _reap(server)
    while left := descendants(os.getpid()):
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
        _reap(server)
    server.poll()


def _reap(server: subprocess.Popen[bytes]) -> None:
    """Collect adopted children that have ended; the server itself is collected by its own handle."""
    server.poll()
    for pid in _children(os.getpid()):
        if pid != server.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def descendants(ancestor: int) -> set[int]:
    """Return every process below another."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # The name, in brackets, may hold spaces and brackets.
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    open_ = [ancestor]
    while open_:
        for pid in parents.get(open_.pop(), ()):
            if pid not in found:
                found.add(pid)
                open_.append(pid)
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(item) for item in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return list(descendants(pid))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
