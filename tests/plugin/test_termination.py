"""SIGTERM: a real run ends as after Ctrl-C, and leaves nothing but its result file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from types import FrameType

import psutil
import pytest

from pytest_inferperf.termination import _Termination, take_sigterm
from tests.plugin.conftest import Project
from tests.plugin.test_output_agreement import served

__all__ = ["served"]

TEST = """
import pytest

SERVER = "{python} -m pytest_inferperf.cli simulate-server --port {{port}} --model {{served_model_name}} --ttft-ms 20"


@pytest.mark.inferperf(model="tiny-llama", serve=SERVER, isl=16, osl=8, concurrency=2, num_requests=100_000, warmup_rounds=0)
@pytest.mark.throughput_floor(output_throughput=0.1)
def test_it(inferperf):
    inferperf.measure()
"""


def test_a_run_keeps_what_it_measured_and_leaves_no_process(served: Project) -> None:
    """The signal comes when the server that pytest started has answered some requests, however slow the machine is."""
    (served.path / "test_it.py").write_text(
        TEST.replace("{python}", sys.executable).replace("{{", "{").replace("}}", "}")
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:benchmark", "--inferperf-json=out.json"]
    with subprocess.Popen(command, cwd=served.path, stdout=subprocess.PIPE, text=True) as process:
        try:
            parent = psutil.Process(process.pid)
            deadline = time.monotonic() + 120
            while requests_of(parent) < 20:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            children = parent.children(recursive=True)
            process.send_signal(signal.SIGTERM)
            shown, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "interrupted while it was measured" in shown
    _, left = psutil.wait_procs(children, timeout=20)
    assert children
    assert not left
    (record,) = json.loads((served.path / "out.json").read_text())["records"]
    assert "interrupted while it was measured" in record["result"]["invalid"]
    ((part,),) = [session["rounds"] for session in record["result"]["performance"]["sessions"]]
    assert 0 < part["num_requests"] < 100_000
    assert [verdict["status"] for verdict in record["verdicts"]] == ["INVALID"]


def requests_of(parent: psutil.Process) -> int:
    """Ask the server among the children of a process how many requests it has answered; 0 before it is ready."""
    for child in parent.children(recursive=True):
        try:
            words = child.cmdline()
            if "simulate-server" not in words:
                continue
            url = f"http://127.0.0.1:{words[words.index('--port') + 1]}/stats"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return int(json.load(answer)["requests"])
        except (OSError, psutil.Error):
            continue
    return 0


@pytest.fixture
def config(pytester: pytest.Pytester) -> Iterator[pytest.Config]:
    """The configuration of a run that has not begun; the signals of this process are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield pytester.parseconfigure("-p", "no:xdist")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_whoever_takes_ctrl_c_takes_it_once(config: pytest.Config) -> None:
    seen: list[int] = []

    def ctrl_c(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    signal.signal(signal.SIGINT, ctrl_c)
    take_sigterm(config)
    take_sigterm(config)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGINT]


def test_it_ends_a_run_whose_shell_ignores_ctrl_c(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    take_sigterm(config)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_it_does_not_disturb_an_end_that_is_under_way(config: pytest.Config) -> None:
    take_sigterm(config)
    with pytest.raises(KeyboardInterrupt) as raised:
        raise KeyboardInterrupt
    config.hook.pytest_keyboard_interrupt(excinfo=raised)
    signal.raise_signal(signal.SIGTERM)


def test_it_is_given_back_at_the_end(config: pytest.Config) -> None:
    take_sigterm(config)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    config._ensure_unconfigure()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_somebody_else_takes_stays_theirs(config: pytest.Config) -> None:
    def theirs(*_: object) -> None:
        return

    signal.signal(signal.SIGTERM, theirs)
    take_sigterm(config)
    assert signal.getsignal(signal.SIGTERM) is theirs


@pytest.mark.parametrize("where", ["a worker", "a thread"])
def test_where_it_is_left_alone(config: pytest.Config, where: str) -> None:
    if where == "a worker":
        config.workerinput = {"workerid": "gw0"}  # type: ignore[attr-defined]
        take_sigterm(config)
    else:
        thread = threading.Thread(target=take_sigterm, args=(config,))
        thread.start()
        thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_nothing_disturbs_the_files_of_a_run_that_has_ended() -> None:
    termination = _Termination()
    termination.pytest_sessionfinish()
    termination.take(signal.SIGTERM, None)
