"""What load processes say to whoever asked for the load: a word, and a value of the type that goes with it. JSON."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, Literal

from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.hiding import excerpt
from pytest_inferperf.measure.load.framing import send_frame
from pytest_inferperf.measure.load.parts import Part
from pytest_inferperf.measure.load.plain import load, read, write
from pytest_inferperf.measure.load.state import LoadState

__all__ = ["Trouble", "read_message", "say"]


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a process could not go on."""

    type: Literal["EngineError", "SettingsError", "RuntimeError"]
    message: str

    @classmethod
    def of(cls, error: Exception, *, who: str) -> Trouble:
        """Take an error; `who` is named for one that no user can do anything about."""
        if isinstance(error, SettingsError):
            return cls(type="SettingsError", message=str(error))
        if isinstance(error, EngineError):
            return cls(type="EngineError", message=str(error))
        return cls(type="RuntimeError", message=f"{who}: {error!r}")

    def error(self, *, where: str = "") -> Exception:
        """Return the error, which happened on a host."""
        message = f"{where}: {self.message}" if where else self.message
        return _ERRORS[self.type](message)


_ERRORS: dict[str, type[Exception]] = {
    "EngineError": EngineError,
    "SettingsError": SettingsError,
    "RuntimeError": RuntimeError,
}

_VALUES: dict[str, Any] = {
    "ready": type(None),
    "at": tuple[float, LoadState | None],
    "ended": type(None),
    "part": Part,
    "error": Trouble,
}
"""`ready`: its connections are open; `at`: what share of its core it uses, and how far it is, where that is shown; `ended`: its
measured requests have; `part`: what came of it, the last that it says; `error`: why nothing does, instead."""


def say(control: socket.socket, what: str, value: object = None) -> None:
    """Send a message that `read_message` reads. Raises `OSError` where nobody listens."""
    send_frame(control, write([what, value]))


def read_message(data: bytes, *, who: str) -> tuple[str, Any]:
    """Read a message. Raises `EngineError` for one that no load process of this version says; `who` has said it."""
    try:
        what, value = read(tuple[str, object], data, "the message")
        if what not in _VALUES:
            raise ValueError(f"{excerpt(what, 60)!r} is no word of a load process ({', '.join(_VALUES)})")
        return what, load(_VALUES[what], value, what)
    except ValueError as error:
        raise EngineError(
            f"{who} said something that is no message of a load: {error}. Install the same pytest-inferperf on all hosts."
        ) from None
