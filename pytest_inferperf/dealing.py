"""Deals tests to the workers of pytest-xdist: all tests of one engine to one worker, the longest first.

Imported in the controller of a run with `-n`, and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from xdist.scheduler import LoadScopeScheduling

from pytest_inferperf.planning.order import end_of, next_of

if TYPE_CHECKING:
    import pytest
    from xdist.workermanage import WorkerController

__all__ = ["LongestFirst"]


class LongestFirst(LoadScopeScheduling):  # type: ignore[misc]
    """What waits for workers: the tests of one engine, or those of a module that have none.

    A worker begins a test only once it knows what comes next. So what is dealt ahead is what the worker would have taken
    in any case, by the times that are expected, and it is dealt as late as can be.
    """

    def __init__(self, config: pytest.Config, log: Any, times: Callable[[], Mapping[str, tuple[str, float]]]) -> None:
        """`times` says, once the workers have collected, to what each test of ours belongs and how long it takes."""
        super().__init__(config, log)
        self._read_times = times
        self._times: Mapping[str, tuple[str, float]] = {}
        self._since: dict[WorkerController, float] = {}
        """When each worker began what it does now."""

        self._ends = 0.0

    def schedule(self) -> None:
        """Deal what waits; called again for a worker that joins."""
        if self.collection is None:
            self._times = self._read_times()
        super().schedule()
        self._foresee()

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        """See that a worker goes on to its next test."""
        self._since[node] = time.monotonic()
        super().mark_test_complete(node, item_index, duration)
        self._foresee()

    def left_s(self) -> float | None:
        """Return the seconds that all of it will take yet, by what is expected; None where that was too little.

        May be asked by any thread.
        """
        left = self._ends - time.monotonic()
        return left if left > 0 else None

    def _foresee(self) -> None:
        waiting = sorted(map(self._seconds, self.workqueue.values()), reverse=True)
        self._ends = time.monotonic() + end_of([self._free_s(node) for node in self.nodes], waiting)

    def remove_node(self, node: WorkerController) -> str | None:
        """Take back what a worker has not run; the test that it died of is run no more."""
        workload = self.assigned_work.pop(node)
        left = [nodeid for unit in workload.values() for nodeid, done in unit.items() if not done]
        if not left:
            return None
        for scope, unit in workload.items():
            if left[0] in unit:
                unit[left[0]] = True
            if not all(unit.values()):
                self.workqueue[scope] = unit
        for other in self.nodes:
            self._reschedule(other)
        return str(left[0])

    def _split_scope(self, nodeid: str) -> str:
        return self._times[nodeid][0] if nodeid in self._times else str(super()._split_scope(nodeid))

    def _reschedule(self, node: WorkerController) -> None:
        if self.workqueue and not node.shutting_down:
            if self._pending_of(self.assigned_work[node]) > 1:
                return
            if self._choose(node) is None:
                # Others will be free before, and do the rest.
                node.shutdown()
                return
        super()._reschedule(node)

    def _assign_work_unit(self, node: WorkerController) -> None:
        scope = self._choose(node)
        if scope is not None:
            self.workqueue.move_to_end(scope, last=False)
        self._since.setdefault(node, time.monotonic())
        super()._assign_work_unit(node)

    def _choose(self, node: WorkerController) -> str | None:
        """Return what a worker takes next, by what is expected; None where nothing is left for it."""
        waiting = sorted(((self._seconds(unit), scope) for scope, unit in self.workqueue.items()), key=_longest)
        free_s = {one: self._free_s(one) for one in self.nodes if not one.shutting_down}
        number = next_of(node, free_s, [seconds for seconds, _ in waiting])
        return None if number is None else waiting[number][1]

    def _free_s(self, node: WorkerController) -> float:
        left = sum(map(self._seconds, self.assigned_work[node].values()))
        return max(0.0, left - (time.monotonic() - self._since.get(node, time.monotonic())))

    def _seconds(self, unit: Mapping[str, bool]) -> float:
        return sum(self._times.get(nodeid, ("", 0.0))[1] for nodeid, done in unit.items() if not done)


def _longest(item: tuple[float, str]) -> float:
    return -item[0]
