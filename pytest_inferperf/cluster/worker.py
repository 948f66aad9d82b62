"""The driver's side of an engine process on a node: the calls of `WorkerProcess`, over an actor."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_inferperf.engines import wire
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import EngineError

if TYPE_CHECKING:
    from pytest_inferperf.cluster.place import Place

__all__ = ["RemoteWorker"]

_LOOK_S = 1.0
"""How long the node holds back an answer to `more` while the engine says nothing."""

CLOSE_S = 15.0
"""Time a node has to end an engine process; the end of its placement ends what is left."""


class RemoteWorker:
    """An engine process on a node. Every call has a deadline, kept on the node; after a failure the process is dead."""

    ended_itself = False
    """See `WorkerProcess`: what matters to ranks that MPI started, which no node of a cluster has."""

    def __init__(self, place: Place, *, what: str, progress: Progress | None, python: str) -> None:
        """Start it. Raises `EngineError` where it cannot be, `NodeLost` where the node is gone."""
        self._place = place
        self._what = what
        self._progress = progress or (lambda _line: None)
        self._number = place.next_number()
        self._ended = ""
        self._calls = 0
        self.beside_s = 0.0
        """Time of all calls so far that went by beside the engine: on the way to its node and back, and in Ray."""

        found = json.loads(place.ask("start", self._number, what, python))
        if "error" in found:
            raise EngineError(f"node {place.node.name}: {found['error']}")
        self.pid = int(found["pid"])
        """Process id, on its node."""

    def call(self, name: str, args: dict[str, Any], *, timeout_s: float) -> Any:
        """See `WorkerProcess.call`; raises `NodeLost` besides."""
        for kind, value in self._conversation(name, args, timeout_s=timeout_s, stream=False):
            if kind == "result":
                return value
        raise AssertionError("a conversation ends with a result")

    def stream(self, name: str, args: dict[str, Any], *, timeout_s: float) -> Iterator[Any]:
        """See `WorkerProcess.stream`; raises `NodeLost` besides."""
        for kind, value in self._conversation(name, args, timeout_s=timeout_s, stream=True):
            if kind == "chunk":
                yield value

    def _conversation(
        self, name: str, args: dict[str, Any], *, timeout_s: float, stream: bool
    ) -> Iterator[tuple[str, Any]]:
        self._check_open()
        self._calls += 1
        own = self._calls
        start = time.perf_counter()
        asked = {"name": name, "args": args, "timeout_s": timeout_s, "stream": stream}
        try:
            self._place.ask("begin", self._number, json.dumps(asked, separators=(",", ":")).encode())
            while True:
                for kind, value in map(json.loads, self._more()):
                    if kind == "progress":
                        self._progress(str(value))
                    elif kind == "took":
                        self.beside_s += time.perf_counter() - start - float(value)
                    elif kind == "error":
                        raise _reported(value)
                    else:
                        yield kind, value
                        if kind == "result":
                            return
                    if self._calls != own:
                        raise EngineError(
                            f"{self._what} was asked something else before its stream had ended; read one stream "
                            "to its end, or leave it, before the next call"
                        )
        except (Exception, GeneratorExit):
            raise
        except BaseException:
            # Ctrl-C, or a timeout of pytest's: what the process does now, nobody waits for.
            self.call_off()
            raise

    def _more(self) -> list[bytes]:
        try:
            found: list[bytes] = self._place.ask("more", self._number, _LOOK_S)
        except EngineError:
            # Called off, the process is gone: this is what became of the call, and not the loss of a node.
            self._check_open()
            raise
        self._check_open()
        return found

    def _check_open(self) -> None:
        if self._ended:
            raise EngineError(f"{self._what} {self._ended}")

    def call_off(self) -> None:
        """End the process in the middle of a call, which raises `EngineError` in its thread within `_LOOK_S`.

        Waits for nothing; may be called again.
        """
        if self._ended:
            return
        self._ended = "is closed: a call was called off"
        self._place.tell("kill", self._number)

    def close(self, *, ended: str = "is closed") -> None:
        """End the process. Never raises; may be called again."""
        if self._ended:
            return
        self._ended = ended
        with suppress(EngineError):
            self._place.ask("close", self._number, ended, timeout_s=CLOSE_S)


def _reported(data: dict[str, Any]) -> Exception:
    found = wire.load_error(data)
    if data.get("errno") is not None:
        found.__cause__ = OSError(data["errno"], str(data["message"]))
    return found
