"""A node that is lost while an engine loads on it, or while two are compared: the case goes on elsewhere, or says why not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import Raylets
from tests.cluster.runs import Project, is_running, wait_for
from tests.cluster.test_on_cluster import SUITE

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

TWO_ENGINES = """
import pytest

LOAD = dict(isl=8, osl=4, rounds=2, warmup_rounds=0, sessions=1)


@pytest.mark.inferperf(model="tiny-llama", served_model_name="first", **LOAD)
@pytest.mark.throughput_floor(output_throughput=0.001)
def test_first(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(model="tiny-llama", served_model_name="second", **LOAD)
@pytest.mark.throughput_floor(output_throughput=0.001)
def test_second(inferperf):
    inferperf.measure()
"""

COMPARED = """
import pytest

pytestmark = pytest.mark.inferperf(model="tiny-llama", backend="transformers", isl=8, osl=4, rounds=1, warmup_rounds=0)
OVER = {"engine_options": {"use_cache": False}}


@pytest.mark.inferperf(served_model_name="first")
@pytest.mark.speedup_floor(over=OVER, ratio=0.01)
def test_held(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(served_model_name="second")
@pytest.mark.speedup_floor(over=OVER, ratio=0.01, reload=True)
def test_in_turns(inferperf):
    inferperf.measure()
"""

ANSWERED = """
import pytest


@pytest.mark.inferperf(model="tiny-llama", backend="transformers", task=TASK, limit=24, early_stop=False)
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=90)
def test_answered(inferperf):
    inferperf.evaluate()
"""


@pytest.fixture
def restored(raylets: Raylets) -> Iterator[Raylets]:
    """The cluster, which has its two nodes of two CPUs again afterwards, whatever a test made of it."""
    yield raylets
    raylets.restore()


def kill_what_loads(project: Project, raylets: Raylets) -> None:
    """Kill the node on which the first engine loads."""
    wait_for(lambda: bool(project.loads()))
    (pid,) = project.loads()
    raylets.kill(raylets.node_of(pid))
    wait_for(lambda: not is_running(pid))


def test_it_begins_again_on_another_node(project: Project, restored: Raylets) -> None:
    project.test(TWO_ENGINES)
    project.hold("first")
    run = project.start("--inferperf-json=found.json")
    kill_what_loads(project, restored)
    project.hold("")
    output = project.end(run)
    assert "2 passed" in output, output
    records = project.records("found.json")
    (note,) = records["test_first"]["notes"]
    assert note.startswith("BF16 first was lost on node ")
    assert "notes" not in records["test_second"]
    assert len(project.loads()) == 3


def test_where_no_node_of_its_kind_is_left_it_fails_and_its_neighbour_goes_on(
    project: Project, restored: Raylets
) -> None:
    restored.add(3)
    restored.kill(restored.numbers()[0])
    project.test(TWO_ENGINES)
    project.hold("first")
    run = project.start("-rA")
    kill_what_loads(project, restored)
    output = " ".join(project.end(run).split())
    assert "1 passed, 1 error" in output, output
    assert "and no other node of its kind takes over: the cluster has 1 node of 3 CPUs and no NVIDIA GPU" in output, (
        output
    )
    assert "ERROR test_it.py::test_first" in output
    assert "PASSED test_it.py::test_second" in output


def test_what_is_compared_goes_on_elsewhere_with_both_sides(project: Project, restored: Raylets) -> None:
    project.test(COMPARED)
    run = project.start("--inferperf-json=found.json")
    # Both sides have answered: it is in the middle of a block. The first two are opened again before the next are.
    for count in (2, 6):
        wait_for(lambda count=count: len(project.engines()) >= count or run.poll() is not None)  # type: ignore[misc]
        assert run.poll() is None, project.end(run)
        restored.kill(restored.node_of(project.engines()[-1]))
        restored.add(2)
    output = project.end(run)
    assert "2 passed" in output, output
    for name, engine in (("test_held", "first"), ("test_in_turns", "second")):
        result = project.records("found.json")[name]
        (note,) = result["notes"]
        assert note.startswith(f"BF16 {engine} was lost on node ")
        (compared,) = result["comparisons"]
        assert compared["blocks"]
        assert all(len(block["reference"]) == len(block["candidate"]) == 2 for block in compared["blocks"])


def test_a_reference_that_answers_a_task_goes_on_elsewhere(project: Project, restored: Raylets) -> None:
    project.test(ANSWERED.replace("TASK", repr(str(SUITE / "tasks" / "embedded_facts.yaml"))))
    run = project.start("--inferperf-json=found.json", "--inferperf-against=engine_options.use_cache=false")
    wait_for(lambda: bool(project.asked()))
    restored.kill(restored.node_of(project.engines()[0]))
    output = project.end(run)
    assert "1 passed" in output, output
    result = project.records("found.json")["test_answered"]
    (note,) = result["notes"]
    assert note.startswith("BF16 tiny-llama was lost on node ")
    (compared,) = result["comparisons"]
    assert compared["accuracy"]["outcomes"]["count"] == result["accuracy"]["outcomes"]["count"] == 24
