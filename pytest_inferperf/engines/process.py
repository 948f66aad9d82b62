"""An engine in a process of its own: it may crash, hang or eat all memory, and pytest only sees an `EngineError`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from pytest_inferperf import __version__
from pytest_inferperf.engines import wire
from pytest_inferperf.engines.devices import DeviceLease
from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    Progress,
    TokenChunk,
)
from pytest_inferperf.engines.mpi_launch import CLOSE_S, Ranks, find_launch
from pytest_inferperf.engines.needs import needs_gpu, on_ray
from pytest_inferperf.engines.supervisor import WorkerProcess
from pytest_inferperf.errors import CheckpointError, EngineError, InvalidRun, NodeLost
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import EngineInfo

__all__ = ["EngineProcess", "StartWorker", "Worker", "build_in_process", "difference"]


class Worker(Protocol):
    """A process that answers calls: on this machine a `WorkerProcess`."""

    @property
    def pid(self) -> int:
        """Its process id, where it runs."""

    @property
    def ended_itself(self) -> bool:
        """Whether it was asked to end, and said that it had."""

    def call(self, name: str, args: dict[str, Any], *, timeout_s: float) -> Any:
        """Make one call and return its result. Raises what the worker reports, or `EngineError`."""

    def stream(self, name: str, args: dict[str, Any], *, timeout_s: float) -> Iterator[Any]:
        """Make one call and yield its chunks; the deadline holds for each of them."""

    def close(self, *, ended: str = "is closed") -> None:
        """End it. Never raises; may be called again. `ended` is what a later call is told."""


StartWorker = Callable[..., Worker]
"""Starts a worker, given the keywords of `WorkerProcess`."""


class EngineProcess(Engine):
    """An engine behind a pipe. `class_path` names the backend as `module:Class`.

    `python` is the interpreter it runs under, which must have this package in this version; "" for this one. `start`
    starts its process, on this machine or on another one.
    """

    can_relaunch = True

    def __init__(
        self,
        spec: EngineSpec,
        *,
        class_path: str,
        checkpoint: Path,
        load_timeout_s: float = 600.0,
        call_timeout_s: float = 600.0,
        log_dir: Path | None = None,
        progress: Progress | None = None,
        python: str = "",
        lease: DeviceLease | None = None,
        start: StartWorker = WorkerProcess,
    ) -> None:
        self.spec = spec
        self._start = start
        self._lease = lease
        self._devices = lease.uuids if lease is not None else ()
        self._call_timeout_s = call_timeout_s
        self._load_timeout_s = load_timeout_s
        self._log_dir = log_dir
        self._progress = progress
        self._python = python
        self._launched = start is WorkerProcess and needs_gpu(spec) and find_launch() is not None
        self._arguments = {
            "class_path": class_path,
            "spec": wire.dump(spec),
            "checkpoint": str(checkpoint),
            "sys_path": None if python else list(sys.path),
        }
        self.info = self._launch()

    def _launch(self) -> EngineInfo:
        """Start the process and load the engine in it. What fails leaves no process behind."""
        what = f"engine {self.spec.served_model_name} {self.spec.precision}"
        self._ranks = Ranks(what) if self._launched else None
        try:
            self._worker = self._start(
                what=what,
                log_dir=self._log_dir,
                progress=self._progress,
                python=self._python,
                lease=self._lease,
                close_s=CLOSE_S if self._launched or on_ray(self.spec) else None,
            )
        except BaseException:
            if self._ranks is not None:
                self._ranks.give_back(clean=True)
            raise
        try:
            if self._python:
                self._check_version(self._python)
            loaded = self._worker.call("load", self._arguments, timeout_s=self._load_timeout_s)
            self._prefix_token_id = int(loaded["prefix_token_id"])
            self._eos_token_id = int(loaded["eos_token_id"])
            self._vocab_size = int(loaded["vocab_size"])
            self._special_token_ids = frozenset(loaded["special_token_ids"])
            return wire.load_info(loaded["info"])
        except BaseException:
            self._end(ended="is closed: its launch failed")
            raise

    def _end(self, *, ended: str = "is closed") -> None:
        """End the process, and say so where the ranks of a launch worked for it."""
        self._worker.close(ended=ended)
        if self._ranks is not None:
            self._ranks.give_back(clean=self._worker.ended_itself)

    def relaunch(self) -> None:
        """See `Engine.relaunch`."""
        self._end()
        before, after = self.info, self._launch()
        moved = difference(before, after)
        if moved:
            self._end(ended="is closed: it was not the same after its relaunch")
            raise InvalidRun(
                f"engine {self.spec.served_model_name} {self.spec.precision} is not the same after its relaunch: {moved}"
            )
        self.info = after

    @property
    def devices(self) -> tuple[str, ...]:
        """See `Engine.devices`."""
        return self._devices

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._worker.pid

    def _check_version(self, python: str) -> None:
        """Check that the other environment speaks our protocol. Raises `EngineError`."""
        cure = f"Install it there: {python} -m pip install pytest-inferperf=={__version__}"
        try:
            found = self._call("version")
        except NodeLost:
            raise
        except EngineError as error:
            raise EngineError(f"{python} does not run pytest-inferperf {__version__}. {cure}\n{error}") from None
        if found != __version__:
            raise EngineError(f"{python} has pytest-inferperf {found}, and this run is {__version__}. {cure}")

    def _call(self, name: str, **args: Any) -> Any:
        return self._worker.call(name, args, timeout_s=self._call_timeout_s)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        """See `Engine.encode`."""
        found = self._call("encode", texts=list(texts), add_special_tokens=add_special_tokens)
        return [tuple(ids) for ids in found]

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """See `Engine.decode`."""
        plain = [list(ids) for ids in sequences]
        return [str(text) for text in self._call("decode", sequences=plain, skip_special_tokens=skip_special_tokens)]

    @property
    def prefix_token_id(self) -> int:
        """See `Engine.prefix_token_id`."""
        return self._prefix_token_id

    @property
    def eos_token_id(self) -> int:
        """See `Engine.eos_token_id`."""
        return self._eos_token_id

    @property
    def vocab_size(self) -> int:
        """See `Engine.vocab_size`."""
        return self._vocab_size

    @property
    def special_token_ids(self) -> frozenset[int]:
        """See `Engine.special_token_ids`."""
        return self._special_token_ids

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        """See `Engine.generate`."""
        sent = [wire.dump(request) for request in requests]
        answers = [
            wire.load_generation(item) for item in self._call("generate", requests=sent, concurrency=concurrency)
        ]
        return self._complete(answers, len(requests))

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        """See `Engine.stream`."""
        chunks = self._worker.stream("stream", {"request": wire.dump(request)}, timeout_s=self._call_timeout_s)
        return (wire.load_chunk(chunk) for chunk in chunks)

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        """See `Engine.loglikelihood`."""
        sent = [(request.context, request.continuation) for request in requests]
        found = self._call("loglikelihood", requests=sent, concurrency=concurrency)
        return self._complete([wire.load_loglikelihood(item) for item in found], len(requests))

    def _complete(self, answers: list[Any], wanted: int) -> list[Any]:
        if len(answers) != wanted:
            raise EngineError(f"the engine gave {len(answers)} answers to {wanted} requests")
        return answers

    def peak_memory_bytes(self) -> int:
        """See `Engine.peak_memory_bytes`."""
        return int(self._call("peak_memory_bytes"))

    def forget_peak_memory(self) -> None:
        """See `Engine.forget_peak_memory`."""
        self._call("forget_peak_memory")

    def close(self) -> None:
        """See `Engine.close`."""
        self._end()


def difference(before: EngineInfo, after: EngineInfo) -> str:
    """Say what an engine reports otherwise than before; "" when it is the same. Only the time to load may differ."""
    pairs = {item.name: (getattr(before, item.name), getattr(after, item.name)) for item in fields(EngineInfo)}
    return "; ".join(f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if name != "load_s" and old != new)


def build_in_process(
    spec: EngineSpec, source: Path, destination: Path, progress: Progress, *, timeout_s: float, log_dir: Path | None
) -> None:
    """Build a checkpoint in a short-lived process.

    Raises `CheckpointError`, with the end of the log after a crash, and `OSError` when the disk is full.
    """
    worker = WorkerProcess(
        what=f"the build of {spec.served_model_name} {spec.precision}", log_dir=log_dir, progress=progress
    )
    try:
        args = {"spec": wire.dump(spec), "source": str(source), "destination": str(destination)}
        worker.call("build", args, timeout_s=timeout_s)
    except EngineError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise CheckpointError(str(error)) from error
    finally:
        worker.close()
