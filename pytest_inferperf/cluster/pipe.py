"""What pytest and the process that holds the connection to Ray say to each other: JSON, never pickle."""

from __future__ import annotations

import base64
import json
from multiprocessing.connection import Connection as Pipe
from typing import Any

__all__ = ["receive", "written"]

_BYTES = "base64"


def written(message: object) -> bytes:
    """Return a message for `Pipe.send_bytes`: plain data and bytes. Raises `TypeError` for anything else."""
    return json.dumps(message, separators=(",", ":"), default=_dump_bytes).encode()


def receive(pipe: Pipe) -> Any:
    """Receive a message: what was `written`, tuples as lists.

    Raises `EOFError` or `OSError` once nobody is there, and `ValueError` for what is no message.
    """
    return json.loads(pipe.recv_bytes(), object_hook=_load_bytes)


def _dump_bytes(value: object) -> dict[str, str]:
    if not isinstance(value, bytes):
        raise TypeError(
            f"{value!r}: {type(value).__name__} is not sent to the process that holds the connection to Ray."
        )
    return {_BYTES: base64.b64encode(value).decode()}


def _load_bytes(found: dict[str, Any]) -> Any:
    content = found.get(_BYTES)
    return base64.b64decode(content, validate=True) if isinstance(content, str) and len(found) == 1 else found
