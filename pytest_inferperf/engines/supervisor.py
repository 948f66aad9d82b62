"""The parent's side of a worker: start it, talk to it under a deadline, and end it with everything it started."""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_inferperf.engines import wire
from pytest_inferperf.engines.devices import DeviceLease
from pytest_inferperf.engines.environment import quiet_environment, without_task
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.engines.log_tail import log_tail
from pytest_inferperf.errors import EngineError
from pytest_inferperf.hiding import excerpt

__all__ = ["WorkerProcess"]

GRACE_S = 3.0
"""Time between the request to end and the kill."""

_POLL_S = 0.2

_alive: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerProcess:
    """A worker, its pipes and its log. Every call has a deadline; after a failure the worker and its children are dead."""

    def __init__(
        self,
        *,
        what: str,
        log_dir: Path | None,
        progress: Progress | None = None,
        python: str = "",
        lease: DeviceLease | None = None,
        close_s: float | None = None,
    ) -> None:
        """Start the worker, under the interpreter `python` with the packages it has, or under this one with ours.

        It sees the cards of `lease` alone, and holds their locks too. `close_s` is the time it has to end by itself;
        None for `GRACE_S`.
        """
        self._what = what
        self._close_s = close_s
        self.ended_itself = False
        """Whether it was asked to end, and said that it had."""

        self._progress = progress or (lambda _line: None)
        folder = Path(log_dir) if log_dir is not None else Path(tempfile.gettempdir())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix="inferperf-engine-", suffix=".log", dir=folder)
        except OSError as error:
            raise EngineError(f"{what}: cannot write its log into {folder}: {error.strerror or error}") from error
        self.log = Path(name)
        self._keep_log = log_dir is not None
        self._lock = threading.RLock()
        self._id = 0
        self._buffer = bytearray()
        self._closed = False
        self._ended = "is closed"
        lifeline, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    python or sys.executable,
                    *("-m", "pytest_inferperf.engines.worker", str(lifeline)),
                    # Another interpreter may be in a container, where processes have other numbers.
                    *(() if python else (str(os.getpid()),)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=descriptor,
                pass_fds=(lifeline, *(lease.descriptors if lease is not None else ())),
                start_new_session=True,
                # `-m` imports from the working directory first, which may be a source tree of ours.
                cwd="/" if python else None,
                env={
                    **(_foreign_environment() if python else _environment()),
                    **(lease.environment if lease is not None else {}),
                },
                bufsize=0,
            )
        except OSError as error:
            os.close(self._lifeline)
            raise EngineError(f"{what}: cannot start {python or sys.executable}: {error}") from error
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
            self._check_open()
            self._id += 1
            own = self._id
            deadline = time.monotonic() + timeout_s
            try:
                self._write(wire.encode_frame({"id": own, "call": name, "args": args}), deadline, name, timeout_s)
                while True:
                    message = self._read(deadline, name, timeout_s)
                    number = message.get("id")
                    if not isinstance(number, int) or number > own:
                        raise self._failure(f"answered a call that was not made: {excerpt(str(message), 80)}")
                    if number < own:
                        # The rest of a stream that its reader gave up.
                        continue
                    if "progress" in message:
                        self._progress(str(message["progress"]))
                    elif "chunk" in message:
                        yield "chunk", message["chunk"]
                        self._check_open()
                        if self._id != own:
                            raise EngineError(
                                f"{self._what} was asked something else before its stream had ended; read one stream "
                                "to its end, or leave it, before the next call"
                            )
                    elif "error" in message:
                        raise self._reported(message["error"])
                    elif "result" in message:
                        yield "result", message["result"]
                        return
                    else:
                        raise self._failure(f"answered nonsense: {excerpt(str(message), 80)}")
                    if per_message:
                        deadline = time.monotonic() + timeout_s
            except (Exception, GeneratorExit):
                raise
            except BaseException:
                # Ctrl-C, or a timeout of pytest's: where in a message it struck is not known.
                self.kill()
                raise

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self._what} {self._ended}")

    def _write(self, data: bytes, deadline: float, name: str, timeout_s: float) -> None:
        view = memoryview(data)
        with selectors.DefaultSelector() as selector:
            writable = selector.register(self._stdin, selectors.EVENT_WRITE)
            # The rest of a stream that was left may fill the other pipe: the worker would wait for it to be read.
            selector.register(self._stdout, selectors.EVENT_READ)
            while view:
                self._check_time(deadline, name, timeout_s)
                ready = [key for key, _ in selector.select(self._patience(deadline))]
                if not ready:
                    self._check_alive()
                if writable in ready:
                    try:
                        view = view[os.write(self._stdin.fileno(), view) :]
                    except BlockingIOError:
                        continue
                    except OSError:
                        raise self._death() from None
                elif ready:
                    self._receive()

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
                # Also while data keeps coming: an engine may babble for ever.
                self._check_time(deadline, name, timeout_s)
                if selector.select(self._patience(deadline)):
                    self._receive()
                else:
                    # Its children may hold the pipe open: the end of the stream is not enough to know of a death.
                    self._check_alive()

    def _patience(self, deadline: float) -> float:
        return min(_POLL_S, max(0.0, deadline - time.monotonic()))

    def _receive(self) -> None:
        data = os.read(self._stdout.fileno(), 1 << 20)
        if not data:
            raise self._death()
        self._buffer += data

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
        self._ended = f"is gone: it {what}"
        return EngineError(f"{self._what} {what}.\n{log_tail(self.log)}")

    def _reported(self, data: dict[str, Any]) -> Exception:
        if data.get("log"):
            self._keep_log = True
            found = EngineError(f"{self._what} failed: {data.get('message')}\n{log_tail(self.log)}")
            if data.get("errno") is not None:
                found.__cause__ = OSError(data["errno"], str(data.get("message")))
            return found
        return wire.load_error(data)

    def kill(self) -> None:
        """End the worker and its children: first politely, then not."""
        if self._closed:
            return
        self._closed = True
        self._keep_log = True
        self._signal(signal.SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        finally:
            # Ctrl-C may come a second time.
            self._release()

    def close(self, *, ended: str = "is closed") -> None:
        """Ask the worker to end, and make sure that it and its children did. Never raises; may be called again.

        `ended` is what a later call is told.
        """
        if self._closed:
            return
        self._ended = ended
        try:
            self.call("close", {}, timeout_s=GRACE_S if self._close_s is None else self._close_s)
            self.ended_itself = True
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


@atexit.register
def _end_all() -> None:
    for worker in list(_alive):
        worker.kill()


def _environment() -> dict[str, str]:
    found = without_task(quiet_environment())
    # A plugin run from a source tree must be importable in the worker as well.
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, found.get("PYTHONPATH", "").split(os.pathsep))]
    found["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return found


def _foreign_environment() -> dict[str, str]:
    """Another interpreter's: nothing that would show it our packages."""
    found = without_task(quiet_environment())
    return {name: value for name, value in found.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
