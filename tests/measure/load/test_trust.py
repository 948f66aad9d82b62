"""The self-test of the clock: a good meter can be trusted, a wrong one is caught whatever it says of itself."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pytest_inferperf.cli import main
from pytest_inferperf.engines.openai.connection import Connection
from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.load import summary, trust
from pytest_inferperf.measure.load.clock import ClockLimits
from pytest_inferperf.measure.load.trust import ClockPoint, ClockTrust, MetricError, check_clock
from pytest_inferperf.simulate import process
from pytest_inferperf.simulate.behaviour import Behaviour

TRUTH = Behaviour(ttft_ms=150.0, itl_ms=10.0)
LENIENT = ClockTrust(ttft_mean=0.3, ttft_p99=2.0, itl_mean=0.5, held=0.3)
"""For a machine that others use too; what is looked for here is worse by far."""


@pytest.fixture(autouse=True)
def _busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that shares its cores may be starved: that is judged, and tested, elsewhere."""
    monkeypatch.setattr(summary, "ClockLimits", lambda: ClockLimits(error_floor_ms=1e6, cpu_share=1e6))


def measure() -> ClockPoint:
    (point,) = check_clock((2,), truth=TRUTH, osl=8, trust=LENIENT)
    return point


def test_a_meter_that_is_right_can_be_trusted() -> None:
    point = measure()
    assert point.cause == ""
    assert [error.metric for error in point.errors] == ["ttft_ms.mean", "ttft_ms.p99", "itl_ms.mean"]
    assert point.clock is not None
    assert 0.3 <= point.held <= 1


def test_a_meter_that_takes_its_times_late_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that data came 100 ms after it came, and notices nothing: only a known truth tells."""
    receive = Connection.receive

    def late(connection: Connection) -> tuple[bytes, int]:
        data, came_ns = receive(connection)
        return data, (came_ns or time.time_ns()) + 100_000_000

    monkeypatch.setattr(Connection, "receive", late)
    point = measure()
    assert point.cause.startswith("ttft_ms.")
    assert "where the truth is 150" in point.cause
    (first, *_) = point.errors
    assert first.share > 0.5
    assert first.tolerance == pytest.approx(5 * first.share)


def test_a_meter_that_uses_up_its_core_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "ClockLimits", lambda: ClockLimits(error_floor_ms=1e6, cpu_share=0.0))
    assert measure().cause.startswith("client-bound: the load generator used")


def test_a_concurrency_that_was_not_held_is_caught() -> None:
    (point,) = check_clock((2,), truth=TRUTH, osl=8, trust=ClockTrust(held=1.1))
    assert "figures at this concurrency were not measured" in point.cause


def test_a_truth_that_is_late_itself_is_named() -> None:
    errors = (MetricError(metric="ttft_ms.mean", truth_ms=200, measured_ms=220, allowed=0.01),)
    assert trust._cause(errors, 0.2) == ("ttft_ms.mean 220.00 ms where the truth is 200 (+10.00 %, 1 % is allowed)")
    assert trust._cause(errors, 19.0).endswith(
        "; the simulated server itself was late by 19.00 ms in the mean: the machine is busy"
    )


def test_the_server_has_ended_when_its_block_has() -> None:
    with process.serve_in_process(TRUTH) as url:
        port = int(url.rpartition(":")[2])
        found = process.read_stats("127.0.0.1", port)
    assert found["requests"] == 0
    with pytest.raises(ConnectionRefusedError):
        process.read_stats("127.0.0.1", port)


def test_a_server_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match=r"^the simulated server did not start: it ended with exit status 1\.$"):
        measure()


def test_every_behaviour_reaches_the_process() -> None:
    behaviour = Behaviour(usage=False, tokens_per_chunk=4, ttft_ms=1.5)
    options = process._options(behaviour)
    assert {"--no-usage", "--role-chunk", "--tokens-per-chunk=4", "--ttft-ms=1.5"} <= set(options)


POINT = ClockPoint(
    streams=32,
    errors=(MetricError(metric="ttft_ms.mean", truth_ms=200, measured_ms=201, allowed=0.01),),
    held=0.999,
    server_late_ms=0.1,
    server_cores=0.2,
    clock=None,
    cause="",
)
UNTRUSTED = ClockPoint(
    streams=256, errors=(), held=0.0, server_late_ms=0.0, server_cores=0.0, clock=None, cause="it ran late"
)


@pytest.mark.parametrize(("points", "status"), [((POINT,), 0), ((POINT, UNTRUSTED), 1), ((UNTRUSTED,), 1)])
def test_the_command_says_what_can_be_judged_and_ends_accordingly(
    points: tuple[ClockPoint, ...],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    asked: list[list[int]] = []

    def check(streams: Sequence[int]) -> Iterator[ClockPoint]:
        asked.append(list(streams))
        return iter(points)

    monkeypatch.setattr(trust, "check_clock", check)
    path = tmp_path / "clock.json"
    assert main(["selftest", "--clock", "--streams", "32,256", "--json", str(path)]) == status
    out = capsys.readouterr().out
    assert asked == [[32, 256]]
    assert ("201.00 (+0.50 %)" in out) == (POINT in points)
    assert ("   32 streams  ttft_ms.mean 2.50 %" in out) == (POINT in points)
    assert ("cannot be trusted" in out and "  256 streams  it ran late" in out) == (UNTRUSTED in points)
    document = json.loads(path.read_text())
    assert document["trusted"] == (status == 0)
    assert [row["cause"] for row in document["points"]] == [point.cause for point in points]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--streams", "1"], "--streams goes with --clock."),
        (["--clock", "--streams", "1,x"], "--streams '1,x': write numbers with commas, such as 1,32,256."),
        (["--clock", "--streams", "0"], "--streams 0: must be at least 1."),
        (["--clock", "--strict"], "--strict and --keep go with the self-test of gates, not with --clock."),
        (["--clock", "suites"], "--clock runs no test, so it takes no 'suites'."),
        (["--clock", "--json", os.devnull + "/x/y"], "cannot be written: no such folder."),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", *arguments]) == 2
    assert message in capsys.readouterr().err
