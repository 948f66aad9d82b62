"""How many processes send a load."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.measure.load import spread
from pytest_inferperf.measure.load.arrivals import Arrivals
from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.prompts import SyntheticBodies
from pytest_inferperf.measure.load.spread import most_processes, spread_load
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.measure.load.conftest import endpoint

PLAN = LoadPlan(num_requests=400, osl=2, concurrency=16)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.setattr(spread, "_needed", {})
    return lambda count: monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))


def sent(monkeypatch: pytest.MonkeyPatch, share: float, **options: Any) -> tuple[LoadRun, list[int]]:
    """Send a load whose processes claim to use `share` of a core each; return it and the attempts."""
    monkeypatch.setattr(ClockMeter, "path_share", property(lambda _: share))
    monkeypatch.setattr(spread, "_SETTLE_S", 0.0)
    attempts: list[int] = []
    with serve_in_thread(Behaviour(ttft_ms=30, itl_ms=10)) as server:
        target = endpoint(server.port)
        texts = SyntheticBodies(target, isl=4, osl=2, seed=0)

        def write(attempt: int) -> SyntheticBodies:
            attempts.append(attempt)
            return texts

        return spread_load(target, PLAN, write, **options), attempts


@pytest.mark.parametrize(
    ("count", "url", "plan", "expected"),
    [
        pytest.param(2, "http://127.0.0.1:1", PLAN, 1, id="two cores, one for the server"),
        pytest.param(1, "http://127.0.0.1:1", PLAN, 1, id="never none"),
        pytest.param(8, "http://localhost:1", PLAN, 7, id="a core for each"),
        pytest.param(8, "http://192.0.2.1:1", PLAN, 8, id="a server elsewhere"),
        pytest.param(64, "http://192.0.2.1:1", PLAN, 16, id="no more than streams"),
        pytest.param(
            64,
            "http://192.0.2.1:1",
            LoadPlan(num_requests=9, osl=1, arrivals=Arrivals(rate=5)),
            9,
            id="no more than requests",
        ),
    ],
)
def test_how_many_make_sense(cores: Callable[[int], None], count: int, url: str, plan: LoadPlan, expected: int) -> None:
    cores(count)
    assert most_processes(Endpoint.parse(url, model="m"), plan) == expected


def test_one_is_enough(cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cores(9)
    run, attempts = sent(monkeypatch, 0.3)
    assert (len(run.clocks), attempts) == (1, [0])


def test_a_load_that_is_too_much_is_begun_anew_by_more(
    cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(4)
    run, attempts = sent(monkeypatch, 0.9)
    assert (len(run.clocks), attempts) == (3, [0, 1, 2])
    assert not run.failures
    assert len(run.records) >= PLAN.num_requests
    # The next round knows.
    run, attempts = sent(monkeypatch, 0.9)
    assert (len(run.clocks), attempts) == (3, [0])


def test_there_are_no_cores_for_more(cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cores(2)
    run, attempts = sent(monkeypatch, 0.9)
    assert (len(run.clocks), attempts) == (1, [0])


def test_who_asks_for_a_number_gets_it(cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cores(2)
    run, attempts = sent(monkeypatch, 0.9, processes=2)
    assert (len(run.clocks), attempts) == (2, [0])
