"""Ctrl-C in the middle of a measurement: the result file holds what was measured, and it is never judged."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Any

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


def press_in(project: Project, number: int, *, concurrency: int) -> None:
    """Let Ctrl-C come in one of the rounds that the case's own engine runs at a concurrency, counted from 1."""
    conftest = project.path / "conftest.py"
    before = '        time.sleep(self.script["round_s"])\n'
    source = conftest.read_text()
    assert source.count(before) == 1
    press = (
        f"        if concurrency == {concurrency} and self.spec.quant == 'NVFP4':\n"
        "            self.rounds = getattr(self, 'rounds', 0) + 1\n"
        f"            if self.rounds == {number}:\n"
        "                raise KeyboardInterrupt\n"
    )
    conftest.write_text(source.replace(before, press + before))


def interrupted(project: Project, *arguments: str) -> dict[str, Any]:
    options = ("-p", "no:xdist", "-p", "no:benchmark", "--inferperf-json=out.json", *arguments)
    result = project.pytester.runpytest_inprocess(*options, no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (record,) = json.loads((project.path / "out.json").read_text())["records"]
    assert "interrupted while it was " in record["result"]["invalid"]
    assert {verdict["status"] for verdict in record["verdicts"]} == {"INVALID"}
    assert not (project.path / "baselines").exists()
    found: dict[str, Any] = record["result"]
    return found


def test_a_sweep_keeps_the_points_and_the_rounds_so_far(project: Project) -> None:
    """A warm-up round, the first of two that count, and Ctrl-C, at the second of three loads."""
    press_in(project, 3, concurrency=2)
    write(
        project,
        "throughput_floor(request_throughput=1)",
        'frontier_floor("output_throughput", over="output_throughput_per_user")',
    )
    found = interrupted(project, "--inferperf-update=new")
    points = {point["workload"]["concurrency"]: point["performance"]["sessions"] for point in found["frontier"]}
    assert {load: [len(item["rounds"]) for item in sessions] for load, sessions in points.items()} == {1: [2], 2: [1]}
    assert points[2][0]["rounds"][0]["metrics"]["ttft_ms.p50"] == pytest.approx(100)


def test_blocks_keep_the_rounds_so_far(project: Project) -> None:
    """A warm-up round, A B B A, A B, and Ctrl-C."""
    press_in(project, 5, concurrency=2)
    project.engine(tpot_ms=10, by={"BF16": {"tpot_ms": 20}})
    project.test(PERFORMANCE, 'speedup_floor("output_throughput_per_user", over="BF16")')
    found = interrupted(project)
    (compared,) = found["comparisons"]
    sides = [(len(block["reference"]), len(block["candidate"])) for block in compared["blocks"]]
    assert sides == [(2, 2), (1, 1)]
    again = project.run("--inferperf-replay=out.json")
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["INVALID: *"])


@pytest.mark.parametrize(
    ("number", "words"),
    [(2, "interrupted before anything was measured"), (3, "interrupted while it was measured")],
    ids=["before-the-first-round", "after-it"],
)
def test_the_page_is_whole_and_says_so(project: Project, number: int, words: str) -> None:
    """The first test passed before Ctrl-C came in the second, and the third did not run. A warm-up round comes first."""
    press_in(project, number, concurrency=2)
    for name, size in (("test_a", 1), ("test_b", 2), ("test_c", 4)):
        mark = PERFORMANCE.replace("concurrency=2", f"concurrency={size}")
        project.test(mark, "throughput_floor(output_throughput=0.001)", name=name)
    options = ("-p", "no:xdist", "-p", "no:benchmark", "--inferperf-html=report.html")
    result = project.pytester.runpytest_inprocess(*options, no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    page = (project.path / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert "<title>INVALID: 2 gates in 2 tests (1 PASS, 1 INVALID)</title>" in page
    assert "the run was interrupted: tests that are not here did not run" in page
    assert words in page
    assert "test_c" not in page


def test_a_page_of_a_run_that_x_ended_says_so(project: Project) -> None:
    for name, floor in (("test_a", 1e9), ("test_b", 0.001)):
        project.test(PERFORMANCE, f"throughput_floor(output_throughput={floor})", name=name)
    project.run("-x", "--inferperf-html=report.html", "--inferperf-set=sessions=1").assert_outcomes(failed=1)
    page = (project.path / "report.html").read_text()
    assert "the run was stopped (stopping after 1 failures): tests that are not here did not run" in page
