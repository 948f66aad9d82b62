"""Ray, in a process of its own: it may end it, or never give a call back, and pytest only sees a `ClusterLost`."""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from typing import Any

from pytest_inferperf.cluster.pipe import receive, written
from pytest_inferperf.cluster.starting import command_of
from pytest_inferperf.errors import ClusterLost, EngineError, HardwareError, InferperfError
from pytest_inferperf.hiding import hider

__all__ = ["Driver", "LateAnswer", "NoAnswer"]

SILENCE_S = 120.0
"""Time after which a head that answers nothing counts as gone: Ray alone would wait for ever where it is not refused."""

_CLOSE_S = 15.0
"""Time Ray has to disconnect, and to end a cluster that was started for the run."""


class NoAnswer(InferperfError):
    """An actor cannot be reached; the message is Ray's."""


class LateAnswer(InferperfError):
    """An actor has not answered in time."""


class _Answer:
    """What a call waits for."""

    def __init__(self) -> None:
        self.is_there = threading.Event()
        self.kind, self.value = "lost", None


class Driver:
    """The process that is connected to the cluster. Once it is gone, every call raises `ClusterLost`, at once.

    Its methods are those of `driver_process`.
    """

    def __init__(self, *, environment: Mapping[str, str], **connection: Any) -> None:
        """Connect, given the keywords of `ray.init`. Raises `HardwareError` with what Ray says where it cannot."""
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._waiting: dict[int, _Answer] = {}
        self._listener: threading.Thread | None = None
        self._lost = ""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                command_of("pytest_inferperf.cluster.driver_process", theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **environment},
                # Ctrl-C in a terminal is for pytest, which then gives back what it has.
                start_new_session=True,
            )
        self._pipe = Pipe(ours.detach())
        try:
            self._pipe.send_bytes(written(connection))
            kind, text = receive(self._pipe)
        except (EOFError, OSError):
            kind, text = "failed", self._last_words()
        except BaseException:
            self.end()
            raise
        if kind != "connected":
            self.end()
            raise HardwareError(text)
        self._listener = threading.Thread(target=self._listen, name="inferperf-ray", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def nodes(self) -> list[dict[str, Any]]:
        """See `driver_process`."""
        found: list[dict[str, Any]] = self._call("nodes")
        return found

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """See `driver_process`."""
        total, free = self._call("resources")
        return total, free

    def on_nodes(
        self, node_ids: Sequence[str], function: str, *args: object, wait_s: float
    ) -> dict[str, tuple[bool, Any]]:
        """See `driver_process`."""
        # Each has so long, and the last is asked once the one before has failed.
        limit_s = wait_s * len(node_ids) + SILENCE_S
        found: dict[str, tuple[bool, Any]] = self._call(
            "on_nodes", list(node_ids), function, args, wait_s, limit_s=limit_s
        )
        return found

    def new_group(self, bundles: Sequence[Mapping[str, float]], node_ids: Sequence[str]) -> int:
        """See `driver_process`: the number of what was asked for."""
        group = next(self._numbers)
        try:
            self._call("new_group", group, [dict(bundle) for bundle in bundles], list(node_ids))
        except BaseException:
            self.remove_group(group)
            raise
        return group

    def is_granted(self, group: int, *, wait_s: float) -> bool:
        """See `driver_process`."""
        return bool(self._call("is_granted", group, wait_s))

    def remove_group(self, group: int) -> None:
        """See `driver_process`. Waits for nothing and never raises: a cluster that is gone has nothing of ours."""
        self._tell("remove_group", group)

    def new_actor(self, group: int, index: int, resources: Mapping[str, float]) -> int:
        """See `driver_process`: the number of the actor."""
        actor = next(self._numbers)
        self._call("new_actor", actor, group, index, dict(resources))
        return actor

    def ask(self, actor: int, method: str, *args: object, wait_s: float) -> Any:
        """Call an actor. Raises `EngineError` for what it raises, `NoAnswer`, and `LateAnswer` after `wait_s`."""
        return self._call("ask", actor, wait_s, method, *args, limit_s=wait_s + SILENCE_S)

    def tell(self, actor: int, method: str, *args: object) -> None:
        """Call an actor without waiting for anything. Never raises."""
        self._tell("tell", actor, method, *args)

    def kill(self, actor: int) -> None:
        """See `driver_process`. Waits for nothing and never raises."""
        self._tell("kill", actor)

    def _call(self, method: str, *args: object, limit_s: float | None = None) -> Any:
        limit_s = SILENCE_S if limit_s is None else limit_s
        number, answer = next(self._numbers), _Answer()
        with self._lock:
            if self._lost:
                raise ClusterLost(self._lost)
            self._waiting[number] = answer
        try:
            self._send((number, method, args))
            if not answer.is_there.wait(limit_s):
                self._give_up(f"its head has answered nothing for {limit_s:g} s")
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if answer.kind == "found":
            return answer.value
        if answer.kind == "failed":
            raise EngineError(str(answer.value))
        if answer.kind == "late":
            raise LateAnswer
        if answer.kind == "gone":
            raise NoAnswer(str(answer.value))
        raise ClusterLost(self._lost)

    def _tell(self, method: str, *args: object) -> None:
        if not self._lost:
            self._send((None, method, args))

    def _send(self, message: object) -> None:
        content = written(message)
        # Where it is gone, `_listen` sees it too.
        with self._sending, suppress(OSError):
            self._pipe.send_bytes(content)

    def _listen(self) -> None:
        """Hand out answers until the process is gone."""
        try:
            while True:
                number, kind, value = receive(self._pipe)
                with self._lock:
                    answer = self._waiting.get(number)
                if answer is not None:
                    answer.kind, answer.value = kind, value
                    answer.is_there.set()
        except (EOFError, OSError):
            self._process.wait()
            self._give_up(self._last_words())
        except (TypeError, ValueError) as error:
            self._give_up(f"the process that is connected to it says what is no answer: {error}")

    def _give_up(self, why: str) -> None:
        """Let every call that waits, and that comes, say that the cluster is lost."""
        with self._lock:
            self._lost = self._lost or (
                f"the Ray cluster is lost ({why}). What was measured is kept, and tests that need no cluster go on. Look "
                "after its head (ray status), and run the others again."
            )
            waiting = list(self._waiting.values())
        self._process.kill()
        for answer in waiting:
            answer.is_there.set()

    def _last_words(self) -> str:
        """Return what the process said last: Ray's reason to end it, without place and advice."""
        self._process.wait()
        self._said.seek(0)
        # Before it is cut: nothing could tell half a key later.
        lines = hider()(self._said.read().decode(errors="replace")).strip().splitlines()
        last = re.sub(r"^\[[^\]]*\] \S+: ", "", lines[-1]) if lines else ""
        return last.partition(". ")[0] or f"the process that was connected to it ended with {self._process.returncode}"

    @property
    def is_lost(self) -> bool:
        """Whether it is gone before it was ended."""
        return bool(self._lost)

    def end(self) -> None:
        """Disconnect. Never raises; may be called again."""
        if self._said.closed:
            return
        self._send(None)
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._listener is not None:
            self._listener.join()
        self._pipe.close()
        self._said.close()
