"""Other machines, as load is sent from them: processes of this one, whose clock a test can put wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pytest_inferperf.cluster.load_host import NodeLoad
from pytest_inferperf.engines.load_hosts import LoadHost, LoadHosts
from pytest_inferperf.engines.openai.endpoint import Endpoint

_OTHER_CLOCK = """
import os, time
real, rate, ahead = time.perf_counter, float(os.environ["CLOCK_RATE"]), float(os.environ["CLOCK_AHEAD"])
time.perf_counter = lambda: rate * real() + ahead
"""


class Machine(LoadHost):
    """Has a monotonic clock of its own, for itself and for all its load processes."""

    def __init__(self, name: str, site: Path, *, ahead_s: float = 0.0, rate: float = 1.0, way_s: float = 0.0) -> None:
        self.name = name
        (site / "sitecustomize.py").write_text(_OTHER_CLOCK)
        self._site, self.ahead_s, self._rate, self._way_s = site, ahead_s, rate, way_s
        self.load = NodeLoad()

    def _clock(self, ours: float) -> float:
        return self._rate * ours + self.ahead_s

    def start(self, letters: Sequence[bytes]) -> None:
        before = dict(os.environ)
        os.environ |= {
            "PYTHONPATH": str(self._site),
            "CLOCK_RATE": repr(self._rate),
            "CLOCK_AHEAD": repr(self.ahead_s),
        }
        try:
            self.load.start(letters)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def clock(self) -> float:
        time.sleep(self._way_s)
        found = self._clock(self.load.clock())
        time.sleep(self._way_s)
        return found

    def tell(self, message: bytes) -> float:
        return self._clock(self.load.tell(message))

    def hear(self) -> list[tuple[int, bytes | int]]:
        return self.load.hear()

    def end(self) -> None:
        self.load.end()


class Machines(LoadHosts):
    """So many machines with so many cores each; says which of them were taken, and when."""

    def __init__(self, site: Path, *, count: int = 2, cores: int = 2, wanted: int = 0) -> None:
        self.wanted, self._site, self._room = wanted, site, (count, cores)
        self.asked = 0
        self.taken_so_far: list[tuple[int, int]] = []
        self.on_take: Callable[[list[Machine]], None] = lambda machines: None

    def wanting(self, count: int) -> Machines:
        self.wanted = count
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"the load was sent by {hosts} machines" for hosts, _ in self.taken_so_far)

    def room(self, endpoint: Endpoint) -> tuple[int, int]:
        self.asked += 1
        return self._room

    @contextmanager
    def taken(self, endpoint: Endpoint, hosts: int, processes: int) -> Iterator[list[LoadHost]]:
        self.taken_so_far.append((hosts, processes))
        machines = [Machine(f"machine {number}", self._site, ahead_s=1e4 * number) for number in range(hosts)]
        self.on_take(machines)
        yield list(machines)

    def close(self) -> None:
        pass
