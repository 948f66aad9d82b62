"""`goodput_floor`: requests per second that met an SLO, in the process and on servers."""

from __future__ import annotations

import json

import pytest

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.plugin.conftest import PERFORMANCE, Project
from tests.plugin.servers import ServedProject

pytestmark = pytest.mark.newest

# The scripted engine: TTFT 100 ms, TPOT 10 ms, 8 tokens, two requests in 0.17 s: 11.8 requests per second, and fewer on
# a busy machine.


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        ("ttft_ms=101, min=6", "passed"),
        ("ttft_ms=101, min=11.9", "failed"),
        ("ttft_ms=99, min=0.1", "failed"),
        ("ttft_ms=101, tpot_ms=9.9, min=0.1", "failed"),
        ("ttft_ms=101, tpot_ms=10.1, e2e_latency_ms=171, min=6", "passed"),
        ("e2e_latency_ms=169, min=0.1", "failed"),
    ],
)
def test_absolute_floor(project: Project, arguments: str, outcome: str) -> None:
    project.test(PERFORMANCE, f"goodput_floor({arguments})")
    project.run().assert_outcomes(**{outcome: 1})


@pytest.mark.parametrize(("osl", "outcome"), [(1, "failed"), (2, "passed")])
def test_tpot_that_no_request_has_was_not_measured(project: Project, osl: int, outcome: str) -> None:
    project.test(PERFORMANCE.replace("osl=8", f"osl={osl}"), "goodput_floor(tpot_ms=10.1, min=1)")
    result = project.run()
    result.assert_outcomes(**{outcome: 1})
    if outcome == "failed":
        result.stdout.fnmatch_lines(["goodput[[]tpot_ms<=10.1[]] was not measured: *"])


def test_message_where_no_request_meets_the_slo(project: Project) -> None:
    project.test(PERFORMANCE, "goodput_floor(tpot_ms=9.5, ttft_ms=500, min=4)")
    result = project.run()
    result.stdout.fnmatch_lines(
        [
            "goodput[[]ttft_ms<=500,tpot_ms<=9.5[]] 0 req/s is below its floor 4; 1 of 1 gate failed",
            "  FAIL  goodput[[]ttft_ms<=500,tpot_ms<=9.5[]]*0.000 >= 4.000 req/s*mark",
        ]
    )


def test_baseline_is_of_one_slo(project: Project) -> None:
    project.test(PERFORMANCE, "goodput_floor(ttft_ms=101, tolerance=0.6)")
    project.run("--inferperf-update=new")
    project.run().assert_outcomes(passed=1)
    (path,) = (project.path / "baselines").rglob("tiny-llama.json")
    (entry,) = json.loads(path.read_text())["entries"].values()
    assert "goodput[ttft_ms<=101]" in entry["metrics"]
    project.test(PERFORMANCE, "goodput_floor(ttft_ms=102)")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the entry has no goodput[[]ttft_ms<=102[]]*"])


@pytest.mark.parametrize(("ttft_ms", "says"), [(130.0, "*was 0 req/s in a round of session 1*"), (100.0, "")])
def test_regression_against_the_baseline(project: Project, ttft_ms: float, says: str) -> None:
    """A TTFT that moves beyond the SLO takes the whole goodput away."""
    project.test(PERFORMANCE, "goodput_floor(ttft_ms=101, tolerance=0.6)")
    project.run("--inferperf-update=new")
    project.engine(ttft_ms=ttft_ms)
    result = project.run()
    result.assert_outcomes(**{"failed" if says else "passed": 1})
    if says:
        result.stdout.fnmatch_lines([says])


def test_goodput_of_nothing_is_no_baseline(project: Project) -> None:
    project.test(PERFORMANCE, "goodput_floor(ttft_ms=1)")
    result = project.run("--inferperf-update=new")
    result.stdout.fnmatch_lines(["*figures must be finite and above 0: goodput[[]ttft_ms<=1[]]*"])


def test_server_whose_itl_rises_fails(served: ServedProject) -> None:
    keywords = "isl=16, osl=4, concurrency=2, num_requests=4, rounds=1"
    for itl_ms, outcome in ((10.0, "passed"), (60.0, "failed")):
        with serve_in_thread(Behaviour(ttft_ms=30.0, itl_ms=itl_ms)) as server:
            served.test(f"{served.at(server.url)}, {keywords}", "goodput_floor(ttft_ms=1000, tpot_ms=40, min=1)")
            served.run().assert_outcomes(**{outcome: 1})


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("goodput_floor()", "goodput_floor: goodput needs an SLO: limits, in ms, of ttft_ms, tpot_ms, e2e_latency_ms."),
        ("goodput_floor(min=4)", "goodput_floor: goodput needs an SLO: *"),
        ("goodput_floor(ttft=4)", "goodput_floor: unknown keyword 'ttft'."),
        ("goodput_floor(ttft_ms=0)", "goodput_floor: the SLO ttft_ms=0 must be a number of ms above 0."),
        ('goodput_floor(ttft_ms="1")', "goodput_floor: ttft_ms='1' is a str; it takes a number."),
        ("goodput_floor(ttft_ms=1, min=0)", "goodput_floor: min=0 must be above 0: *"),
        ("goodput_floor(ttft_ms=1, min=1, tolerance=0.1)", "goodput_floor: tolerance=0.1 widens a baseline, *"),
        ('throughput_floor("goodput")', "throughput_floor: 'goodput' is counted under an SLO; use goodput_floor(*"),
        (
            'throughput_floor("goodput[ttft_ms]")',
            "throughput_floor: 'goodput[[]ttft_ms[]]': goodput is counted under an *",
        ),
    ],
)
def test_wrong_gate_is_a_collection_error(project: Project, gate: str, says: str) -> None:
    project.test(PERFORMANCE, gate)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*test_it.py::test_it: {says}"])
