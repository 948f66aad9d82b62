"""How often a workload was measured on an engine, so that no server gets a prompt twice: its prefix cache would answer.

Tests of one case share the launch of their engine. The first of them sends the prompts of the workload; each later one
sends as many tokens in another order, which its number decides.
"""

from __future__ import annotations

from pytest_inferperf.model.case import Case

__all__ = ["Occasions"]


class Occasions:
    """Counts the measurements of a run, by engine and load. A launch in between does not matter: any number will do there."""

    def __init__(self, counts: dict[str, int] | None = None) -> None:
        """`counts` holds the next number of each load, and is kept up to date."""
        self._next = {} if counts is None else counts

    def take(self, case: Case) -> int:
        """Return the number of a measurement of this case, from 0: one that none of its loads has had before."""
        loads = [str(sorted(point.identity().items())) for point in (case, *case.points())]
        number = max(self._next.get(load, 0) for load in loads)
        self._next.update(dict.fromkeys(loads, number + 1))
        return number
