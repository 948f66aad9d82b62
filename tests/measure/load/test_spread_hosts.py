"""When a load goes over to other hosts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.measure.load import spread
from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.prompts import SyntheticBodies
from pytest_inferperf.measure.load.spread import spread_load
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.measure.load.conftest import endpoint
from tests.measure.load.machines import Machines

PLAN = LoadPlan(num_requests=160, osl=2, concurrency=16)


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "_needed", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def sent(monkeypatch: pytest.MonkeyPatch, hosts: Machines, share: float, **options: Any) -> tuple[LoadRun, list[int]]:
    """Send a load whose process on this machine claims to use `share` of its core; return it and the attempts."""
    monkeypatch.setattr(ClockMeter, "path_share", property(lambda _: share))
    monkeypatch.setattr(spread, "_SETTLE_S", 0.0)
    attempts: list[int] = []
    with serve_in_thread(Behaviour(ttft_ms=60, itl_ms=10)) as server:
        target = endpoint(server.port)

        def write(attempt: int) -> SyntheticBodies:
            attempts.append(attempt)
            return SyntheticBodies(target, isl=4, osl=2, seed=attempt)

        return spread_load(target, PLAN, write, hosts=hosts, **options), attempts


def test_a_load_that_is_too_much_for_this_machine_is_begun_anew_by_hosts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hosts = Machines(tmp_path, count=3, cores=1)
    run, attempts = sent(monkeypatch, hosts, 0.9)
    assert (attempts, hosts.taken_so_far) == ([0, 1], [(2, 1)])
    assert [host.host for host in run.hosts] == ["machine 0", "machine 1"]
    assert not run.failures
    # The next round knows.
    run, attempts = sent(monkeypatch, hosts, 0.9)
    assert (attempts, hosts.taken_so_far) == ([0], [(2, 1)] * 2)


def test_as_few_hosts_as_have_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = Machines(tmp_path, count=3, cores=2)
    run, _ = sent(monkeypatch, hosts, 0.9)
    assert hosts.taken_so_far == [(1, 2)]
    assert (len(run.hosts), len(run.clocks)) == (1, 2)


def test_hosts_that_are_not_needed_are_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = Machines(tmp_path)
    run, attempts = sent(monkeypatch, hosts, 0.3)
    assert (attempts, hosts.asked, run.hosts) == ([0], 0, ())


def test_where_nobody_can_help_the_load_is_sent_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = Machines(tmp_path, count=0, cores=0)
    run, attempts = sent(monkeypatch, hosts, 0.9)
    assert (attempts, hosts.taken_so_far, run.hosts) == ([0, 1], [], ())


def test_who_asks_for_hosts_gets_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = Machines(tmp_path, wanted=2)
    run, attempts = sent(monkeypatch, hosts, 0.0)
    assert (attempts, hosts.taken_so_far) == ([0], [(2, 1)])
    assert len(run.hosts) == 2


def test_who_asks_for_processes_gets_them_on_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = Machines(tmp_path, wanted=2)
    run, _ = sent(monkeypatch, hosts, 0.0, processes=2)
    assert (hosts.taken_so_far, len(run.clocks)) == ([(2, 2)], 4)
    # Without a word of hosts, they are processes of this machine.
    hosts = Machines(tmp_path)
    run, _ = sent(monkeypatch, hosts, 0.9, processes=2)
    assert (hosts.asked, len(run.clocks), run.hosts) == (0, 2, ())


def test_shapes_rise_by_twos_up_to_what_there_is(tmp_path: Path) -> None:
    target = endpoint(1)
    ladder = spread._Ladder(
        target, LoadPlan(num_requests=99, osl=1, concurrency=50), None, Machines(tmp_path, count=5, cores=4)
    )
    shapes = [ladder.shape]
    while ladder.may_rise:
        ladder.rise()
        shapes.append(ladder.shape)
    assert [(shape.hosts, shape.processes) for shape in shapes] == [(0, 1), (1, 2), (1, 4), (2, 4), (4, 4), (5, 4)]
