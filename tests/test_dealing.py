"""Who gets which test under `-n`: the scheduler with workers that only keep time, as those of xdist do.

A worker begins a test once it knows what comes after it, or that nothing does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_inferperf import dealing
from pytest_inferperf.dealing import LongestFirst


class Worker:
    """A worker on a clock of its own."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.queue: deque[int] = deque()
        self.shutting_down = False
        self.ran: list[str] = []
        self.busy_until: float | None = None

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        assert not self.shutting_down
        self.queue.extend(indices)

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def may_begin(self) -> bool:
        return self.busy_until is None and (len(self.queue) > 1 or (len(self.queue) == 1 and self.shutting_down))


class Night:
    """A run of tests on workers: `times` says of each test what it belongs to, and how long it takes."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        times: Mapping[str, tuple[str, float]],
        *,
        workers: int,
        others: Sequence[str] = (),
    ) -> None:
        self.now = 0.0
        monkeypatch.setattr(dealing, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.tests = [*times, *others]
        self.actual = {name: seconds for name, (_, seconds) in times.items()}
        config: Any = SimpleNamespace(
            getvalue=lambda _name: ["popen"] * workers, option=SimpleNamespace(loadscopereorder=True, debug=False)
        )
        self.scheduler: Any = LongestFirst(config, SimpleNamespace(loadscopesched=lambda *_: None), lambda: times)
        self.workers = [Worker(f"gw{n}") for n in range(workers)]
        for worker in self.workers:
            self.scheduler.add_node(worker)
            self.scheduler.add_node_collection(worker, self.tests)
        self.scheduler.schedule()

    def begin(self) -> None:
        for worker in self.workers:
            if worker.may_begin:
                name = self.tests[worker.queue[0]]
                worker.ran.append(name)
                worker.busy_until = self.now + self.actual.get(name, 0.0)

    def step(self) -> bool:
        """Go on to the next end of a test; whether there is one."""
        self.begin()
        busy = [worker for worker in self.workers if worker.busy_until is not None]
        if not busy:
            return False
        first = min(busy, key=lambda worker: worker.busy_until or 0.0)
        self.now, first.busy_until = first.busy_until or 0.0, None
        self.scheduler.mark_test_complete(first, first.queue.popleft())
        if self.scheduler.tests_finished:
            for worker in self.workers:
                worker.shutdown()
        return True

    def end(self) -> float:
        """Run everything, and return when the last test ended."""
        while self.step():
            pass
        ran = [name for worker in self.workers for name in worker.ran]
        assert sorted(ran) == sorted(self.tests), "every test runs once"
        return self.now


def alone(*seconds: float) -> dict[str, tuple[str, float]]:
    """Return tests with an engine each."""
    return {f"t{n}": (f"engine {n}", item) for n, item in enumerate(seconds)}


def test_the_longest_run_first_and_nobody_is_promised_what_others_begin_before(monkeypatch: pytest.MonkeyPatch) -> None:
    # Dealt in pairs as they come, the two longest would run one after the other, until 190.
    night = Night(monkeypatch, alone(10, 100, 10, 10, 90, 10), workers=3)
    assert night.end() <= 110
    assert night.scheduler.left_s() is None
    assert [worker.ran[0] for worker in night.workers] == ["t1", "t4", "t0"]


def test_a_night_ends_about_when_work_over_workers_says(monkeypatch: pytest.MonkeyPatch) -> None:
    times = alone(*(10 + 7 * n % 31 for n in range(60)))
    night = Night(monkeypatch, times, workers=4)
    assert night.end() < 1.1 * sum(seconds for _, seconds in times.values()) / 4


def test_the_tests_of_an_engine_run_on_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {f"t{n}": (f"engine {n % 3}", 10.0) for n in range(12)}
    night = Night(monkeypatch, times, workers=2)
    night.end()
    for worker in night.workers:
        engines = [times[name][0] for name in worker.ran]
        # Each engine is opened once.
        assert len([1 for one, other in zip(engines, ["", *engines], strict=False) if one != other]) == len(
            set(engines)
        )
    assert not {times[name][0] for name in night.workers[0].ran} & {times[name][0] for name in night.workers[1].ran}


def test_a_guess_that_was_wrong_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    night = Night(monkeypatch, alone(*[100.0] * 8), workers=4)
    # One of them fails at once: its worker does the next ones.
    night.actual["t0"] = 1.0
    assert night.end() <= 300


def test_tests_of_others_are_dealt_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [f"test_a.py::test_{n}" for n in range(6)]
    night = Night(monkeypatch, {}, workers=2, others=others)
    night.actual = dict.fromkeys(others, 10.0)
    assert night.end() == 30


def test_the_tests_of_an_engine_keep_the_order_of_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {f"test_{m}.py::test_{n}": ("e", 10.0 * n) for m in "ab" for n in range(3)}
    night = Night(monkeypatch, times, workers=1)
    night.end()
    assert night.workers[0].ran == list(times)


def test_a_worker_beside_one_that_hangs_does_all_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    night = Night(monkeypatch, alone(100, 90, 80, 70, 60, 50, 40), workers=2)
    night.actual["t0"] = 1e6
    night.end()
    assert [len(worker.ran) for worker in night.workers] == [2, 5]


def test_more_workers_than_work_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    night = Night(monkeypatch, alone(10, 20), workers=4)
    assert night.end() == 20
    assert [len(worker.ran) for worker in night.workers] == [1, 1, 0, 0]


def test_of_a_worker_that_dies_the_test_is_not_run_again_and_the_rest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"a1": ("a", 10.0), "a2": ("a", 10.0), "b1": ("b", 5.0), "b2": ("b", 5.0)}
    night = Night(monkeypatch, times, workers=2)
    night.begin()
    dead, other = night.workers
    assert dead.ran == ["a1"]
    night.workers.remove(dead)
    assert night.scheduler.remove_node(dead) == "a1"
    # What joins in its place takes over what is left.
    joins = Worker("gw2")
    night.workers.append(joins)
    night.scheduler.add_node(joins)
    night.scheduler.add_node_collection(joins, night.tests)
    night.scheduler.schedule()
    while night.step():
        pass
    assert sorted([*other.ran, *joins.ran]) == ["a2", "b1", "b2"]
