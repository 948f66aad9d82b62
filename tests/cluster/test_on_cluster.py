"""Runs of pytest on a real cluster of three nodes: where engines go, and what is left when something is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.conftest import Raylets
from tests.cluster.project import BACKEND, CONFTEST, EVALUATION, IMPOSSIBLE, INI, REPLICAS, SESSIONS

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

WAIT_S = 180.0
"""Longest time that anything here takes on a machine with other things to do."""

SUITE = Path(__file__).parents[2] / "suites" / "embedded"


class Project:
    """A project on the cluster."""

    def __init__(self, folder: Path, raylets: Raylets) -> None:
        self.path = folder
        self.raylets = raylets
        self.running: list[subprocess.Popen[str]] = []
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "slow_backend.py").write_text(BACKEND)
        (folder / "tiny-llama").mkdir()
        (folder / "tiny-llama" / "config.json").write_text("{}")
        (folder / "seconds").write_text("0.2")
        self.ini(timeout_s=WAIT_S)

    def ini(self, *, timeout_s: float) -> None:
        (self.path / "pytest.ini").write_text(INI.format(timeout_s=timeout_s))

    def test(self, text: str) -> None:
        (self.path / "test_it.py").write_text(text)

    def start(self, *arguments: str, ray: str = "auto", tmp: Path | None = None) -> subprocess.Popen[str]:
        """Start pytest, in a process group of its own, as a shell does, which gets Ctrl-C."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-s", *([f"--inferperf-ray={ray}"] if ray else []), *arguments],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.raylets.environment | ({"TMPDIR": str(tmp)} if tmp else {}),
            start_new_session=True,
            # A shell lets what it runs in the background ignore Ctrl-C, and these tests may run there.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.running.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> str:
        output, _ = process.communicate(timeout=WAIT_S)
        return output

    def asked(self) -> list[tuple[int, int]]:
        """Return who was asked how much, call by call: the process of the engine, and the number of requests."""
        log = self.path / "asked.log"
        rows = log.read_text().splitlines() if log.exists() else []
        return [(int(pid), int(count)) for pid, count in (row.split() for row in rows if " " in row)]

    def engines(self) -> list[int]:
        """Return the processes of engines that were asked anything, in the order of their first answer."""
        return list(dict.fromkeys(pid for pid, _ in self.asked()))

    def records(self, name: str) -> dict[str, Any]:
        """Return the results of a run, by test."""
        found = json.loads((self.path / name).read_text())["records"]
        return {record["nodeid"].rpartition("::")[2].partition("[")[0]: record["result"] for record in found}


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def project(tmp_path: Path, raylets: Raylets) -> Iterator[Project]:
    found = Project(tmp_path, raylets)
    yield found
    for process in found.running:
        if process.poll() is None:
            process.kill()
            process.communicate()
    # Whatever happened, nobody has anything of the cluster.
    wait_for(lambda: not raylets.held())
    wait_for(lambda: not any(map(is_running, found.engines())))


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


def test_a_node_killed_in_mid_evaluation_changes_nothing_but_a_line(project: Project) -> None:
    project.test(EVALUATION.format(questions=60, replicas=1))
    run = project.start()
    wait_for(lambda: len(project.asked()) >= 3)
    (before,) = project.engines()
    project.raylets.kill(project.raylets.node_of(before))
    output = project.end(run)
    assert "1 passed" in output, output
    assert "BF16 tiny-llama was lost on node" in output
    assert len(project.engines()) == 2
    # Nothing is asked twice but the part that was under way, if one was: 15 parts of 4.
    assert len(project.asked()) in (15, 16)
    assert not is_running(before)
    project.raylets.add(2)


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


def test_a_node_killed_in_mid_session_begins_the_session_again_elsewhere(project: Project) -> None:
    project.test(SESSIONS)
    run = project.start("--inferperf-json=found.json")
    wait_for(lambda: len(project.engines()) == 2)
    project.raylets.kill(project.raylets.node_of(project.asked()[-1][0]))
    output = project.end(run)
    assert "1 passed" in output, output
    result = project.records("found.json")["test_sessions"]
    assert [len(session["rounds"]) for session in result["performance"]["sessions"]] == [4, 4]
    (note,) = result["notes"]
    assert note.startswith("BF16 tiny-llama was lost on node ")
    project.raylets.add(2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_run_that_ends_early_gives_everything_back(project: Project, number: signal.Signals) -> None:
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
    wait_for(lambda: not project.raylets.held())
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
