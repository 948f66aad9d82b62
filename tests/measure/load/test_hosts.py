"""A load that several hosts send together, each with a clock of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_inferperf.errors import EngineError, InvalidRun, NodeLost, SettingsError
from pytest_inferperf.measure.load import hosts as hosts_module
from pytest_inferperf.measure.load.arrivals import Arrivals
from pytest_inferperf.measure.load.hosts import run_on_hosts
from pytest_inferperf.measure.load.messages import read_message
from pytest_inferperf.measure.load.plain import write
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.processes import MOMENT, STOP
from pytest_inferperf.measure.load.prompts import SyntheticBodies
from pytest_inferperf.measure.load.records import MEASURED, WARMUP
from pytest_inferperf.measure.load.skew import measure_offset
from pytest_inferperf.measure.load.summary import check_load, summarise_load
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import SimulatedServer, serve_in_thread
from tests.measure.load.conftest import endpoint
from tests.measure.load.machines import Machine

pytestmark = pytest.mark.usefixtures("none_is_left")

HOSTED = "pytest_inferperf.measure.load.hosted"
ISL, OSL = 8, 4
QUICK = Behaviour(ttft_ms=60, itl_ms=10)


def together(server: SimulatedServer, *machines: Machine, processes: int = 1, **options: Any) -> LoadRun:
    target = endpoint(server.port, api_key_env=options.pop("api_key_env", ""))
    plan = LoadPlan(osl=OSL, **({"concurrency": 6, "num_requests": 60} | options.pop("plan", {})))
    texts = SyntheticBodies(target, isl=ISL, osl=OSL, seed=1)
    count = processes * len(machines)
    return run_on_hosts(target, plan, lambda index: texts.slice(index, count), machines, processes=processes, **options)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Machine, Machine]:
    """Two machines whose clocks have nothing in common."""
    return Machine("node a", tmp_path), Machine("node b", tmp_path, ahead_s=123_456.0)


def test_clocks_of_any_offset_make_one_run(two: tuple[Machine, Machine]) -> None:
    with serve_in_thread(QUICK) as server:
        run = together(server, *two, plan={"kept": 60})
        seen = server.stats()
    columns = run.records.columns()
    assert [int((columns["kind"] == kind).sum()) for kind in (WARMUP, MEASURED)] == [6, 60]
    assert not run.failures
    assert seen["peak_active"] == 6
    assert run.held == pytest.approx(6, rel=0.05)
    # All of it on the clock of this process, in which it happened just now.
    now = time.perf_counter()
    assert now - 60 < columns["sent"].min() < run.start < run.stop < now
    assert run.stop - run.start == pytest.approx(1.0, abs=0.5)
    metrics = summarise_load(run, isl=ISL, check=False).metrics
    assert metrics["ttft_ms.p50"] == pytest.approx(60, abs=25)
    assert [host.host for host in run.hosts] == ["node a", "node b"]
    assert [round(host.offset_s) for host in run.hosts] == [0, 123_456]
    assert len(run.clocks) == 2
    assert len({output.body for output in run.outputs}) == 60


def test_a_clean_run_is_judged(two: tuple[Machine, Machine]) -> None:
    with serve_in_thread(Behaviour(ttft_ms=200, itl_ms=20)) as server:
        run = together(server, *two, plan={"num_requests": 36})
    assert check_load(run, isl=ISL, min_held_share=0.5) == ""


def test_a_clock_that_goes_wrong_makes_the_run_invalid(tmp_path: Path) -> None:
    machines = Machine("node a", tmp_path), Machine("node b", tmp_path, ahead_s=-100.0, rate=1.02)
    with serve_in_thread(Behaviour(ttft_ms=200, itl_ms=20)) as server:
        run = together(server, *machines, plan={"num_requests": 36})
    cause = check_load(run, isl=ISL, min_held_share=0.5)
    assert cause.startswith("clock skew: moments of node b are known within ")
    with pytest.raises(InvalidRun, match=r"^clock skew: moments of node b"):
        summarise_load(run, isl=ISL)


def test_a_clock_that_jumps_in_mid_run_makes_it_invalid_however_long_it_is(two: tuple[Machine, Machine]) -> None:
    def jump(_shares: list[float]) -> None:
        two[1].ahead_s = 123_456.05

    with serve_in_thread(Behaviour(ttft_ms=200, itl_ms=20)) as server:
        run = together(server, *two, watch=jump, plan={"num_requests": 24})
    assert [host.jump_ms for host in run.hosts] == [0, pytest.approx(50, abs=20)]
    # As in a window of a minute, of which 25 ms are little.
    long = replace(run, start=run.start - 60)
    assert check_load(long, isl=ISL, min_held_share=0.0).startswith(
        "clock skew: the clock of node b jumped in the run "
    )


def test_a_host_that_begins_late_makes_the_run_invalid(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(message: bytes, before: Callable[[bytes], float] = two[1].tell) -> float:
        later = MOMENT.pack(MOMENT.unpack(message)[0] + 2.0) if message != STOP else message
        return before(later)

    monkeypatch.setattr(two[1], "tell", tell)
    with serve_in_thread(QUICK) as server:
        run = together(server, *two)
    # Once both send, the load is what was asked for; but one of them had measured half of it by then.
    assert run.held == pytest.approx(6, rel=0.1)
    assert run.held_measured == pytest.approx(4, rel=0.15)
    cause = check_load(run, isl=ISL, min_held_share=0.85)
    assert cause.startswith("from the first measured request on, "), cause
    assert "a process began later than the others" in cause


def test_a_host_that_says_all_twice_is_heard_once(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hear(before: Callable[[], list[Any]] = two[0].hear) -> list[Any]:
        return [item for item in before() for _ in range(2)]

    monkeypatch.setattr(two[0], "hear", hear)
    with serve_in_thread(QUICK) as server:
        run = together(server, *two, plan={"num_requests": 12})
        assert server.stats()["peak_active"] == 6
    assert not run.interrupted
    assert int((run.records.columns()["kind"] == MEASURED).sum()) == 12


def test_a_part_that_lacks_a_request_makes_the_run_invalid(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(said: bytes | int) -> bytes | int:
        if isinstance(said, int):
            return said
        word, value = read_message(said, who="node b")
        if word == "part":
            value.records.kind[value.records.kind.index(MEASURED)] = WARMUP
        return write([word, value])

    def hear(before: Callable[[], list[Any]] = two[1].hear) -> list[Any]:
        return [(place, lacking(said)) for place, said in before()]

    monkeypatch.setattr(two[1], "hear", hear)
    with (
        serve_in_thread(QUICK) as server,
        pytest.raises(
            InvalidRun, match=r"^load process 2 of 2, on node b, has measured 5 requests where 6 were its own: "
        ),
    ):
        together(server, *two, plan={"num_requests": 12})


def test_a_host_that_says_what_is_no_message(two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two[1], "hear", lambda: [(0, b"\x80\x05K\x01.")])
    with (
        serve_in_thread(QUICK) as server,
        pytest.raises(
            EngineError, match=r"^load process 2 of 2, on node b, said something that is no message of a load: "
        ),
    ):
        together(server, *two)


def test_a_host_that_is_lost_once_all_is_sent_gives_no_figure(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock(before: Callable[[], float] = two[1].clock) -> float:
        if server.stats()["requests"]:
            raise NodeLost("the load is lost on node b (ActorDiedError)")
        return before()

    monkeypatch.setattr(two[1], "clock", clock)
    with serve_in_thread(QUICK) as server, pytest.raises(EngineError, match=r"lost on node b .*, in mid-run: what the"):
        together(server, *two, plan={"num_requests": 12})


def test_no_two_hosts_send_the_same_prompt_nor_one_that_went_out_before(two: tuple[Machine, Machine]) -> None:
    with serve_in_thread(QUICK) as server:
        run = together(server, *two, plan={"kept": 60})
    target = endpoint(server.port)
    alone = SyntheticBodies(target, isl=ISL, osl=OSL, seed=1).slice(0, 1)
    bodies = {output.body for output in run.outputs}
    assert len(bodies) == 60
    assert not bodies & {alone.make_body(number) for number in range(1000)}


def test_a_host_that_is_far_away_makes_the_run_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_module, "measure_offset", partial(measure_offset, exchanges=20))
    machines = Machine("node a", tmp_path), Machine("node b", tmp_path, way_s=0.01)
    with serve_in_thread(Behaviour(ttft_ms=200, itl_ms=20)) as server:
        run = together(server, *machines, plan={"num_requests": 24})
    assert check_load(run, isl=ISL, min_held_share=0.5).startswith("clock skew: moments of node b are known within ")


def test_one_process_that_is_the_bottleneck_makes_the_run_invalid_and_its_host_is_named(
    two: tuple[Machine, Machine],
) -> None:
    with serve_in_thread(QUICK) as server:
        run = together(server, *two, plan={"num_requests": 12})
    busy = replace(run.clocks[1], cpu_share=0.99, idle_share=0.0)
    cause = check_load(replace(run, clocks=(run.clocks[0], busy)), min_held_share=0.5)
    assert cause.startswith("process 2 of 2 on node b: client-bound: the load generator used 99 % of a core")


def test_an_open_loop_is_the_arrival_process_that_was_asked_for(two: tuple[Machine, Machine]) -> None:
    arrivals = Arrivals(rate=60, seed=3)
    with serve_in_thread(QUICK) as server:
        run = together(server, *two, plan={"concurrency": 0, "arrivals": arrivals, "num_requests": 40})
    due = np.sort(run.records.columns()["intended"])
    planned = arrivals.times()
    gaps = np.diff([next(planned) for _ in range(len(due))])
    error_s = sum(host.error_ms for host in run.hosts) / 1000
    assert np.diff(due) == pytest.approx(gaps, abs=error_s + 1e-6)


def test_a_process_that_is_killed_is_an_error_that_says_where(two: tuple[Machine, Machine]) -> None:
    def kill(_shares: list[float]) -> None:
        if server.stats()["requests"] > 20:
            os.kill(two[1].load._processes[0].pid, signal.SIGKILL)

    with (
        serve_in_thread(QUICK) as server,
        pytest.raises(EngineError, match=r"^load process 2 of 2, on node b, was killed by signal 9 in mid-run\.$"),
    ):
        together(server, *two, watch=kill, plan={"num_requests": 100_000})


def test_a_host_that_is_lost_is_an_error_and_never_a_figure_of_the_rest(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hear(before: Callable[[], list[Any]] = two[1].hear) -> list[Any]:
        if server.stats()["requests"] > 20:
            raise NodeLost("the load is lost on node b (ActorDiedError)")
        return before()

    monkeypatch.setattr(two[1], "hear", hear)
    with serve_in_thread(QUICK) as server, pytest.raises(EngineError) as caught:
        together(server, *two, plan={"num_requests": 100_000})
    assert str(caught.value) == (
        "the load is lost on node b (ActorDiedError), in mid-run: what the others sent is another load than was asked for."
    )
    # Nobody else's business: there is no engine that could go on elsewhere.
    assert not isinstance(caught.value, NodeLost)


def test_a_host_that_hangs_is_an_error(two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_module, "_SILENT_S", 6.0)

    def hang(_shares: list[float]) -> None:
        os.kill(two[0].load._processes[0].pid, signal.SIGSTOP)

    with (
        serve_in_thread(QUICK) as server,
        pytest.raises(EngineError, match=r"^load process 1 of 2, on node a, has said nothing for 6 s: it hangs\.$"),
    ):
        together(server, *two, watch=hang, plan={"num_requests": 100_000})


def test_a_host_that_hears_of_the_beginning_too_late(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts_module, "_LEAD_S", -1.0)
    with (
        serve_in_thread(QUICK) as server,
        pytest.raises(InvalidRun, match=r"^node a heard of the beginning of the load 1\d\d\d ms too late, -1 s after"),
    ):
        together(server, *two)


def test_ctrl_c_keeps_what_was_measured(two: tuple[Machine, Machine]) -> None:
    def interrupt(_shares: list[float]) -> None:
        if server.stats()["requests"] > 20:
            signal.raise_signal(signal.SIGINT)

    with serve_in_thread(QUICK) as server:
        run = together(server, *two, watch=interrupt, plan={"num_requests": 100_000})
    assert run.interrupted
    assert int((run.records.columns()["kind"] == MEASURED).sum()) > 6
    assert check_load(run).startswith("interrupted after")


def test_the_key_of_an_api_is_read_on_each_host_and_not_sent(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    letters: list[bytes] = []
    lines: list[str] = []

    def start(sent: Sequence[bytes], begin: Callable[[Sequence[bytes]], None] = two[1].load.start) -> None:
        letters.extend(sent)
        begin(sent)
        # `ps` shows these to all users of that machine.
        lines.extend(str(process.args) for process in two[1].load._processes)

    monkeypatch.setattr(two[1].load, "start", start)
    monkeypatch.setenv("LOAD_KEY", "sk-not-to-be-shipped")
    with serve_in_thread(QUICK) as server:
        run = together(server, *two, api_key_env="LOAD_KEY", plan={"num_requests": 12})
    assert b"LOAD_KEY" in letters[0]
    assert not any(b"sk-not" in letter for letter in letters)
    assert HOSTED in lines[0]
    assert not any("sk-not" in line for line in lines)
    assert not run.failures


def test_a_host_without_the_key_is_an_error_before_the_beginning(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOAD_KEY", "sk-here")

    def start(letters: list[bytes], begin: Callable[[list[bytes]], None] = two[1].load.start) -> None:
        with monkeypatch.context() as there:
            there.delenv("LOAD_KEY")
            begin(letters)

    monkeypatch.setattr(two[1].load, "start", start)
    with (
        serve_in_thread(QUICK) as server,
        pytest.raises(
            SettingsError, match=r"^node b: the environment variable LOAD_KEY is not set; it should hold the API key\.$"
        ),
    ):
        together(server, *two, api_key_env="LOAD_KEY")
    assert server.stats()["requests"] == 0


def test_more_processes_than_streams(two: tuple[Machine, Machine]) -> None:
    with (
        serve_in_thread(QUICK) as server,
        pytest.raises(SettingsError, match=r"^2 hosts with 4 processes each: there may"),
    ):
        together(server, *two, processes=4)
