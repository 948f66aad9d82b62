"""`error_rate_ceiling`: the share of requests that may fail."""

from __future__ import annotations

import json

import pytest

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.plugin.conftest import Project
from tests.plugin.servers import ServedProject

TEN = 'inferperf(model="tiny-llama", quant="NVFP4", isl=16, osl=8, concurrency=10, rounds=2, sessions=1)'


@pytest.mark.parametrize(
    ("failed", "share", "outcome"),
    [(0, 0, "passed"), (0, 0.1, "passed"), (1, 0.1, "passed"), (2, 0.1, "failed"), (1, 0, "failed")],
)
def test_ceiling(project: Project, failed: int, share: float, outcome: str) -> None:
    project.engine(failed=failed)
    project.test(TEN, f"error_rate_ceiling({share})")
    project.run().assert_outcomes(**{outcome: 1})


def test_message(project: Project) -> None:
    """The gate has its figure; what the other figures are made of cannot be trusted."""
    project.engine(failed=2)
    project.test(TEN, "error_rate_ceiling(0.1)", "throughput_floor(output_throughput=1)")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "  FAIL *error_rate *20.00 <= 10.00 %*mark",
            "  INVALID *output_throughput*",
            "*the run is invalid: 4 of 20 requests failed, where 10 % may*",
        ]
    )


def test_other_gates_are_judged_below_the_ceiling(project: Project) -> None:
    project.engine(failed=1)
    project.test(TEN, "error_rate_ceiling(0.1)", "throughput_floor(output_throughput=1)")
    project.run().assert_outcomes(passed=1)
    project.test(TEN, "error_rate_ceiling(0.1)", "throughput_floor(output_throughput=100_000)")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["output_throughput * is below its floor 100000; 1 of 2 gates failed"])


def test_run_without_success_is_invalid_whatever_is_allowed(project: Project) -> None:
    project.engine(failed=10)
    project.test(TEN, "error_rate_ceiling(0.99)", "latency_ceiling(e2e_latency_ms_p50=1000)")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  INVALID *e2e_latency_ms.p50*"])


def test_failures_below_the_ceiling_may_be_recorded(project: Project) -> None:
    project.engine(failed=1)
    project.test(TEN, "error_rate_ceiling(0.1)", 'throughput_floor("output_throughput", tolerance=0.6)')
    project.run("--inferperf-update=new")
    project.run().assert_outcomes(passed=1)
    project.test(TEN, 'throughput_floor("output_throughput")')
    project.run().stdout.fnmatch_lines(["*INVALID*2 of 20 requests failed*"])


@pytest.mark.parametrize("failed", [0, 1])
def test_failures_below_the_ceiling_end_no_measurement(project: Project, failed: int) -> None:
    """A gate that is open after one session gets its further looks: a warning would let its regression through."""
    gate = 'latency_ceiling("ttft_ms.p50", tolerance=0.03)'
    project.engine(session_factors=[1.0, 1.01, 0.99, 1.005, 0.995, 1.0])
    project.test(TEN.replace(", sessions=1", ""), "error_rate_ceiling(0.2)", gate)
    project.run("--inferperf-update=new")
    project.engine(session_factors=[0.985, 0.96], failed=failed)
    result = project.run("-o", "inferperf_on_inconclusive=warn")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  FAIL *ttft_ms.p50 *"])


@pytest.mark.parametrize(("rate", "outcome"), [(0.25, "passed"), (0.5, "failed")])
def test_server_that_refuses_requests(served: ServedProject, rate: float, outcome: str) -> None:
    """Every fourth request is refused, then every second, where three in ten may be."""
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0, error_rate=rate)) as server:
        keywords = f"{served.at(server.url)}, isl=16, osl=4, concurrency=2, num_requests=40, rounds=1, warmup_rounds=0"
        served.test(keywords, "error_rate_ceiling(0.3)")
        result = served.run("--inferperf-json=out.json")
    result.assert_outcomes(**{outcome: 1})
    (record,) = json.loads((served.path / "out.json").read_text())["records"]
    (verdict,) = record["verdicts"]
    assert verdict["measured"] == pytest.approx(100 * rate, abs=5)
    assert record["gates"] == [{"type": "error_rate_ceiling", "share": 0.3}]


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("error_rate_ceiling()", "takes one share of requests that may fail, such as error_rate_ceiling(0.01)."),
        ("error_rate_ceiling(share=0.1)", "takes one share of requests that may fail, *"),
        ("error_rate_ceiling(1)", "1 must be from 0 to below 1; 0.01 is 1 % of the requests."),
        ("error_rate_ceiling(-0.1)", "-0.1 must be from 0 to below 1; *"),
        ('error_rate_ceiling("1 %")', "share='1 %' is a str; it takes a number."),
    ],
)
def test_wrong_gate_is_a_collection_error(project: Project, gate: str, says: str) -> None:
    project.test(TEN, gate)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*test_it.py::test_it: error_rate_ceiling: {says}"])
