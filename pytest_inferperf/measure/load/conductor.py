"""Who says when a load begins and ends: the process that sends all of it, or one that sends it together with others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.state import LoadState

__all__ = ["Conductor"]


class Conductor:
    """Conducts a load that one process sends; those who send it with others override what differs."""

    def __init__(self, *, watch: Callable[[list[float]], None] | None = None) -> None:
        """`watch` is that of `run_load`."""
        self._watch = watch

    def begin(self) -> float:
        """Wait for the beginning of the load, and return when it was. Connections are open, requests are written."""
        return time.perf_counter()

    def due(self, times: Iterator[float]) -> Iterator[float]:
        """Return which requests of an open loop are this process's, by when they are due."""
        return times

    def ended(self) -> bool:
        """Take that all measured requests of this process have ended; return whether the load has."""
        return True

    def look(self, meter: ClockMeter, state: Callable[[], LoadState]) -> bool:
        """Take, some times a second, how the clock is and how far the load; return whether the load has to end."""
        if self._watch is not None:
            self._watch([meter.path_share])
        return False
