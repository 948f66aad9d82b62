"""In which order cases run where several run at once: the longest first, so that none is left that ends late."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pytest_inferperf.baselines.past import Took

__all__ = ["LEAST_S", "Waiting", "end_of", "expected", "next_of"]

LEAST_S = 1.0
"""No test takes no time: of those that did, a worker would be given any number."""

_Worker = TypeVar("_Worker", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A test that waits for its turn."""

    nodeid: str
    engine: Hashable
    """What it has in common with the tests that are run by the same engine, which is loaded once."""

    kind: str
    """What takes about as long: tests that measure speed, tests that answer a task."""


def expected(tests: Sequence[Waiting], past: Mapping[str, Took]) -> list[Took]:
    """Return how long each test will take, by past results.

    One without any takes as long as the longest known of its kind, else of all: a guess too long costs nothing but its
    turn, and one too short lets the run wait for it at its end.
    """
    known = [(test.kind, past[test.nodeid]) for test in tests if test.nodeid in past]
    longest: dict[str, Took] = {}
    for kind, took in known:
        for name in (kind, ""):
            longest[name] = max(longest.get(name, took), took, key=lambda item: item.total_s)
    guess = longest.get("", Took(load_s=0.0, work_s=LEAST_S))
    return [past.get(test.nodeid) or longest.get(test.kind, guess) for test in tests]


def end_of(free_s: Sequence[float], waiting_s: Sequence[float]) -> float:
    """Return when all is done, in seconds, if whoever is free first takes the first that waits."""
    free = list(free_s) or [0.0]
    heapq.heapify(free)
    for seconds in waiting_s:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def next_of(worker: _Worker, free_s: Mapping[_Worker, float], waiting_s: Sequence[float]) -> int | None:
    """Return which of what waits a worker will run next, if everybody takes the first there is as soon as he is free.

    None where the others will have taken all of it by then. `free_s` is when each worker will be free, `waiting_s` how long
    what waits takes, both in seconds.
    """
    free = [(seconds, turn, one) for turn, (one, seconds) in enumerate(free_s.items())]
    heapq.heapify(free)
    for number, seconds in enumerate(waiting_s):
        at, turn, one = free[0]
        if one == worker:
            return number
        heapq.heapreplace(free, (at + max(seconds, LEAST_S), turn, one))
    return None
