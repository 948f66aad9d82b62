"""Deals tests to the workers of pytest-xdist: all tests of one engine to one worker, the longest first.

Imported in the controller of a run with `-n`, and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from xdist.scheduler import LoadScheduling, LoadScopeScheduling

from pytest_inferperf.planning.order import LEAST_S, end_of, next_of

if TYPE_CHECKING:
    import pytest
    from xdist.workermanage import WorkerController

__all__ = ["LongestFirst"]


class LongestFirst(LoadScopeScheduling):  # type: ignore[misc]
    """What waits for workers: the tests of one engine in the order of the suite, or one test that has none.

    A worker begins a test only once it knows what comes next. So what is dealt ahead is what the worker would have taken
    in any case, by the times that are expected, and it is dealt as late as can be.
    """

    def __init__(
        self, config: pytest.Config, log: Any, times: Callable[[], Mapping[str, tuple[str, float]] | None]
    ) -> None:
        """`times` says, once the workers have collected, to what each test of ours belongs and how long it takes.

        None where no worker could tell: modules are dealt then, since their tests mostly share an engine.
        """
        super().__init__(config, log)
        self._log = log
        self._read_times = times
        self._times: Mapping[str, tuple[str, float]] = {}
        self._told = False
        self._since: dict[WorkerController, float] = {}
        """When each worker began what it does now."""

        self._ends = 0.0

    def schedule(self) -> None:
        """Deal what waits; called again for a worker that joins."""
        if self.collection is None:
            tests = next(iter(self.registered_collections.values()))
            if len(set(tests)) != len(tests):
                # Units are kept by node id, so that a test given twice would run once.
                self._hand_over()
                return
            times = self._read_times()
            self._told, self._times = times is not None, times or {}
        super().schedule()
        self._foresee()

    def _hand_over(self) -> None:
        plain = LoadScheduling(self.config, self._log)
        for node in self.nodes:
            plain.add_node(node)
        for node, tests in self.registered_collections.items():
            plain.add_node_collection(node, tests)
        self.config.pluginmanager.getplugin("dsession").sched = plain
        plain.schedule()

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
        if nodeid in self._times:
            return self._times[nodeid][0]
        return nodeid if self._told else str(super()._split_scope(nodeid))

    def _reschedule(self, node: WorkerController) -> None:
        if self.workqueue and self._pending_of(self.assigned_work[node]) > 1:
            return
        super()._reschedule(node)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(self._choose(node), last=False)
        self._since.setdefault(node, time.monotonic())
        super()._assign_work_unit(node)

    def _choose(self, node: WorkerController) -> str:
        """Return what a worker takes next, by what is expected.

        The shortest where others should have taken all of it by then: a worker that is sent home comes back no more, and
        the others may hang.
        """
        waiting: list[tuple[float, str]] = sorted(
            ((self._seconds(unit), scope) for scope, unit in self.workqueue.items()), key=_longest
        )
        free_s = {one: self._free_s(one) for one in self.nodes if not one.shutting_down}
        number = next_of(node, free_s, [seconds for seconds, _ in waiting])
        return waiting[-1 if number is None else number][1]

    def _free_s(self, node: WorkerController) -> float:
        units = self.assigned_work[node].values()
        now = next((self._expected(nodeid) for unit in units for nodeid, done in unit.items() if not done), None)
        if now is None:
            return 0.0
        left = now - (time.monotonic() - self._since.get(node, time.monotonic()))
        # What is overdue takes as long again as it is late: it may hang.
        return sum(map(self._seconds, units)) - now + abs(left)

    def _seconds(self, unit: Mapping[str, bool]) -> float:
        return sum(self._expected(nodeid) for nodeid, done in unit.items() if not done)

    def _expected(self, nodeid: str) -> float:
        return max(LEAST_S, self._times[nodeid][1]) if nodeid in self._times else LEAST_S


def _longest(item: tuple[float, str]) -> float:
    return -item[0]
