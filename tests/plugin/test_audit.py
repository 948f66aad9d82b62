"""`--inferperf-audit`: a server that answers from a cache is INVALID, and only where it is looked for."""

from __future__ import annotations

import importlib

import pytest

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.plugin.conftest import PERFORMANCE, Project
from tests.plugin.test_output_agreement import on, served

importlib.import_module("pytest_inferperf.measure.audit")
__all__ = ["served"]
GATE = "throughput_floor(output_throughput=0.1)"


@pytest.mark.parametrize("caches", [True, False])
def test_server(served: Project, caches: bool) -> None:
    with serve_in_thread(Behaviour(ttft_ms=20.0, itl_ms=4.0, response_cache=caches)) as server:
        served.test(on(server.url), GATE)
        served.run().assert_outcomes(passed=1)
        result = served.run("--inferperf-audit")
    result.assert_outcomes(passed=not caches, failed=caches)
    if caches:
        result.stdout.fnmatch_lines(
            ["*INVALID: *answers come from a cache: the first token of a repeated prompt took * ms, and that of a new*"]
        )


def test_scripted_engine(project: Project) -> None:
    project.test(PERFORMANCE, GATE)
    project.run("--inferperf-audit").assert_outcomes(passed=1)


def test_engine_that_answers_no_prompt_of_the_audit(project: Project) -> None:
    """The first request of each call fails: one in ten under load, and each that is asked alone."""
    project.engine(failed=1)
    project.test(PERFORMANCE.replace("concurrency=2", "concurrency=10"), "error_rate_ceiling(0.2)")
    project.run().assert_outcomes(passed=1)
    result = project.run("--inferperf-audit")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID: *a prompt that was asked at concurrency 1 has no answer*"])
