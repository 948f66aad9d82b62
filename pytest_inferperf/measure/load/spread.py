"""How many processes send a load: one, and more where one turns out to be too few and there are cores for them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Protocol

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.measure.load.generator import run_load
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.processes import Bodies, run_together
from pytest_inferperf.measure.progress import Live

__all__ = ["Texts", "most_processes", "spread_load"]

_FULL = 0.8
"""Share of its core from which a process is given help: at 0.95 what it measured is INVALID."""

_SETTLE_S = 0.5
"""From the beginning of a load, when all requests go out at once, until the share says something."""

_needed: dict[tuple[str, str, int, float, int], int] = {}
"""Processes that loads needed in earlier runs of this process, so that the next round does not find out again."""


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
    live: Live | None = None,
) -> LoadRun:
    """Send the load that `plan` describes from as many processes as it takes, or from `processes`.

    A load that fills more than four fifths of a process's core is given up and begun anew by twice as many, up to
    `most_processes`. `write(attempt)` writes what is sent, attempts counted from 0. Raises what `run_load` and `run_together` do.
    """
    rate = plan.arrivals.rate if plan.arrivals is not None else 0.0
    key = (endpoint.host, endpoint.model, plan.concurrency, rate, plan.osl)
    most = most_processes(endpoint, plan) if processes is None else processes
    count = min(most, _needed.get(key, 1)) if processes is None else processes
    attempt = 0
    while True:
        texts = write(attempt)
        try:
            return _run(endpoint, plan, texts, count, live, _Watch() if count < most else None)
        except _NeedsMoreError:
            count = min(most, 2 * count)
            attempt += 1
            _needed[key] = count


def _run(
    endpoint: Endpoint,
    plan: LoadPlan,
    texts: Texts,
    count: int,
    live: Live | None,
    watch: _Watch | None,
) -> LoadRun:
    if count > 1:
        return run_together(
            endpoint, plan, lambda index: texts.slice(index, count), processes=count, live=live, watch=watch
        )
    alone = texts.slice(0, 1)
    return run_load(
        endpoint,
        plan,
        alone.make_body,
        sizes_of=alone.sizes_of,
        make_spare=alone.make_spare,
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
    return max(1, min(cores, plan.num_requests, plan.concurrency or cores))


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
