"""A model server as a child process: started on a free loopback port, waited for, watched, and ended with its children."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_inferperf.engines.environment import quiet_environment
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.engines.log_tail import log_tail
from pytest_inferperf.engines.servers import guardian
from pytest_inferperf.errors import EngineError

__all__ = ["ManagedServer", "free_port"]

_POLL_S = 0.25
_PROGRESS_S = 5.0
_PROBE_TIMEOUT_S = 5.0
_LOG_LINE = 100

_alive: weakref.WeakSet[ManagedServer] = weakref.WeakSet()


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ManagedServer:
    """A running server. A context manager; `stop` is idempotent and never raises.

    The command's environment is that of pytest plus `environment`. Its output goes to `log`, kept after a failure and
    where `log_dir` is given.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        what: str,
        ready_url: str,
        ready_timeout_s: float = 600.0,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
        log_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Start the server and wait until `ready_url` answers with status 200.

        Its guardian keeps `descriptors` open until the server and everything it started are gone: locks on its GPUs.

        Raises `EngineError`, with the end of the log, for a command that does not exist, a server that ends, and one
        that is not ready in time.
        """
        self._what = what
        self._keep_log = log_dir is not None
        self._stopped = False
        folder = log_dir if log_dir is not None else Path(tempfile.gettempdir())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix="inferperf-server-", suffix=".log", dir=folder)
        except OSError as error:
            raise EngineError(f"{what}: cannot write its log into {folder}: {error.strerror or error}") from error
        self.log = Path(name)
        lifeline, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                # By its file and isolated: the server's own environment must not be shown our packages.
                [sys.executable, "-I", guardian.__file__, str(lifeline), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                pass_fds=(lifeline, *descriptors),
                # Ctrl-C on the terminal reaches pytest, which ends the server in order.
                start_new_session=True,
                env=_environment() | dict(environment or {}),
            )
        except OSError as error:
            os.close(self._lifeline)
            raise EngineError(f"{what}: cannot start {sys.executable}: {error}") from error
        finally:
            os.close(lifeline)
            os.close(descriptor)
        _alive.add(self)
        try:
            self._wait(ready_url, ready_timeout_s, progress or (lambda _line: None))
        except BaseException:
            self._keep_log = True
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Process id of the guardian: the server and its children are below it."""
        return self._process.pid

    def check(self) -> None:
        """Raise `EngineError`, with the end of the log, where the server has ended."""
        if self._stopped:
            raise EngineError(f"{self._what} is stopped")
        code = self._process.poll()
        if code is not None:
            self._keep_log = True
            raise EngineError(f"{self._what} {_ending(code)}.\n{log_tail(self.log)}")

    def _wait(self, url: str, timeout_s: float, progress: Progress) -> None:
        start = shown = time.monotonic()
        last = "no answer yet"
        while True:
            self.check()
            ready, last = _probe(url)
            if ready:
                progress(f"{self._what}: ready after {time.monotonic() - start:.0f} s")
                return
            now = time.monotonic()
            if now - start >= timeout_s:
                self._keep_log = True
                raise EngineError(
                    f"{self._what} was not ready within {timeout_s:g} s and was stopped: {url} gave {last}. A model that "
                    f"takes longer to load needs a larger inferperf_load_timeout.\n{log_tail(self.log)}"
                )
            if now - shown >= _PROGRESS_S:
                shown = now
                progress(f"{self._what}: waiting for it to be ready, {now - start:.0f} s; {self._last_line()}")
            time.sleep(_POLL_S)

    def _last_line(self) -> str:
        lines = log_tail(self.log).splitlines()
        return lines[-1].strip()[:_LOG_LINE]

    def stop(self) -> None:
        """End the server and everything it started."""
        if self._stopped:
            return
        self._stopped = True
        with contextlib.suppress(OSError):
            os.close(self._lifeline)
        try:
            # The guardian asks politely, waits, and kills.
            self._process.wait(2 * guardian.GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(guardian.GRACE_S)
            if not self._keep_log:
                self.log.unlink(missing_ok=True)
            _alive.discard(self)

    def __enter__(self) -> ManagedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@atexit.register
def _stop_all() -> None:
    for server in list(_alive):
        server.stop()


def _probe(url: str) -> tuple[bool, str]:
    """Ask the readiness URL once; return whether it says ready, and what it said."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/", headers={"Connection": "close"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return False, f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return status == http.HTTPStatus.OK, f"HTTP {status}"


def _environment() -> dict[str, str]:
    """Let programs be found that are installed beside this interpreter, after those of the PATH: nobody activates."""
    found = quiet_environment()
    found["PATH"] = os.pathsep.join(filter(None, (found.get("PATH", os.defpath), str(Path(sys.executable).parent))))
    return found


def _ending(code: int) -> str:
    if code == 127:
        return "could not be started"
    number = code - 128
    if number in {int(item) for item in signal.Signals}:
        hint = ": out of memory?" if number == signal.SIGKILL else ""
        return f"was killed by signal {number} ({signal.Signals(number).name}){hint}"
    return f"ended with exit status {code}"
