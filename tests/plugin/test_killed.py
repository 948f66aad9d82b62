"""kill -9 of pytest itself: nobody is left to clean up, and still nothing that it started stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.plugin.conftest import Project
from tests.plugin.test_output_agreement import served

__all__ = ["served"]

HELPERS = """
import os, subprocess, sys, time

IDLE = "import os, signal, sys, time; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w').close(); time.sleep(600)"


def leave_children():
    # One in a session of its own, and one whose parent has left it.
    subprocess.Popen([sys.executable, "-c", IDLE, "session"], start_new_session=True)
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"
    subprocess.run([sys.executable, "-c", code, IDLE, "orphan"], check=True)
    while not (os.path.exists("session") and os.path.exists("orphan")):
        time.sleep(0.01)
"""

SERVER = """
import sys
import helpers
from pytest_inferperf.cli import main

helpers.leave_children()
main(["simulate-server", "--ttft-ms", "20", *sys.argv[1:]])
"""

ON_SERVER = """
import pytest

SERVER = "{python} server.py --port {{port}} --model {{served_model_name}}"


@pytest.mark.inferperf(model="tiny-llama", serve=SERVER, isl=16, osl=8, concurrency=2, num_requests=100_000, warmup_rounds=0)
@pytest.mark.throughput_floor(output_throughput=0.1)
def test_it(inferperf):
    open("ready", "w").close()
    inferperf.measure()
"""

BACKEND = """
import time
import helpers
from fake_backend import FakeEngine


class Engine(FakeEngine):
    def generate(self, requests, *, concurrency):
        helpers.leave_children()
        open("ready", "w").close()
        time.sleep(600)
"""

IN_PROCESS = """
from pathlib import Path

from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.process import EngineProcess
from pytest_inferperf.model.case import EngineSpec


def test_it():
    spec = EngineSpec(model="m", served_model_name="good")
    engine = EngineProcess(spec, class_path="backend:Engine", checkpoint=Path.cwd())
    engine.generate([GenerationRequest(prompt=(1,), max_tokens=1)], concurrency=1)
"""


def started_by(mark: str) -> set[int]:
    """Return the processes that live with `mark` in their environment: whatever they did since, they began with it."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("STARTED_BY") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def wait_for(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.mark.parametrize(
    ("what", "forked"),
    [("server", True), ("engine", False), ("engine", True)],
    ids=["server-and-a-fork", "engine", "engine-and-a-fork"],
)
def test_nothing_stays(served: Project, what: str, forked: bool) -> None:
    """Also where a fork of pytest, such as a test's own helper, outlives it with copies of all that pytest had open."""
    folder, mark = served.path, uuid.uuid4().hex
    (folder / "helpers.py").write_text(HELPERS)
    (folder / "server.py").write_text(SERVER)
    (folder / "backend.py").write_text(BACKEND)
    test = ON_SERVER.format(python=sys.executable) if what == "server" else IN_PROCESS
    if forked:
        fork = "import os, time\n    if not os.fork():\n        time.sleep(600)\n        os._exit(0)\n    "
        test = test.replace("    engine.generate", f"    {fork}engine.generate").replace(
            "    open(", f"    {fork}open("
        )
    (folder / "test_it.py").write_text(test)
    paths = [str(folder), str(Path(__file__).parents[1] / "engines")]
    environ = {**os.environ, "STARTED_BY": mark, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:benchmark", "-s"]
    with subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        try:
            ready = wait_for(lambda: (folder / "ready").exists() or run.poll() is not None, 120)
            own = {run.pid}
            if forked:
                own |= {child.pid for child in psutil.Process(run.pid).children() if child.cmdline()[2:3] == ["pytest"]}
            before = started_by(mark)
            run.kill()
            assert run.stdout is not None
            assert ready, "the test did not begin"
            assert run.wait() == -signal.SIGKILL
            assert len(before - own) >= 4
            # The guardian of a server gives it five seconds to end by itself.
            assert wait_for(lambda: not started_by(mark) - own, 30), [
                psutil.Process(pid).cmdline() for pid in started_by(mark) - own
            ]
        finally:
            run.kill()
            for pid in started_by(mark):
                os.kill(pid, signal.SIGKILL)
