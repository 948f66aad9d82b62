"""The process an engine lives in: `python -m pytest_inferperf.engines.worker LIFELINE [STARTER]`.

Reads framed JSON from its standard input and answers on what was its standard output; everything that libraries print
goes to the log instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pytest_inferperf import __version__
from pytest_inferperf.engines import wire
from pytest_inferperf.engines.interface import Engine
from pytest_inferperf.engines.servers.guardian import adopt_orphans, descendants, left_by
from pytest_inferperf.errors import InferperfError

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1

_LOOK_S = 0.5
"""Time between two looks whether pytest is there."""


class Worker:
    """Answers calls, one at a time."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink
        self._engine: Engine | None = None
        self._id = 0

    def serve(self) -> bool:
        """Answer until the other side closes the pipe or asks to stop; return whether it asked."""
        while True:
            header = self._source.read(wire.HEADER.size)
            if len(header) < wire.HEADER.size:
                return False
            _, length = wire.HEADER.unpack(header)
            found = wire.decode_frame(header + self._source.read(length))
            if found is None:
                return False
            message, _ = found
            self._id = message["id"]
            if message["call"] == "close":
                if self._engine is not None:
                    self._engine.close()
                self._send({"result": None})
                return True
            self._answer(message)

    def _answer(self, message: dict[str, Any]) -> None:
        try:
            calls: dict[str, Callable[[dict[str, Any]], Any]] = {
                "version": lambda _args: __version__,
                "build": self._build,
                "load": self._load,
                "encode": self._encode,
                "decode": self._decode,
                "generate": self._generate,
                "stream": self._stream,
                "loglikelihood": self._loglikelihood,
                "forget_peak_memory": lambda _args: self._loaded.forget_peak_memory(),
                "peak_memory_bytes": lambda _args: self._loaded.peak_memory_bytes(),
            }
            self._send({"result": calls[message["call"]](message["args"])})
        except InferperfError as error:
            self._send({"error": {"type": type(error).__name__, "message": str(error)}})
        except BaseException as error:
            traceback.print_exc()
            self._send({"error": _describe(error)})
            if not isinstance(error, Exception):
                raise

    def _send(self, message: dict[str, Any]) -> None:
        self._sink.write(wire.encode_frame({"id": self._id, **message}))
        self._sink.flush()

    def _progress(self, line: str) -> None:
        self._send({"progress": line})

    @property
    def _loaded(self) -> Engine:
        if self._engine is None:
            raise InferperfError("no engine was loaded")
        return self._engine

    def _build(self, args: dict[str, Any]) -> None:
        from pytest_inferperf.engines.checkpoint.build import build_checkpoint

        build_checkpoint(
            wire.load_spec(args["spec"]),
            source=Path(args["source"]),
            destination=Path(args["destination"]),
            progress=self._progress,
        )

    def _load(self, args: dict[str, Any]) -> dict[str, Any]:
        module, _, name = args["class_path"].partition(":")
        if args["sys_path"] is not None:
            sys.path[:] = args["sys_path"]
        backend = getattr(importlib.import_module(module), name)
        engine: Engine = backend(wire.load_spec(args["spec"]), checkpoint=args["checkpoint"], progress=self._progress)
        self._engine = engine
        return {
            "info": wire.dump(engine.info),
            "prefix_token_id": engine.prefix_token_id,
            "eos_token_id": engine.eos_token_id,
            "vocab_size": engine.vocab_size,
            "special_token_ids": sorted(engine.special_token_ids),
        }

    def _encode(self, args: dict[str, Any]) -> Any:
        return self._loaded.encode(args["texts"], add_special_tokens=args["add_special_tokens"])

    def _decode(self, args: dict[str, Any]) -> Any:
        return self._loaded.decode(args["sequences"], skip_special_tokens=args["skip_special_tokens"])

    def _generate(self, args: dict[str, Any]) -> Any:
        requests = [wire.load_generation_request(item) for item in args["requests"]]
        return [wire.dump(item) for item in self._loaded.generate(requests, concurrency=args["concurrency"])]

    def _stream(self, args: dict[str, Any]) -> None:
        for chunk in self._loaded.stream(wire.load_generation_request(args["request"])):
            self._send({"chunk": wire.dump(chunk)})

    def _loglikelihood(self, args: dict[str, Any]) -> Any:
        requests = [wire.load_loglikelihood_request(item) for item in args["requests"]]
        found = self._loaded.loglikelihood(requests, concurrency=args["concurrency"])
        return [(item.logprob, item.is_greedy) for item in found]


def _describe(error: BaseException) -> dict[str, Any]:
    text = str(error).lower()
    if (
        isinstance(error, MemoryError)
        or "OutOfMemory" in type(error).__name__
        or "can't allocate memory" in text
        or "out of memory" in text
    ):
        return {"type": "EngineError", "message": f"out of memory: {error}".rstrip(": "), "log": True}
    if "No space left" in str(error):
        # safetensors reports a full disk in words of its own.
        return {"type": "EngineError", "message": str(error), "log": True, "errno": errno.ENOSPC}
    return {"type": "EngineError", "message": f"{type(error).__name__}: {error}", "log": True}


def _watch(lifeline: int, starter: int | None = None) -> None:
    """Leave a small process behind that kills this one and all that it started once pytest is gone, even by kill -9.

    A thread could not do it: native code may hold the interpreter. A death signal alone would reach only this process
    and leave its children behind, holding a GPU. Ends this process where its `starter` is gone already.
    """
    pytest, worker = os.getppid(), os.getpid()
    if starter is not None and left_by(starter):
        os._exit(1)
    # Launchers of ranks leave, and their ranks have sessions of their own.
    adopt_orphans()
    pid = os.fork()
    if pid:
        os.close(lifeline)
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.close(0)
    os.close(1)
    # A fork of pytest's may have a copy of the other end, and outlive it.
    while not select.select([lifeline], [], [], _LOOK_S)[0] and _parent(worker) in (pytest, None):
        pass
    _end_all(worker)


def _parent(pid: int) -> int | None:
    """Return the parent of a process; 0 where it is gone, and None where that cannot be told now."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0 if Path("/proc/self").exists() else None
    except OSError:
        # Such as a machine that is out of memory or of files: no reason to kill an engine.
        return None


def _end_all(worker: int) -> None:
    """Kill a worker, whatever it started, and this process."""
    found: set[int] = set()
    # What is stopped starts nothing meanwhile.
    _signal({worker} - {os.getpid()}, signal.SIGSTOP)
    while new := descendants(worker) - found - {os.getpid()}:
        _signal(new, signal.SIGSTOP)
        found |= new
    _signal(found, signal.SIGKILL)
    os.killpg(0, signal.SIGKILL)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


@contextlib.contextmanager
def _pipes() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Take the protocol off the standard streams, so that nothing a library prints can reach it."""
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    with os.fdopen(source, "rb") as reader, os.fdopen(sink, "wb") as writer:
        yield reader, writer


def main() -> None:
    """Serve until told to stop."""
    faulthandler.enable()
    _watch(*map(int, sys.argv[1:]))
    asked = False
    with contextlib.suppress(BrokenPipeError), _pipes() as (source, sink):
        asked = Worker(source, sink).serve()
    if not asked:
        # Pytest is gone, and the watch, which would end with this process, may be late.
        _end_all(os.getpid())
    # Threads of native libraries may refuse to end; nothing is left to be saved.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
