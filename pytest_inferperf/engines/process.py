"""An engine in a process of its own: it may crash, hang or eat all memory, and pytest only sees an `EngineError`."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_inferperf.engines import wire
from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    Progress,
    TokenChunk,
)
from pytest_inferperf.errors import CheckpointError, EngineError
from pytest_inferperf.model.case import EngineSpec

__all__ = ["EngineProcess", "WorkerProcess", "build_in_process"]

LOG_LINES = 15
"""Lines of the log that an error quotes."""

GRACE_S = 3.0
"""Time between the request to end and the kill."""

_POLL_S = 0.2

_alive: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerProcess:
    """A worker, its pipes and its log. Every call has a deadline; after a failure the worker and its children are dead."""

    def __init__(self, *, what: str, log_dir: Path | None, progress: Progress | None = None) -> None:
        self._what = what
        self._progress = progress or (lambda _line: None)
        folder = Path(log_dir) if log_dir is not None else Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix="inferperf-engine-", suffix=".log", dir=folder)
        self.log = Path(name)
        self._keep_log = log_dir is not None
        self._lock = threading.RLock()
        self._id = 0
        self._buffer = bytearray()
        self._closed = False
        lifeline, self._lifeline = os.pipe()
        try:
            # The interpreter that runs pytest, with the packages pytest sees.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest_inferperf.engines.worker", str(lifeline)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=descriptor,
                pass_fds=(lifeline,),
                start_new_session=True,
                env=_environment(),
                bufsize=0,
            )
        except OSError as error:
            os.close(self._lifeline)
            raise EngineError(f"{what}: cannot start {sys.executable}: {error}") from error
        finally:
            os.close(lifeline)
            os.close(descriptor)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        _alive.add(self)

    @property
    def pid(self) -> int:
        """Process id of the worker, also the id of its process group."""
        return self._process.pid

    def call(self, name: str, args: dict[str, Any], *, timeout_s: float) -> Any:
        """Make one call and return its result. Raises what the worker reports, or `EngineError`."""
        for kind, value in self._conversation(name, args, timeout_s=timeout_s):
            if kind == "result":
                return value
        raise AssertionError("a conversation ends with a result")

    def stream(self, name: str, args: dict[str, Any], *, timeout_s: float) -> Iterator[Any]:
        """Make one call and yield its chunks as they come; the deadline holds for the wait for each of them."""
        for kind, value in self._conversation(name, args, timeout_s=timeout_s, per_message=True):
            if kind == "chunk":
                yield value

    def _conversation(
        self, name: str, args: dict[str, Any], *, timeout_s: float, per_message: bool = False
    ) -> Iterator[tuple[str, Any]]:
        with self._lock:
            if self._closed:
                raise EngineError(f"{self._what} is closed")
            self._id += 1
            own = self._id
            deadline = time.monotonic() + timeout_s
            try:
                self._write(wire.encode_frame({"id": own, "call": name, "args": args}), deadline, name, timeout_s)
                while True:
                    message = self._read(deadline, name, timeout_s)
                    number = message.get("id")
                    if not isinstance(number, int) or number > own:
                        raise self._failure(f"answered a call that was not made: {str(message)[:80]}")
                    if number < own:
                        # The rest of a stream that its reader gave up.
                        continue
                    if "progress" in message:
                        self._progress(str(message["progress"]))
                    elif "chunk" in message:
                        yield "chunk", message["chunk"]
                    elif "error" in message:
                        raise self._reported(message["error"])
                    elif "result" in message:
                        yield "result", message["result"]
                        return
                    else:
                        raise self._failure(f"answered nonsense: {str(message)[:80]}")
                    if per_message:
                        deadline = time.monotonic() + timeout_s
            except (KeyboardInterrupt, SystemExit):
                self.kill()
                raise

    def _write(self, data: bytes, deadline: float, name: str, timeout_s: float) -> None:
        view = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            while view:
                if not selector.select(min(_POLL_S, max(0.0, deadline - time.monotonic()))):
                    self._check_alive()
                    self._check_time(deadline, name, timeout_s)
                    continue
                try:
                    view = view[os.write(self._stdin.fileno(), view) :]
                except BlockingIOError:
                    continue
                except OSError:
                    raise self._death() from None

    def _read(self, deadline: float, name: str, timeout_s: float) -> dict[str, Any]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while True:
                try:
                    found = wire.decode_frame(self._buffer)
                except EngineError as error:
                    raise self._failure(str(error)) from None
                if found is not None:
                    message, size = found
                    del self._buffer[:size]
                    return message
                if selector.select(min(_POLL_S, max(0.0, deadline - time.monotonic()))):
                    data = os.read(self._stdout.fileno(), 1 << 20)
                    if not data:
                        raise self._death()
                    self._buffer += data
                    continue
                # Its children may hold the pipe open, so the end of the stream is not enough to know of a death.
                self._check_alive()
                self._check_time(deadline, name, timeout_s)

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            raise self._death()

    def _check_time(self, deadline: float, name: str, timeout_s: float) -> None:
        if time.monotonic() >= deadline:
            raise self._failure(f"gave no answer to {name!r} within {timeout_s:g} s and was killed")

    def _death(self) -> EngineError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        code = self._process.poll()
        if code is None:
            return self._failure("closed its pipe")
        if code >= 0:
            return self._failure(f"ended with exit status {code}")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        hint = ": out of memory?" if -code == signal.SIGKILL else ""
        return self._failure(f"was killed by signal {-code} ({name}){hint}")

    def _failure(self, what: str) -> EngineError:
        """End the worker and everything it started, and say what happened, with the end of the log."""
        self.kill()
        return EngineError(f"{self._what} {what}.\n{self._tail()}")

    def _reported(self, data: dict[str, Any]) -> Exception:
        if data.get("errno") in (errno.ENOSPC, errno.EDQUOT):
            return OSError(data["errno"], str(data.get("message")))
        if data.get("log"):
            self._keep_log = True
            return EngineError(f"{self._what} failed: {data.get('message')}\n{self._tail()}")
        return wire.load_error(data)

    def _tail(self) -> str:
        try:
            with self.log.open(encoding="utf-8", errors="replace") as lines:
                last = deque((line.rstrip("\n") for line in lines), maxlen=LOG_LINES)
        except OSError as error:
            return f"Its log {self.log} cannot be read: {error}"
        if not last:
            return f"Its log {self.log} is empty."
        return "\n".join([f"Last lines of {self.log}:", *(f"  {line}" for line in last)])

    def kill(self) -> None:
        """End the worker and its children: first politely, then not."""
        if self._closed:
            return
        self._closed = True
        self._keep_log = True
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while self._group_lives() and time.monotonic() < deadline:
            self._process.poll()
            time.sleep(0.02)
        self._release()

    def close(self) -> None:
        """Ask the worker to end, and make sure that it and its children did. Never raises; may be called again."""
        if self._closed:
            return
        try:
            self.call("close", {}, timeout_s=GRACE_S)
            self._process.wait(GRACE_S)
        except (EngineError, OSError, subprocess.TimeoutExpired):
            pass
        if not self._closed:
            self._closed = True
            self._release()

    def _release(self) -> None:
        self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        with contextlib.suppress(OSError):
            os.close(self._lifeline)
        if not self._keep_log:
            self.log.unlink(missing_ok=True)
        _alive.discard(self)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _group_lives(self) -> bool:
        try:
            os.killpg(self._process.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True


@atexit.register
def _end_all() -> None:
    for worker in list(_alive):
        worker.kill()


def _environment() -> dict[str, str]:
    found = dict(os.environ)
    # A plugin run from a source tree must be importable in the worker as well.
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, found.get("PYTHONPATH", "").split(os.pathsep))]
    found["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    found["PYTHONUNBUFFERED"] = "1"
    found.setdefault("TOKENIZERS_PARALLELISM", "false")
    found.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Measured by coverage or not, the worker is not the test process.
    found.pop("COV_CORE_SOURCE", None)
    return found


class EngineProcess(Engine):
    """An engine behind a pipe. `class_path` names the backend as `module:Class`."""

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
    ) -> None:
        self.spec = spec
        self._call_timeout_s = call_timeout_s
        self._worker = WorkerProcess(
            what=f"engine {spec.served_model_name} {spec.precision}", log_dir=log_dir, progress=progress
        )
        try:
            loaded = self._worker.call(
                "load",
                {
                    "class_path": class_path,
                    "spec": wire.dump(spec),
                    "checkpoint": str(checkpoint),
                    "sys_path": list(sys.path),
                },
                timeout_s=load_timeout_s,
            )
        except BaseException:
            self._worker.close()
            raise
        self.info = wire.load_info(loaded["info"])
        self._prefix_token_id = int(loaded["prefix_token_id"])
        self._eos_token_id = int(loaded["eos_token_id"])
        self._vocab_size = int(loaded["vocab_size"])
        self._special_token_ids = frozenset(loaded["special_token_ids"])

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._worker.pid

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

    def close(self) -> None:
        """See `Engine.close`."""
        self._worker.close()


def build_in_process(
    spec: EngineSpec, source: Path, destination: Path, progress: Progress, *, timeout_s: float, log_dir: Path | None
) -> None:
    """Build a checkpoint in a short-lived process. Raises `CheckpointError`, with the end of the log after a crash."""
    worker = WorkerProcess(
        what=f"the build of {spec.served_model_name} {spec.precision}", log_dir=log_dir, progress=progress
    )
    try:
        args = {"spec": wire.dump(spec), "source": str(source), "destination": str(destination)}
        worker.call("build", args, timeout_s=timeout_s)
    except EngineError as error:
        raise CheckpointError(str(error)) from error
    finally:
        worker.close()
