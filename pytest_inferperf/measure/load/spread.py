"""How many processes send a load: one, and more where one turns out to be too few, here and then on other hosts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pytest_inferperf.engines.load_hosts import LoadHosts
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.measure.load.generator import run_load
from pytest_inferperf.measure.load.hosts import check_hosts, run_on_hosts
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.processes import Bodies, run_together
from pytest_inferperf.measure.progress import Live

__all__ = ["Shape", "Texts", "most_processes", "spread_load"]

_FULL = 0.8
"""Share of its core from which a process is given help: at 0.95 what it measured is INVALID."""

_SETTLE_S = 0.5
"""From the beginning of a load, when all requests go out at once, until the share says something."""

_needed: dict[tuple[str, str, int, float, int], int] = {}
"""Processes that loads needed in earlier runs of this process, so that the next round does not find out again."""


@dataclass(frozen=True)
class Shape:
    """Who sends a load."""

    processes: int
    """On each host."""

    hosts: int = 0
    """0 for this machine alone."""

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.processes * max(1, self.hosts)


class Texts(Protocol):
    """What the requests of one attempt say: one that is given up has sent its prompts, so the next has others."""

    def slice(self, index: int, of: int) -> Bodies:
        """Return what the requests of one of the processes say. Called in that process; the slices have nothing in common."""


def spread_load(
    endpoint: Endpoint,
    plan: LoadPlan,
    write: Callable[[int], Texts],
    *,
    processes: int | None = None,
    hosts: LoadHosts | None = None,
    live: Live | None = None,
) -> LoadRun:
    """Send the load that `plan` describes from as many processes as it takes, or from `processes`, on each host.

    A load that fills more than four fifths of a process's core is given up and begun anew by twice as many, up to
    `most_processes`, and from then on by `hosts`, where there are any; where some are `wanted`, by so many from the start.
    `write(attempt)` writes what is sent, attempts counted from 0. Raises what `run_load`, `run_together` and
    `run_on_hosts` do, and `HardwareError` where hosts cannot be had.
    """
    rate = plan.arrivals.rate if plan.arrivals is not None else 0.0
    key = (endpoint.host, endpoint.model, plan.concurrency, rate, plan.osl)
    ladder = _Ladder(endpoint, plan, processes, hosts)
    while ladder.shape.size < _needed.get(key, 1) and ladder.may_rise:
        ladder.rise()
    attempt = 0
    while True:
        texts = write(attempt)
        try:
            return _run(endpoint, plan, texts, ladder.shape, hosts, live, _Watch() if ladder.may_rise else None)
        except _NeedsMoreError:
            ladder.rise()
            _needed[key] = ladder.shape.size
            attempt += 1


class _Ladder:
    """Who sends a load first, and who sends it where that is too few, and so on."""

    def __init__(self, endpoint: Endpoint, plan: LoadPlan, processes: int | None, hosts: LoadHosts | None) -> None:
        self._endpoint = endpoint
        self._most = plan.most_parts
        wanted = hosts.wanted if hosts is not None else 0
        if processes is not None:
            shapes = [Shape(processes, hosts=wanted)]
        elif hosts is not None and wanted:
            _, cores = hosts.room(endpoint)
            shapes = [Shape(count, hosts=wanted) for count in _doubled(1, min(cores, self._most // wanted))]
        else:
            shapes = [Shape(count) for count in _doubled(1, most_processes(endpoint, plan))]
        self.shape, *self._shapes = shapes
        self._others = hosts if processes is None and not wanted else None
        """Hosts that were not asked yet: that is done once they are needed, and nobody may be there."""

    @property
    def may_rise(self) -> bool:
        """Whether there may be more who could send."""
        return bool(self._shapes) or self._others is not None

    def rise(self) -> None:
        """Go on to more, where there are any. Raises what `LoadHosts.room` does."""
        if not self._shapes and self._others is not None:
            self._shapes = self._on_others(self._others)
            self._others = None
        if self._shapes:
            self.shape = self._shapes.pop(0)

    def _on_others(self, hosts: LoadHosts) -> list[Shape]:
        """Return shapes of ever more hosts, as few of them as have cores for the processes."""
        number, cores = hosts.room(self._endpoint)
        shapes: list[Shape] = []
        for size in _doubled(self.shape.size, min(number * cores, self._most))[1:]:
            count = -(-size // cores)
            shapes.append(Shape(size // count, hosts=count))
        return shapes


def _doubled(first: int, last: int) -> list[int]:
    """Return `first`, twice as much, and so on, and `last`."""
    found = [first]
    while found[-1] < last:
        found.append(min(last, 2 * found[-1]))
    return found


def _run(
    endpoint: Endpoint,
    plan: LoadPlan,
    texts: Texts,
    shape: Shape,
    hosts: LoadHosts | None,
    live: Live | None,
    watch: _Watch | None,
) -> LoadRun:
    if shape.hosts:
        assert hosts is not None
        # A cluster that is full would first be waited for.
        check_hosts(plan, shape.hosts, shape.processes)
        with hosts.taken(endpoint, shape.hosts, shape.processes) as taken:
            return run_on_hosts(
                endpoint,
                plan,
                lambda index: texts.slice(index, shape.size),
                taken,
                processes=shape.processes,
                live=live,
                watch=watch,
            )
    if shape.processes > 1:
        return run_together(
            endpoint,
            plan,
            lambda index: texts.slice(index, shape.processes),
            processes=shape.processes,
            live=live,
            watch=watch,
        )
    alone = texts.slice(0, 1)
    return run_load(
        endpoint,
        plan,
        alone.make_body,
        sizes_of=alone.sizes_of,
        make_spare=alone.make_spare,
        talk_of=alone.talk_of,
        live=live,
        watch=watch,
    )


def most_processes(endpoint: Endpoint, plan: LoadPlan) -> int:
    """Return how many processes a load can have: a core for each, one left for a server on this machine.

    Raises `EngineError` where the host of the endpoint is unknown.
    """
    cores = len(os.sched_getaffinity(0))
    if _is_here(endpoint):
        cores -= 1
    return max(1, min(cores, plan.most_parts))


def _is_here(endpoint: Endpoint) -> bool:
    address = endpoint.resolve()
    with socket.socket(address.family, socket.SOCK_DGRAM) as probe:
        try:
            # Only an address of this machine can be bound to.
            probe.bind((address.sockaddr[0], 0))
        except OSError:
            return False
    return True


class _NeedsMoreError(Exception):
    """A process has too much to do, and there may be more of them."""


class _Watch:
    """Looks at the share of its core that each process uses, and ends the run where one has too much to do."""

    def __init__(self) -> None:
        self._begin: float | None = None

    def __call__(self, shares: list[float]) -> None:
        now = time.perf_counter()
        if self._begin is None:
            self._begin = now
        elif now - self._begin > _SETTLE_S and max(shares) > _FULL:
            raise _NeedsMoreError
