"""What runs on a node that sends load: starts load processes there, and passes on what is said to them and by them.

The processes are of their own, without Ray: a thread of it beside the generator would be part of what is measured.
"""

from __future__ import annotations

import queue
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from pytest_inferperf.cluster.starting import command_of
from pytest_inferperf.measure.load.framing import frames, send_frame

__all__ = ["NodeLoad"]


class NodeLoad:
    """The load processes of one placement."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[tuple[int, bytes | int]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._controls: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def start(self, letters: Sequence[bytes]) -> None:
        """Start a process for each letter, in place of those that there were."""
        self.end()
        self._said = queue.SimpleQueue()
        for number, letter in enumerate(letters):
            ours, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen(
                    command_of("pytest_inferperf.measure.load.hosted", theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            self._processes.append(process)
            self._controls.append(ours)
            self._threads.append(
                threading.Thread(target=_follow, args=(number, process, ours, letter, self._said), daemon=True)
            )
            self._threads[-1].start()

    def clock(self) -> float:
        """Return the time on the clock that all processes of this machine share."""
        return time.perf_counter()

    def tell(self, message: bytes) -> float:
        """Pass a message to all processes; return the time then. One that is gone is found when it is heard."""
        for control in self._controls:
            with suppress(OSError):
                control.sendall(message)
        return time.perf_counter()

    def hear(self) -> list[tuple[int, bytes | int]]:
        """See `LoadHost.hear`."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._said.get_nowait())
        return found

    def end(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
        # Each of them waits for its process.
        for thread in self._threads:
            thread.join()
        for control in self._controls:
            control.close()
        self._processes, self._controls, self._threads = [], [], []


def _follow(
    number: int,
    process: subprocess.Popen[bytes],
    control: socket.socket,
    letter: bytes,
    said: queue.SimpleQueue[tuple[int, bytes | int]],
) -> None:
    """Give a process its letter, and take all that it says until it ends."""
    received = bytearray()
    # One that is killed, by `end` too, breaks off in the middle.
    with suppress(OSError):
        send_frame(control, letter)
        while data := control.recv(1 << 20):
            received += data
            for message in frames(received):
                said.put((number, message))
    said.put((number, process.wait()))
