"""Runs of pytest on a real cluster of three nodes: where engines go, and what is left when something is killed."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import Raylets
from tests.cluster.project import EVALUATION, IMPOSSIBLE, REPLICAS, SESSIONS
from tests.cluster.runs import Project, is_running, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

INJECTED = "--inferperf-inject=accuracy:20pt"
RUNS = (("worse", ""), ("worse_on_cluster", "auto"))
SUITE = Path(__file__).parents[2] / "suites" / "embedded"


def test_two_runs_share_a_cluster_and_what_is_impossible_says_what_there_is(project: Project) -> None:
    project.test(EVALUATION.format(questions=8, replicas=1) + IMPOSSIBLE)
    for run in [project.start("--inferperf-require-gpu"), project.start("-rs")]:
        output = " ".join(project.end(run).split())
        assert "1 passed" in output
        # Skipped in one, an error in the other.
        assert "the test needs 4 GPUs on one node; the cluster has 2 nodes of 2 CPUs and no NVIDIA GPU" in output
    assert len(project.engines()) == 2


def test_answers_are_those_of_a_plain_run_at_one_two_and_three_replicas(project: Project) -> None:
    project.test(REPLICAS.replace("TASK", repr(str(SUITE / "tasks" / "embedded_facts.yaml"))))
    (project.path / "seconds").write_text("0")
    assert "3 passed" in project.end(project.start("--inferperf-json=plain.json", ray=""))
    (project.path / "asked.log").unlink()
    output = project.end(project.start("--inferperf-json=cluster.json"))
    assert "3 passed" in output, output
    plain, cluster = project.records("plain.json"), project.records("cluster.json")
    outcomes = [result["accuracy"]["outcomes"] for result in [*plain.values(), *cluster.values()]]
    assert len(outcomes) == 6
    assert all(found == outcomes[0] for found in outcomes)
    assert len(project.engines()) == 1 + 1 + 2
    assert "notes" not in cluster["test_one"]
    (note,) = cluster["test_three"]["notes"]
    assert note.startswith("requests answered by 3 of 3 replicas: node ")
    # What is injected reaches each of them, and spoils what it spoils in a plain run.
    (project.path / "asked.log").unlink()
    worse = [project.start(f"--inferperf-json={name}.json", "-k", "three", INJECTED, ray=ray) for name, ray in RUNS]
    assert all("1 passed" in project.end(run) for run in worse)
    spoilt = [project.records(f"{name}.json")["test_three"]["accuracy"]["outcomes"] for name, _ in RUNS]
    assert spoilt[0] == spoilt[1] != outcomes[0]
    assert len(project.engines()) == 1 + 3


def test_a_node_killed_in_mid_evaluation_changes_nothing_but_a_line(project: Project, raylets: Raylets) -> None:
    project.test(EVALUATION.format(questions=60, replicas=1))
    run = project.start()
    wait_for(lambda: len(project.asked()) >= 3)
    (before,) = project.engines()
    raylets.kill(raylets.node_of(before))
    output = project.end(run)
    assert "1 passed" in output, output
    assert "BF16 tiny-llama was lost on node" in output
    assert len(project.engines()) == 2
    # Nothing is asked twice but the part that was under way, if one was: 15 parts of 4.
    assert len(project.asked()) in (15, 16)
    assert not is_running(before)
    raylets.add(2)


def test_an_actor_killed_in_mid_evaluation_is_like_its_node(project: Project) -> None:
    project.test(EVALUATION.format(questions=60, replicas=1))
    run = project.start()
    wait_for(lambda: len(project.asked()) >= 3)
    (before,) = project.engines()
    # The engine's parent is the actor.
    psutil.Process(before).parent().kill()  # type: ignore[union-attr]
    output = project.end(run)
    assert "1 passed" in output, output
    assert "BF16 tiny-llama was lost on node" in output
    assert len(project.engines()) == 2
    assert not is_running(before)


def test_a_node_killed_in_mid_session_begins_the_session_again_elsewhere(project: Project, raylets: Raylets) -> None:
    project.test(SESSIONS)
    run = project.start("--inferperf-json=found.json")
    wait_for(lambda: len(project.engines()) == 2)
    raylets.kill(raylets.node_of(project.asked()[-1][0]))
    output = project.end(run)
    assert "1 passed" in output, output
    result = project.records("found.json")["test_sessions"]
    assert [len(session["rounds"]) for session in result["performance"]["sessions"]] == [4, 4]
    (note,) = result["notes"]
    assert note.startswith("BF16 tiny-llama was lost on node ")
    raylets.add(2)


def test_a_measurement_beside_others_says_who_was_there(project: Project, raylets: Raylets) -> None:
    project.test(EVALUATION.format(questions=4000, replicas=3))
    neighbour = project.start()
    # Three of four CPUs are theirs: whoever has the fourth has a neighbour.
    wait_for(lambda: len(project.engines()) == 3)
    project.test(SESSIONS.replace("isl=8", "share_node=True, isl=8"))
    output = project.end(project.start("--inferperf-json=found.json"))
    neighbour.kill()
    project.end(neighbour)
    wait_for(lambda: not raylets.held())
    assert "1 passed" in output, output
    result = project.records("found.json")["test_sessions"]
    assert result["placement"]["shared"]
    figures = [session["telemetry"] for session in result["performance"]["sessions"]]
    assert [(item["node.cpus_of_others"], item["node.gpus_of_others"]) for item in figures] == [(1, 0), (1, 0)]
    assert result["notes"] == ["BF16 tiny-llama: it shared its node with others, who had 1 CPU of it"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_run_that_ends_early_gives_everything_back(
    project: Project, raylets: Raylets, number: signal.Signals
) -> None:
    project.test(EVALUATION.format(questions=4000, replicas=4))
    run = project.start()
    # All CPUs work for it: a second run finds no place, and says so.
    wait_for(lambda: len(project.engines()) == 4)
    if number is signal.SIGINT:
        project.ini(timeout_s=2)
        waits = " ".join(project.end(project.start()).split())
        assert "BF16 tiny-llama waited 2 s for 1 CPU on one node (inferperf_gpu_timeout), and was never placed" in waits
        assert "The cluster has 2 nodes of 2 CPUs and no NVIDIA GPU; free now: 0 of 4 CPUs" in waits
    run.send_signal(number)
    assert ("KeyboardInterrupt" in project.end(run)) is (number is signal.SIGINT)
    wait_for(lambda: not raylets.held())
    wait_for(lambda: not any(map(is_running, project.engines())))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["ctrl-c", "term", "kill"])
def test_a_cluster_of_the_run_ends_with_it_however_it_ends(project: Project, number: signal.Signals) -> None:
    project.test(EVALUATION.format(questions=4000, replicas=1))
    # Sockets are there, whose paths have to be short.
    with tempfile.TemporaryDirectory(prefix="ifp-", dir="/tmp") as folder:
        run = project.start(ray="local", tmp=Path(folder))
        wait_for(lambda: bool(project.engines()))
        started = psutil.Process(run.pid).children(recursive=True)
        assert "raylet" in {process.name() for process in started}
        assert any(Path(folder).glob("ifp-ray-*"))
        if number is signal.SIGINT:
            # A terminal sends it to all that the command started.
            os.killpg(run.pid, number)
        else:
            run.send_signal(number)
        output = project.end(run)
        assert ("KeyboardInterrupt" in output) is (number is not signal.SIGKILL)
        wait_for(lambda: not any(is_running(process.pid) for process in started))
        wait_for(lambda: not any(Path(folder).glob("ifp-ray-*")))
