"""Ctrl-C in the middle of a measurement: the result file holds what was measured, and it is never judged."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest

from pytest_inferperf.measure.load.records import MEASURED, Records
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.plugin.conftest import PERFORMANCE, Project
from tests.plugin.test_output_agreement import on, served
from tests.plugin.test_sweep import SWEEP, write

__all__ = ["served"]


def test_the_result_file_holds_the_rounds_and_the_requests_so_far(served: Project) -> None:
    """The signal comes when the server has answered some requests of the round, however slow the machine is."""
    with serve_in_thread(Behaviour(ttft_ms=20.0, itl_ms=5.0)) as server:
        served.test(
            on(server.url).replace("num_requests=12", "num_requests=5000"), "throughput_floor(output_throughput=0.1)"
        )
        done = threading.Event()

        def press() -> None:
            while server.stats()["requests"] < 40 and not done.wait(0.05):
                pass
            os.kill(os.getpid(), signal.SIGINT)

        presser = threading.Thread(target=press)
        presser.start()
        try:
            result = served.run("--inferperf-json=out.json", "--inferperf-set=warmup_rounds=0", "-p", "no:benchmark")
        finally:
            done.set()
            presser.join(20)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (record,) = json.loads((served.path / "out.json").read_text())["records"]
    assert "interrupted while it was measured" in record["result"]["invalid"]
    (session,) = record["result"]["performance"]["sessions"]
    (part,) = session["rounds"]
    assert 0 < part["num_requests"] < 5000
    assert part["metrics"]["ttft_ms.p50"] >= 20
    rows = Records.unpack(part["records"]["rows"])
    assert list(rows.kind).count(MEASURED) == part["num_requests"]
    assert part["records"]["of"] == len(rows)
    assert [verdict["status"] for verdict in record["verdicts"]] == ["INVALID"]


@pytest.mark.parametrize(
    "mark",
    [PERFORMANCE.replace(")", ", sessions=2)"), SWEEP.replace("sessions=1", "sessions=2")],
    ids=["one-load", "sweep"],
)
@pytest.mark.parametrize("place", ["relaunch", "forget_peak_memory"])
def test_part_of_the_sessions_is_never_judged(project: Project, mark: str, place: str) -> None:
    """Ctrl-C comes when the engine is launched again, or before the first round of the second session."""
    conftest = project.path / "conftest.py"
    launch = "    def relaunch(self) -> None:\n"
    forget = "    def forget_peak_memory(self) -> None:\n"
    press = f"        if self.session or {place == 'relaunch'}:\n            raise KeyboardInterrupt\n"
    source = conftest.read_text().replace(launch, f"{forget}        pass\n\n{launch}")
    conftest.write_text(
        source.replace(launch, launch + press) if place == "relaunch" else source.replace(forget, forget + press)
    )
    write(project, "throughput_floor(request_throughput=1)", mark=mark)
    arguments = ("-p", "no:xdist", "-p", "no:benchmark", "--inferperf-json=out.json")
    result = project.pytester.runpytest_inprocess(*arguments, no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (record,) = json.loads((project.path / "out.json").read_text())["records"]
    assert record["result"]["invalid"]
    assert {verdict["status"] for verdict in record["verdicts"]} == {"INVALID"}
