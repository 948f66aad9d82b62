"""What a result says of the machine is of the one that the engine ran on, where that is another."""

from __future__ import annotations

import json
import platform

from tests.plugin.conftest import Project

ELSEWHERE = """

ScriptedEngine.machine = {"python": "3.9.7", "platform": "Linux-of-the-node", "gpu_driver": "580.1"}
"""

TESTS = """
import pytest

pytestmark = pytest.mark.inferperf(model="tiny-llama", quant="NVFP4", isl=16, osl=8, concurrency=2, rounds=3)


@pytest.mark.throughput_floor(output_throughput=0.1)
def test_measured(inferperf):
    inferperf.measure()
"""


def context_of_result(project: Project) -> dict[str, str]:
    project.run("--inferperf-json=found.json").assert_outcomes(passed=1)
    (record,) = json.loads((project.path / "found.json").read_text())["records"]
    found: dict[str, str] = record["result"]["context"]
    return found


def test_the_python_and_the_system_of_a_node_are_recorded_and_not_those_of_pytest(project: Project) -> None:
    (project.path / "test_it.py").write_text(TESTS)
    here = context_of_result(project)
    assert (here["python"], here["platform"]) == (platform.python_version(), platform.platform(terse=True))
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + ELSEWHERE)
    there = context_of_result(project)
    assert (there["python"], there["platform"], there["gpu_driver"]) == ("3.9.7", "Linux-of-the-node", "580.1")
    assert there["pytest-inferperf"] == here["pytest-inferperf"]
