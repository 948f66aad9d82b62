"""Runs on a machine that is no part of the cluster: `--inferperf-ray=ray://HOST:PORT`, through Ray's client server."""

from __future__ import annotations

import socket

import pytest

from tests.cluster.conftest import Raylets
from tests.cluster.runs import Project
from tests.cluster.test_loss import TWO_ENGINES
from tests.cluster.test_on_cluster import SUITE

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

TESTS = """
import pytest

pytestmark = pytest.mark.inferperf(model="tiny-llama")


@pytest.mark.inferperf(isl=8, osl=4, rounds=2, warmup_rounds=0, sessions=2)
@pytest.mark.throughput_floor(output_throughput=0.001)
def test_speed(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(task=TASK, limit=24, early_stop=False, replicas=2)
@pytest.mark.accuracy_floor(points=1)
def test_answers(inferperf):
    inferperf.evaluate()
"""


def test_measurements_and_answers_are_those_of_a_run_on_the_cluster(project: Project, raylets: Raylets) -> None:
    project.test(TESTS.replace("TASK", repr(str(SUITE / "tasks" / "embedded_facts.yaml"))))
    found = {}
    for address in ("auto", raylets.client_address):
        output = project.end(project.start("--inferperf-json=found.json", ray=address))
        assert "2 passed" in output, output
        found[address] = project.records("found.json")
    outcomes = [records["test_answers"]["accuracy"]["outcomes"] for records in found.values()]
    assert outcomes[0] == outcomes[1]
    speed = found[raylets.client_address]["test_speed"]
    assert [len(session["rounds"]) for session in speed["performance"]["sessions"]] == [2, 2]
    assert speed["placement"]["engine"] == "BF16 tiny-llama"
    # The node was watched as it is without a client in between.
    on_cluster = found["auto"]["test_speed"]["performance"]["sessions"][0]["telemetry"]
    assert speed["performance"]["sessions"][0]["telemetry"].keys() == on_cluster.keys()


def test_a_wrong_port_is_an_error_that_names_the_right_one_for_all_engines(project: Project) -> None:
    project.test(TWO_ENGINES)
    with socket.socket() as taken:
        # Bound, and nobody listens. On the head's own port Ray's client tries for half a minute, and the error is the same.
        taken.bind(("127.0.0.1", 0))
        address = f"ray://127.0.0.1:{taken.getsockname()[1]}"
        output = " ".join(project.end(project.start(ray=address)).split())
    assert "2 errors" in output, output
    assert output.count(f"--inferperf-ray={address}: no client server of Ray there (") == 2
    assert "ray start --head --ray-client-server-port=PORT" in output
