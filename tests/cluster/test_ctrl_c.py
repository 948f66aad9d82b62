"""Ctrl-C before anything runs: while an engine loads for the first time, and while another waits for its place."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.cluster.conftest import Raylets
from tests.cluster.runs import Project, is_running, wait_for
from tests.cluster.test_loss import TWO_ENGINES

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]


def test_nothing_of_a_run_is_left_that_waits_and_of_one_that_loads(project: Project, raylets: Raylets) -> None:
    project.test(TWO_ENGINES)
    project.hold("second")
    loading = project.start("--inferperf-json=found.json")
    # The first engine is measured, and the second loads.
    wait_for(lambda: len(project.loads()) == 2)
    started = psutil.Process(loading.pid).children(recursive=True)
    project.hold("first second")
    # Of two nodes the first of these two has the other one, and the second waits.
    waiting = project.start("-p", "xdist", "-n", "2", "--inferperf-json=waiting.json")
    wait_for(lambda: len(raylets.held()) == 3 and len(project.loads()) == 3)
    assert sorted(raylets.held()) == ["CREATED", "CREATED", "PENDING"]
    started += psutil.Process(waiting.pid).children(recursive=True)
    for run in (waiting, loading):
        # A terminal sends it to all that the command started.
        os.killpg(run.pid, signal.SIGINT)
        output = project.end(run)
        assert run.returncode == pytest.ExitCode.INTERRUPTED, output
        assert "KeyboardInterrupt" in output
    wait_for(lambda: not raylets.held())
    wait_for(lambda: not any(is_running(process.pid) for process in started))
    wait_for(lambda: not any(map(is_running, project.loads())))
    (result,) = project.records("found.json").values()
    assert not result.get("invalid")
    assert len(result["performance"]["sessions"]) == 1
