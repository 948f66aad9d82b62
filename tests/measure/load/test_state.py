"""How far a load run is: counters of a real run, and words; what shows them costs the run nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.measure import progress
from pytest_inferperf.measure.load import generator
from pytest_inferperf.measure.load.accounts import Accounts
from pytest_inferperf.measure.load.generator import LoadPlan, LoadRun, run_load
from pytest_inferperf.measure.load.plan import Failure
from pytest_inferperf.measure.load.records import MEASURED
from pytest_inferperf.measure.load.state import LoadState, joint_state, load_state
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.measure.load.conftest import simulated

STATE = LoadState(
    done=120,
    requests=400,
    in_flight=32,
    tokens_per_s=5321.4,
    ttft_p50_ms=201.2,
    ttft_p99_ms=229.8,
    errors=1,
    left_s=12.4,
)
NONE = math.nan


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look fifty times a second: these runs are short."""

    def watched(state: Callable[[], str], live: Any) -> Any:
        return progress.watched(state, live, every_s=0.02)

    monkeypatch.setattr(generator, "watched", watched)


def run(live: Callable[[Callable[[], str]], None], *, requests: int = 12, **behaviour: Any) -> LoadRun:
    with simulated(**{"ttft_ms": 60.0, "itl_ms": 5.0, **behaviour}) as it:
        body = it.body([1, 2], osl=4)
        plan = LoadPlan(num_requests=requests, osl=4, concurrency=2, timeout_s=20.0)
        return run_load(it, plan, lambda _index: body, live=live)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (STATE, "120/400 requests, 32 in flight, 5321 tok/s, TTFT p50 201 p99 230 ms, 1 error, 12 s left"),
        (
            replace(STATE, done=0, tokens_per_s=NONE, ttft_p50_ms=NONE, ttft_p99_ms=NONE, left_s=NONE, errors=0),
            "0/400 requests, 32 in flight, 0 errors",
        ),
        (replace(STATE, errors=2, left_s=75.0), "*, 2 errors, 1 min 15 s left"),
        (replace(STATE, left_s=7290.0), "*, 1 error, 2 h 1 min left"),
    ],
)
def test_words(state: LoadState, words: str) -> None:
    assert str(state).endswith(words.lstrip("*"))


def test_a_run_says_how_far_it_is() -> None:
    states: list[str] = []
    found = run(lambda text: states.append(text()))
    assert len(states) > 3
    done = [int(line.partition("/")[0]) for line in states]
    assert done == sorted(done)
    assert all(0 <= count <= 12 for count in done)
    assert all("/12 requests, " in line and " in flight" in line and "0 errors" in line for line in states)
    assert any("tok/s" in line and "TTFT p50 " in line and line.endswith(" left") for line in states)
    assert list(found.records.kind).count(MEASURED) == 12


def test_what_is_not_known_yet_is_not_said() -> None:
    accounts = Accounts(count_tokens=None)
    found = load_state(accounts, [], done=0, requests=5, begin=1.0, first_measured=None, now=2.0)
    assert str(found) == "0/5 requests, 0 in flight, 0 errors"


def test_a_row_that_is_being_written_is_left_out() -> None:
    accounts = Accounts(count_tokens=None)
    for number in range(3):
        accounts.records.add(
            kind=MEASURED, ok=True, intended=1.0, sent=1.0, first=1.1 + number, last=2.0, done=2.0, tokens=4
        )
    accounts.records.add(kind=MEASURED, ok=False, intended=1.0, sent=1.0, done=3.0)
    accounts.records.kind.append(MEASURED)
    accounts.records.ok.append(True)
    accounts.tokens = 12
    accounts.failures["http_503"] = Failure(count=1)
    found = load_state(accounts, [], done=4, requests=8, begin=1.0, first_measured=1.0, now=3.0)
    assert found.ttft_p50_ms == pytest.approx(1100)
    assert found.ttft_p99_ms == pytest.approx(2100)
    assert (found.errors, found.tokens_per_s, found.left_s) == (1, 6.0, 2.0)


def test_the_states_of_several_processes_are_one() -> None:
    other = replace(
        STATE, done=80, in_flight=16, tokens_per_s=1000.0, ttft_p50_ms=301.2, ttft_p99_ms=500.0, left_s=20.0
    )
    young = replace(STATE, done=0, tokens_per_s=NONE, ttft_p50_ms=NONE, ttft_p99_ms=NONE, left_s=NONE, errors=0)
    assert str(joint_state([STATE, other, young], 1200)) == (
        "200/1200 requests, 80 in flight, 6321 tok/s, TTFT p50 251 p99 500 ms, 2 errors, 20 s left"
    )
    assert str(joint_state([], 5)) == "0/5 requests, 0 in flight, 0 errors"


def test_a_terminal_that_is_stopped_does_not_stop_the_load() -> None:
    """Ctrl-S: the first line is not written before the server has answered every request."""
    waits: list[bool] = []
    with serve_in_thread(Behaviour(ttft_ms=30.0, itl_ms=5.0)) as server:
        it = Endpoint.parse(server.url, model="simulated")
        body = it.body([1, 2], osl=4)
        plan = LoadPlan(num_requests=8, osl=4, concurrency=2, timeout_s=20.0)

        def stuck(_text: Callable[[], str]) -> None:
            deadline = time.monotonic() + 20
            while server.stats()["requests"] < plan.num_requests + plan.concurrency and time.monotonic() < deadline:
                time.sleep(0.01)
            waits.append(time.monotonic() < deadline)

        found = run_load(it, plan, lambda _index: body, live=stuck)
    assert waits
    assert all(waits)
    assert list(found.records.kind).count(MEASURED) == 8
    assert not found.failures
