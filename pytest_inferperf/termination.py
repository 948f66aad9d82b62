"""SIGTERM ends a run as Ctrl-C does: engines are closed, and the result file holds what was measured.

A cancelled job, a container that is stopped and a machine that is shut down all send it, and a process that does not take
it dies at once, with every figure. Whoever takes Ctrl-C at that moment takes it: the load generator ends its round and
keeps it. What comes after the first signal, of either kind, does not disturb the end that is under way; supervisors have
SIGKILL for one that takes too long.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

import pytest

__all__ = ["take_sigterm"]

_NAME = "inferperf-termination"


def take_sigterm(config: pytest.Config) -> None:
    """Let SIGTERM end this run as Ctrl-C does, from now on; where somebody else takes it, it stays theirs.

    Called once there is something to lose: a project that does not use the plugin dies of the signal as before.
    """
    if (
        config.pluginmanager.hasplugin(_NAME)
        or hasattr(config, "workerinput")
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        return
    termination = _Termination()
    config.pluginmanager.register(termination, _NAME)
    signal.signal(signal.SIGTERM, termination.take)
    config.add_cleanup(_give_back)


def _give_back() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Termination:
    """Knows whether the run is ending already."""

    def __init__(self) -> None:
        self._is_ending = False

    def take(self, number: int, frame: FrameType | None) -> None:
        """Take SIGTERM."""
        if self._is_ending:
            return
        self._is_ending = True
        ctrl_c = signal.getsignal(signal.SIGINT)
        if not callable(ctrl_c):
            # A shell lets what it runs in the background ignore Ctrl-C.
            raise KeyboardInterrupt
        ctrl_c(signal.SIGINT, frame)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """See that the run has ended: while its files are written, nothing disturbs it."""
        self._is_ending = True

    @pytest.hookimpl
    def pytest_keyboard_interrupt(self) -> None:
        """See that the run ends; fixtures are torn down and files written after this."""
        self._is_ending = True
