"""A load that several real processes send together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.measure import progress
from pytest_inferperf.measure.load import processes as processes_module
from pytest_inferperf.measure.load.arrivals import Arrivals
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.processes import Bodies, run_together
from pytest_inferperf.measure.load.prompts import SyntheticBodies
from pytest_inferperf.measure.load.records import FILLER, MEASURED, WARMUP
from pytest_inferperf.measure.load.summary import check_load, summarise_load
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import SimulatedServer, serve_in_thread
from tests.measure.load.conftest import children, endpoint

pytestmark = pytest.mark.usefixtures("none_is_left")

ISL, OSL = 8, 4
QUICK = Behaviour(ttft_ms=40, itl_ms=10)


def bodies(target: Endpoint) -> Any:
    return lambda index: SyntheticBodies(target, isl=ISL, osl=OSL, seed=1).slice(index, 2 + index)


def together(server: SimulatedServer, *, processes: int = 2, **options: Any) -> LoadRun:
    target = endpoint(server.port)
    plan = LoadPlan(osl=OSL, **({"concurrency": 6, "num_requests": 20} | options.pop("plan", {})))
    make = options.pop("bodies", bodies(target))
    return run_together(target, plan, make, processes=processes, **options)


@pytest.mark.parametrize("count", [2, 3])
def test_a_closed_loop_holds_the_concurrency_from_all_processes(count: int) -> None:
    with serve_in_thread(QUICK) as server:
        run = together(server, processes=count)
        seen = server.stats()
    kinds = run.records.columns()["kind"]
    assert [int((kinds == kind).sum()) for kind in (WARMUP, MEASURED)] == [6, 20]
    assert int((kinds == FILLER).sum()) + run.cut == run.fillers
    assert run.held == pytest.approx(6, rel=0.1)
    assert seen["peak_active"] == 6
    assert not run.failures
    assert len(run.clocks) == count
    assert run.clock.cpu_share == pytest.approx(sum(clock.cpu_share for clock in run.clocks))
    columns = run.records.columns()
    assert columns["number"][kinds == MEASURED].tolist() == list(range(20))
    assert columns["done"].max() <= run.stop
    metrics = summarise_load(run, isl=ISL, check=False).metrics
    assert metrics["ttft_ms.p50"] == pytest.approx(40, abs=25)
    assert len(run.itl_ms) == 20 * (OSL - 1)


def test_an_open_loop_is_one_arrival_process_in_slices() -> None:
    arrivals = Arrivals(rate=60, kind="constant")
    with serve_in_thread(QUICK) as server:
        run = together(server, plan={"concurrency": 0, "arrivals": arrivals, "num_requests": 30})
    columns = run.records.columns()
    due = np.sort(columns["intended"])
    assert int((columns["kind"] == MEASURED).sum()) == 30
    assert np.diff(due) == pytest.approx(1 / 60, abs=1e-6)
    assert not check_load(run, limits=None).startswith("the last requests")


def test_no_two_processes_send_the_same() -> None:
    with serve_in_thread(QUICK) as server:
        target = endpoint(server.port)
        texts = SyntheticBodies(target, isl=ISL, osl=OSL, seed=1)
        run = together(server, bodies=lambda index: texts.slice(index, 2), plan={"num_requests": 20, "kept": 20})
    assert len({output.body for output in run.outputs}) == 20


def test_causes_of_failures_are_counted_over_all() -> None:
    with serve_in_thread(Behaviour(ttft_ms=5, itl_ms=1, error_rate=1.0)) as server:
        run = together(server)
    assert run.failures["http_503"].count == 20
    assert "simulated error" in run.failures["http_503"].example


def test_progress_and_shares_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def often(state: Callable[[], str], live: Any) -> Any:
        return progress.watched(state, live, every_s=0.05)

    monkeypatch.setattr(processes_module, "watched", often)
    states: list[str] = []
    shares: list[list[float]] = []
    with serve_in_thread(Behaviour(ttft_ms=250, itl_ms=20)) as server:
        together(
            server,
            plan={"num_requests": 24},
            live=lambda text: states.append(text()),
            watch=lambda each: shares.append([*each]),
        )
    done = [int(line.partition("/")[0]) for line in states]
    assert all("/24 requests, " in line for line in states)
    assert done == sorted(done)
    assert 0 < done[-1] <= 24
    assert any("6 in flight" in line and "TTFT p50 " in line for line in states)
    assert {len(each) for each in shares} == {2}


def test_a_watch_that_raises_ends_all() -> None:
    class EnoughError(Exception):
        pass

    def watch(shares: list[float]) -> None:
        raise EnoughError

    with serve_in_thread(QUICK) as server, pytest.raises(EnoughError):
        together(server, watch=watch, plan={"num_requests": 100_000})


def test_a_process_that_is_killed_is_an_error_that_says_so() -> None:
    def kill(_shares: list[float]) -> None:
        if server.stats()["requests"] > 20:
            os.kill(max(children()), signal.SIGKILL)

    with (
        serve_in_thread(QUICK) as server,
        pytest.raises(EngineError, match=r"^load process 2 of 2 was killed by signal 9 in mid-run\.$"),
    ):
        together(server, watch=kill, plan={"num_requests": 100_000})


def test_a_process_that_hangs_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes_module, "_SILENT_S", 1.0)

    def hang(_shares: list[float]) -> None:
        if server.stats()["requests"] > 20:
            os.kill(max(children()), signal.SIGSTOP)

    with (
        serve_in_thread(QUICK) as server,
        pytest.raises(EngineError, match=r"^load process 2 of 2 has said nothing for 1 s: it hangs\.$"),
    ):
        together(server, watch=hang, plan={"num_requests": 100_000})


def test_what_a_process_raises_is_raised() -> None:
    def broken(index: int) -> Bodies:
        raise ValueError("no such prompt")

    with serve_in_thread(QUICK) as server:
        with pytest.raises(RuntimeError, match=r"^load process [12] of 2: ValueError\('no such prompt'\)$"):
            together(server, bodies=broken)
        port = server.port
    with pytest.raises(EngineError, match="cannot connect"):
        run_together(
            endpoint(port), LoadPlan(osl=1, concurrency=2, num_requests=2), bodies(endpoint(port)), processes=2
        )


def test_ctrl_c_keeps_what_was_measured() -> None:
    def interrupt(_shares: list[float]) -> None:
        if server.stats()["requests"] > 20:
            signal.raise_signal(signal.SIGINT)

    with serve_in_thread(QUICK) as server:
        run = together(server, watch=interrupt, plan={"num_requests": 100_000})
    assert run.interrupted
    assert int((run.records.columns()["kind"] == MEASURED).sum()) > 6
    assert check_load(run).startswith("interrupted after")


def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with serve_in_thread(QUICK) as server:
        command = [sys.executable, "-m", "pytest_inferperf.cli", "measure", "--url", server.url, "--model", "simulated"]
        sizes = ["--isl", "8", "--osl", "4", "--concurrency", "4", "--num-requests", "1000000", "--processes", "2"]
        with subprocess.Popen([*command, *sizes], cwd=tmp_path) as process:
            parent = psutil.Process(process.pid)
            until = time.monotonic() + 20
            while len(found := parent.children()) < 2 or server.stats()["requests"] < 8:
                assert time.monotonic() < until
                time.sleep(0.05)
            process.kill()
        _, left = psutil.wait_procs(found, timeout=20)
        assert not left


@pytest.mark.parametrize("count", [0, 7])
def test_more_processes_than_streams(count: int) -> None:
    with pytest.raises(SettingsError, match=rf"^{count} processes: must be from 1 to 6, so that each has a request"):
        run_together(endpoint(1), LoadPlan(osl=1, concurrency=6, num_requests=9), bodies(endpoint(1)), processes=count)


def test_sockets_of_this_process_are_not_held_open_by_the_others() -> None:
    """A fork has every descriptor of its parent: one that is closed here must be seen as closed by its other end."""
    left, right = socket.socketpair()
    theirs: list[bytes] = []

    def close(_shares: list[float]) -> None:
        if server.stats()["requests"] > 8 and not theirs:
            right.close()
            left.settimeout(10)
            theirs.append(left.recv(1))

    with left, serve_in_thread(QUICK) as server:
        together(server, watch=close, plan={"num_requests": 40})
    assert theirs == [b""]
