"""A load process on a host of its own: `python -m pytest_inferperf.measure.load.hosted DESCRIPTOR`.

It reads a letter from the socket with that descriptor, and does what it says; then it goes on as a process that was forked
where the load was asked for does. One that loses whoever holds the other end of the socket ends by itself.
"""

from __future__ import annotations

import signal
import socket
import sys

from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.load.framing import frames
from pytest_inferperf.measure.load.letters import read_letter
from pytest_inferperf.measure.load.messages import Trouble, say
from pytest_inferperf.measure.load.processes import send_part

__all__ = ["main"]


def main(descriptor: int) -> None:
    """Read the letter, and do what it says."""
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
        try:
            letter = read_letter(found[0])
            bodies = letter.parcel.open(letter.endpoint)
        except EngineError as error:
            say(control, "error", Trouble.of(error, who="a load process"))
            return
        send_part(
            letter.endpoint,
            letter.plan,
            lambda _: bodies,
            letter.index,
            letter.processes,
            letter.is_shown,
            control,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))
