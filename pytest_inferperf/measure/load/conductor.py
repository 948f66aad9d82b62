"""Who says when a load begins and ends: the process that sends all of it, or one that sends it together with others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pytest_inferperf.measure.load.clock import ClockMeter

__all__ = ["Conductor"]


class Conductor:
    """Conducts a load that one process sends; those who send it with others override what differs."""

    def __init__(
        self,
        *,
        of: int,
        progress: Callable[[int, int], None] | None = None,
        watch: Callable[[list[float]], None] | None = None,
    ) -> None:
        """`of` is the number of measured requests; `progress` and `watch` are those of `run_load`."""
        self._of, self._progress, self._watch = of, progress, watch

    def begin(self) -> float:
        """Wait for the beginning of the load, and return when it was. Connections are open, requests are written."""
        return time.perf_counter()

    def due(self, times: Iterator[float]) -> Iterator[float]:
        """Return which requests of an open loop are this process's, by when they are due."""
        return times

    def ended(self) -> bool:
        """Take that all measured requests of this process have ended; return whether the load has."""
        return True

    def look(self, done: int, meter: ClockMeter) -> bool:
        """Take, some times a second, how many measured requests have ended; return whether the load has to."""
        if self._progress is not None:
            self._progress(done, self._of)
        if self._watch is not None:
            self._watch([meter.path_share])
        return False
