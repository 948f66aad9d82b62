"""Conversations that several real processes send together: what goes wrong with them, as with any load."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.load.hands import Hand, Played
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.processes import run_together
from pytest_inferperf.measure.load.records import MEASURED
from pytest_inferperf.measure.load.summary import check_load
from pytest_inferperf.measure.load.talks import WrittenTurn
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import SimulatedServer, serve_in_thread
from tests.measure.load.conftest import children, endpoint

pytestmark = pytest.mark.usefixtures("none_is_left")

OSL = 4
MANY = 2_000


def together(server: SimulatedServer, watch: Callable[[list[float]], None]) -> LoadRun:
    """Have two processes send many conversations of two turns."""
    target = endpoint(server.port, chat=True)

    def turn(text: str) -> WrittenTurn:
        return WrittenTurn(body=target.body(text, osl=OSL), isl=-1, osl=OSL, messages=(("user", text),))

    talks = tuple((turn(f"{number} asks"), turn(f"{number} asks again")) for number in range(MANY))
    hand = Hand(conversations=talks, has_talks=True, spares=12, spare_seed="x")
    plan = LoadPlan(num_requests=2 * MANY, later_turns=(1,) * MANY, osl=OSL, concurrency=6)
    return run_together(target, plan, lambda index: Played(hand.part(index, 2)).bodies(), processes=2, watch=watch)


def after(server: SimulatedServer, deed: Callable[[], Any]) -> Callable[[list[float]], None]:
    """Do something once there was some load."""

    def watch(_shares: list[float]) -> None:
        if server.stats()["requests"] > 30:
            deed()

    return watch


QUICK = Behaviour(ttft_ms=30, itl_ms=5)


def test_ctrl_c_keeps_what_was_measured() -> None:
    with serve_in_thread(QUICK) as server:
        run = together(server, after(server, lambda: signal.raise_signal(signal.SIGINT)))
    assert run.interrupted
    assert check_load(run).startswith("interrupted after ")
    columns = run.records.columns()
    measured = columns["kind"] == MEASURED
    rows = list(zip(columns["number"][measured].tolist(), columns["turn"][measured].tolist(), strict=True))
    assert rows == sorted(rows)
    assert {turn for _, turn in rows} == {1, 2}
    assert len(set(rows)) == len(rows)
    # Of both processes, which have the even ones and the odd ones.
    assert {number % 2 for number, _ in rows} == {0, 1}


def test_a_process_that_is_killed_is_an_error_that_says_so() -> None:
    with (
        serve_in_thread(QUICK) as server,
        pytest.raises(EngineError, match=r"^load process 2 of 2 was killed by signal 9 in mid-run\.$"),
    ):
        together(server, after(server, lambda: os.kill(max(children()), signal.SIGKILL)))


def test_answers_that_are_kept_are_of_all_processes() -> None:
    with serve_in_thread(Behaviour(ttft_ms=2, itl_ms=0.5)) as server:
        target = endpoint(server.port, chat=True)
        talks = tuple(
            (
                WrittenTurn(
                    body=target.body(f"ask {number}", osl=OSL), isl=-1, osl=OSL, messages=(("user", f"ask {number}"),)
                ),
            )
            for number in range(20)
        )
        hand = Hand(conversations=talks, spares=4, spare_seed="x")
        plan = LoadPlan(num_requests=20, osl=OSL, concurrency=4, kept=20)
        run = run_together(target, plan, lambda index: Played(hand.part(index, 2)).bodies(), processes=2)
    said = {json.loads(output.body)["messages"][0]["content"] for output in run.outputs}
    assert said == {f"ask {number}" for number in range(20)}
    assert not run.records.columns()["turn"].any()
