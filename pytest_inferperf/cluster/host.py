"""What runs on a node: starts engine processes there, or load processes, and passes on what they say.

One `Host` is one Ray actor, and holds the resources of one placement. It speaks bytes of JSON: nothing of ours is pickled but
this class itself, by its name.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_inferperf import __version__
from pytest_inferperf.cluster.neighbours import taken_by_others
from pytest_inferperf.engines.devices import DeviceLease, lease_devices
from pytest_inferperf.engines.hardware import cpu_hardware, find_gpus, look_at_gpus
from pytest_inferperf.engines.supervisor import GRACE_S, WorkerProcess
from pytest_inferperf.errors import EngineError, InferperfError
from pytest_inferperf.hiding import hider
from pytest_inferperf.model.case import GpuRequirement

if TYPE_CHECKING:
    from pytest_inferperf.cluster.load_host import NodeLoad

__all__ = ["Host", "describe_node"]

_OF_RAY = ("OMP_NUM_THREADS",)
"""What Ray sets for its own workers, and an engine that is started without Ray has not: it would compute otherwise."""


def describe_node() -> str:
    """Describe the node that this runs on, as JSON."""
    # Ray hides GPUs from what asked for none.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    cpu = cpu_hardware()
    return json.dumps(
        {
            "version": __version__,
            "name": socket.gethostname(),
            "cpu_name": cpu.name,
            "cores": cpu.count,
            "gpus": [asdict(gpu) for gpu in find_gpus()],
        }
    )


class Host:
    """Engine processes of one placement, each under a number."""

    def __init__(self, gpus: int) -> None:
        for name in _OF_RAY:
            os.environ.pop(name, None)
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._workers: dict[int, _Talk] = {}
        self._lease: DeviceLease | None = None
        self._load: NodeLoad | None = None

    def where(self) -> str:
        """Return the id of the node that this runs on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def lease(self, holder: str, timeout_s: float) -> str:
        """Take the locks of the GPUs that Ray gave us, which hold against whoever runs here without Ray.

        Returns the context of the node, or why the GPUs are not ours.
        """
        machine = look_at_gpus()
        try:
            if machine.gpus and os.environ.get("CUDA_VISIBLE_DEVICES"):
                need = GpuRequirement(count=len(machine.gpus))
                self._lease = lease_devices(need, machine.gpus, holder=holder, timeout_s=timeout_s)
        except InferperfError as error:
            return json.dumps({"error": hider()(str(error))})
        devices = self._lease.uuids if self._lease is not None else ()
        context = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
        return json.dumps({"context": context | (machine.context() if devices else {}), "devices": devices})

    def watch(self, hardware: str) -> None:
        """Begin to watch this node, of which an engine uses `hardware`."""
        from pytest_inferperf.measure.telemetry import Telemetry
        from pytest_inferperf.model.results import Hardware

        devices = self._lease.uuids if self._lease is not None else ()
        self._others = taken_by_others()
        self._telemetry = Telemetry(Hardware(**json.loads(hardware)), devices=devices).__enter__()

    def watched(self) -> str:
        """Stop to watch, and return what the node did meanwhile."""
        self._telemetry.__exit__(None, None, None)
        now = taken_by_others()
        # Known at both ends, or not known.
        others = {name: max(now[name], before) for name, before in self._others.items() if name in now}
        return json.dumps({**self._telemetry.figures, **others})

    def start(self, number: int, what: str, python: str) -> str:
        """Start an engine process; returns its process id, or why it could not be started."""
        try:
            talk = self._workers[number] = _Talk(what=what, python=python, lease=self._lease)
        except EngineError as error:
            return json.dumps({"error": hider()(str(error))})
        return json.dumps({"pid": talk.worker.pid})

    def begin(self, number: int, asked: bytes) -> None:
        """Make a call: `name`, `args`, `timeout_s`, and whether it is a `stream`."""
        self._workers[number].begin(json.loads(asked))

    def more(self, number: int, wait_s: float) -> list[bytes]:
        """Return what came of the call since the last time: waits up to `wait_s` for something to come."""
        return self._workers[number].more(wait_s)

    def close(self, number: int, ended: str) -> None:
        """End an engine process, politely."""
        talk = self._workers.pop(number, None)
        if talk is not None:
            talk.close(ended)

    def kill(self, number: int) -> None:
        """End an engine process in the middle of a call."""
        talk = self._workers.pop(number, None)
        if talk is not None:
            talk.worker.kill()

    def load(self, method: str, *args: object) -> object:
        """Do something about the load that is sent from here: see `NodeLoad`."""
        if self._load is None:
            from pytest_inferperf.cluster.load_host import NodeLoad

            self._load = NodeLoad()
        return getattr(self._load, method)(*args)


class _Talk:
    """One engine process and the call that it answers."""

    def __init__(self, *, what: str, python: str, lease: DeviceLease | None) -> None:
        self._said: queue.Queue[bytes] = queue.Queue()
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self._begun = threading.Event()
        self.worker = WorkerProcess(what=what, log_dir=None, progress=self._progress, python=python, lease=lease)

    def _progress(self, line: str) -> None:
        self._said.put(_message("progress", line))

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Leave what is unread of the last call, and make another.

        Returns at once: an engine that is slow to end a stream is no lost node.
        """
        self._left.set()
        self._left, self._begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._follow, args=(self._thread, asked, self._left, self._begun), daemon=True
        )
        self._thread.start()

    def _follow(
        self, last: threading.Thread | None, asked: Mapping[str, Any], left: threading.Event, begun: threading.Event
    ) -> None:
        """Answer a call once the last one has ended."""
        if last is not None:
            last.join()
        if left.is_set():
            return
        self._said = queue.Queue()
        begun.set()
        self._answer(asked, left)

    def close(self, ended: str) -> None:
        """End the process: politely, unless it is in the middle of a call still."""
        self._left.set()
        if self._thread is not None:
            self._thread.join(GRACE_S)
            if self._thread.is_alive():
                self.worker.kill()
                return
        self.worker.close(ended=ended)

    def _answer(self, asked: Mapping[str, Any], left: threading.Event) -> None:
        name, timeout_s = asked["name"], asked["timeout_s"]
        try:
            args = _at_home(name, asked["args"])
            if asked["stream"]:
                for chunk in self.worker.stream(name, args, timeout_s=timeout_s):
                    if left.is_set():
                        return
                    self._said.put(_message("chunk", chunk))
                self._said.put(_message("result", None))
            else:
                start = time.perf_counter()
                found = self.worker.call(name, args, timeout_s=timeout_s)
                self._said.put(_message("took", time.perf_counter() - start))
                self._said.put(_message("result", found))
        except InferperfError as error:
            cause = error.__cause__
            number = cause.errno if isinstance(cause, OSError) else None
            self._said.put(_error(type(error).__name__, str(error), errno=number))
        except Exception as error:
            self._said.put(_error("EngineError", f"{type(error).__name__}: {error}"))

    def more(self, wait_s: float) -> list[bytes]:
        """See `Host.more`."""
        found: list[bytes] = []
        begun = self._begun
        if not begun.wait(wait_s):
            return found
        with suppress(queue.Empty):
            found.append(self._said.get(timeout=wait_s))
            while True:
                found.append(self._said.get_nowait())
        return found


def _message(kind: str, value: Any) -> bytes:
    return json.dumps([kind, value], separators=(",", ":")).encode()


def _error(kind: str, message: str, *, errno: int | None = None) -> bytes:
    """Return an error without the secrets of this node, which pytest's machine may not know."""
    return _message("error", {"type": kind, "message": hider()(message), "errno": errno})


def _at_home(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Make what a load names true on this node. Raises `EngineError` for a checkpoint that is not here."""
    if name != "load":
        return args
    if not Path(args["checkpoint"]).exists():
        raise EngineError(
            f"{args['checkpoint']} is not on the node {socket.gethostname()}. Put it on storage that all nodes share: the "
            "model itself, and built checkpoints with --inferperf-cache-dir."
        )
    theirs = args["sys_path"]
    if theirs is not None:
        # This node's own packages first: a path of pytest's machine may hold others here.
        args["sys_path"] = list(dict.fromkeys([*sys.path, *(path for path in theirs if Path(path).exists())]))
    return args
