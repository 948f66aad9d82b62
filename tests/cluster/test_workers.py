"""Runs of `pytest -n` on a real cluster: each worker waits for a node of its own, and judges as a plain run does."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.cluster.runs import Project
from tests.cluster.test_on_cluster import SUITE

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

TESTS = """
import pytest

pytestmark = pytest.mark.inferperf(model="tiny-llama", served_model_name=["a", "b"])


@pytest.mark.inferperf(isl=8, osl=4, num_requests=1, rounds=1, warmup_rounds=0)
@pytest.mark.throughput_floor(output_throughput=2.0)
def test_speed(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(task=TASK, limit=24, early_stop=False)
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=90)
def test_answers(inferperf):
    inferperf.evaluate()
"""


@pytest.fixture
def project(project: Project) -> Project:
    project.test(TESTS.replace("TASK", repr(str(SUITE / "tasks" / "embedded_facts.yaml"))))
    return project


def records(project: Project, name: str) -> dict[str, Any]:
    found = json.loads((project.path / name).read_text())["records"]
    return {record["nodeid"]: record for record in found}


def run_on_workers(project: Project, *arguments: str) -> str:
    """Run on the cluster with two workers; whatever that started has ended afterwards."""
    run = project.start("-p", "xdist", "-n", "2", *arguments)
    output = project.end(run)
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
    return output


def test_workers_judge_as_a_plain_run_does_and_see_what_got_slower(project: Project) -> None:
    # What is missing is recorded, and judged by from then on.
    output = project.end(
        project.start("--inferperf-json=plain.json", "--inferperf-update=new", "-k", "test_answers", ray="")
    )
    assert "2 failed" in output, output
    (project.path / "asked.log").unlink()
    output = run_on_workers(project, "--inferperf-json=cluster.json")
    assert "4 passed" in output, output
    # One launch for all tests of an engine.
    assert len(project.engines()) == 2
    plain, cluster = records(project, "plain.json"), records(project, "cluster.json")
    assert {nodeid for nodeid in cluster if "test_answers" in nodeid} == plain.keys()
    assert [record["status"] for record in cluster.values()] == ["PASS"] * 4
    for nodeid, record in plain.items():
        assert cluster[nodeid]["result"]["accuracy"]["outcomes"] == record["result"]["accuracy"]["outcomes"]
    placed = {record["result"]["placement"]["engine"]: record["result"]["placement"] for record in cluster.values()}
    assert set(placed) == {"BF16 a", "BF16 b"}
    assert all(place["asked"] <= place["granted"] and place["waited_s"] >= 0 for place in placed.values())
    assert not any("placement" in record["result"] for record in plain.values())
    # 4 tokens in 3 s are fewer than 2 in a second.
    (project.path / "seconds").write_text("3")
    output = run_on_workers(project, "--inferperf-json=slow.json", "-k", "test_speed")
    assert "2 failed" in output, output
    assert [record["status"] for record in records(project, "slow.json").values()] == ["FAIL", "FAIL"]
