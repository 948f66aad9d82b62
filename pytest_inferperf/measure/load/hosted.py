"""A load process on a host of its own: `python -m pytest_inferperf.measure.load.hosted DESCRIPTOR`.

It reads a letter from the socket with that descriptor, and does what it says; then it goes on as a process that was forked
where the load was asked for does. One that loses whoever holds the other end of the socket ends by itself.
"""

from __future__ import annotations

import pickle
import signal
import socket
import sys
from dataclasses import dataclass

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.measure.load.framing import frames
from pytest_inferperf.measure.load.plan import LoadPlan
from pytest_inferperf.measure.load.processes import Bodies, send_part

__all__ = ["Letter"]


@dataclass(frozen=True, kw_only=True)
class Letter:
    """What one process has to send. It goes to another machine: no API key is in it, which that machine has itself."""

    endpoint: Endpoint
    plan: LoadPlan
    """Of the whole load."""

    index: int
    processes: int
    """Of all hosts."""

    bodies: Bodies
    is_shown: bool


def _main(descriptor: int) -> None:
    # Ctrl-C is for whoever asked for the load, who then says what is to be done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as control:
        received = bytearray()
        while not (found := list(frames(received))):
            data = control.recv(1 << 20)
            if not data:
                return
            received += data
        letter = pickle.loads(found[0])  # noqa: S301 (what our own driver wrote)
        send_part(
            letter.endpoint,
            letter.plan,
            lambda _: letter.bodies,
            letter.index,
            letter.processes,
            letter.is_shown,
            control,
        )


if __name__ == "__main__":
    # By its full name, which is the one that is pickled.
    from pytest_inferperf.measure.load import hosted

    hosted._main(int(sys.argv[1]))
