"""Messages over a socket that somebody reads piece by piece."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

__all__ = ["frames", "send_frame"]

_LENGTH = struct.Struct("!Q")


def send_frame(control: socket.socket, data: bytes) -> None:
    """Send bytes that `frames` finds. Raises `OSError` where nobody listens."""
    control.sendall(_LENGTH.pack(len(data)) + data)


def frames(received: bytearray) -> Iterator[bytes]:
    """Take every whole message out of what was received so far."""
    while len(received) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
        if len(received) < end:
            return
        message = bytes(received[_LENGTH.size : end])
        del received[:end]
        yield message
