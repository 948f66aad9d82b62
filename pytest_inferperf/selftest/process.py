"""The pytest runs of a self-test as processes: they end when it ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

__all__ = ["call", "stoppable"]

_STOP_S = 60.0
"""How long an interrupted run may take to close its engines."""


def call(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Run a command to its end, output to `log`; whatever interrupts us interrupts it, once, and is waited for."""
    with log.open("wb") as stream:
        # A session of its own: a Ctrl-C at the terminal would reach it twice, and the second one cuts its teardown short.
        child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return child.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)
            try:
                child.wait(_STOP_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            raise


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does: the child is stopped and the folder removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
