"""Load from the nodes of a real cluster, on a server of known truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.process import read_stats, serve_in_process
from tests.cluster.conftest import Raylets
from tests.cluster.project import INI

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

WAIT_S = 180.0
TRUTH_MS = 200.0
SIZES = ("--isl", "16", "--osl", "16", "--concurrency", "32")


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


class Client:
    """`inferperf measure` of one server, with its load processes on the nodes of a cluster."""

    def __init__(self, folder: Path, raylets: Raylets, url: str) -> None:
        self.raylets, self.url, self._folder = raylets, url, folder
        self.senders: set[psutil.Process] = set()
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, sizes: tuple[str, ...] = SIZES) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest_inferperf.cli", "measure", "--url", self.url, "--model", "simulated"]
        process = subprocess.Popen(
            [*command, *sizes, "--compare", "0", "--json", "out.json", "--records", "out.jsonl", *arguments],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.raylets.environment,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self._running.append(process)
        return process

    def test(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.raylets.environment,
        )
        self._running.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> str:
        output, _ = process.communicate(timeout=WAIT_S)
        return output

    def found(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._folder / "out.json").read_text())
        return found

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self._folder / "out.jsonl").read_text().splitlines()]

    def stats(self) -> dict[str, float]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return read_stats(host, int(port), reset=False)

    def is_sending(self) -> bool:
        """Whether the load has begun on both hosts; remembers who sends it."""
        for raylet in self.raylets.pids():
            for process in psutil.Process(raylet).children(recursive=True):
                # Ray starts processes that are gone again before they are asked.
                with suppress(psutil.NoSuchProcess):
                    if "pytest_inferperf.measure.load.hosted" in process.cmdline():
                        self.senders.add(process)
        return len(self.senders) == 2 and self.stats()["active"] == 32

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
                process.communicate()
        # Whatever happened, nobody has anything of the cluster, and nobody sends.
        wait_for(lambda: not self.raylets.held())
        _, left = psutil.wait_procs(self.senders, timeout=WAIT_S)
        assert not left
        wait_for(lambda: self.stats()["active"] == 0)


@pytest.fixture
def client(tmp_path: Path, raylets: Raylets) -> Iterator[Client]:
    with serve_in_process(Behaviour(ttft_ms=TRUTH_MS, itl_ms=20)) as url:
        found = Client(tmp_path, raylets, url)
        yield found
        found.close()


def test_two_hosts_measure_what_one_machine_does(client: Client) -> None:
    output = client.end(client.start("--ray", "auto", "--hosts", "2", "--num-requests", "160"))
    found, by_hosts, seen = client.found(), client.records(), client.stats()
    assert [host["processes"] for host in found["hosts"]] == [1, 1], output
    assert len({host["host"] for host in found["hosts"]}) == 2
    assert found["excluded"]["warmup"] == 32
    assert not found["failures"]
    assert seen["peak_active"] == 32
    client.end(client.start("--num-requests", "160"))
    # Of records, which are written whatever else this machine has to do: it may be too busy for a valid run.
    for records in (by_hosts, client.records()):
        measured = [row for row in records if row["kind"] == "measured"]
        assert len(measured) == 160
        assert median(row["ttft_ms"] for row in measured) == pytest.approx(TRUTH_MS, rel=0.1)


def test_conversations_of_a_file_go_out_from_two_hosts_each_turn_once(client: Client) -> None:
    path = Path(__file__).parents[1] / "plugin" / "datasets" / "chats.jsonl"
    talks = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    sizes = (
        "--dataset",
        str(path),
        "--chat",
        "--turns",
        "3",
        "--osl",
        "8",
        "--num-requests",
        "12",
        "--concurrency",
        "4",
    )
    output = client.end(client.start("--ray", "auto", "--hosts", "2", sizes=sizes))
    assert [host["processes"] for host in client.found()["hosts"]] == [1, 1], output
    rows = [(row["request"], row["turn"], row["ok"]) for row in client.records() if row["kind"] == "measured"]
    assert rows == sorted(rows)
    assert {number for number, _, _ in rows} == set(range(1, 13))
    assert len(rows) == sum(message["role"] == "user" for talk in talks for message in talk)
    assert all(ok for _, _, ok in rows)


SUITE = """
import pytest

pytestmark = pytest.mark.inferperf(
    model="simulated", url="URL", isl=16, osl=16, concurrency=16, num_requests=96, rounds=2, warmup_rounds=0, hosts=2
)


@pytest.mark.latency_ceiling(**{"ttft_ms.p50": 400})
def test_clean(inferperf):
    inferperf.measure()


@pytest.mark.latency_ceiling(**{"ttft_ms.p50": 100})
def test_regression(inferperf):
    inferperf.measure()
"""


def test_a_test_is_judged_by_what_two_hosts_measured(client: Client, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE.replace("URL", client.url))
    (tmp_path / "pytest.ini").write_text(INI.format(timeout_s=WAIT_S))
    for _ in range(3):
        output = client.end(client.test("--inferperf-ray=auto", "--inferperf-json=found.json", "-rA"))
        # A machine with other things to do is a bad client, which says so: then it's asked again.
        if "INVALID" not in output:
            break
    assert "1 failed, 1 passed" in output, output
    assert "FAILED test_it.py::test_regression" in output
    assert "PASSED test_it.py::test_clean" in output
    results = [record["result"] for record in json.loads((tmp_path / "found.json").read_text())["records"]]
    for result in results:
        assert result["notes"][0].startswith("the load was sent by node "), output
        (session,) = result["performance"]["sessions"]
        assert session["telemetry"]["client.hosts"] == 2
        assert 0 < session["telemetry"]["client.skew_ms"] < 10


def test_a_host_killed_in_mid_run_makes_it_invalid(client: Client) -> None:
    run = client.start("--ray", "auto", "--hosts", "2", "--num-requests", "1000000")
    wait_for(client.is_sending)
    client.raylets.kill(client.raylets.node_of(min(client.senders, key=lambda process: process.pid).pid))
    output = client.end(run)
    assert run.returncode == 1, output
    assert "INVALID: the load is lost on node " in output
    assert "what the others sent is another load than was asked for." in output
    assert client.found()["metrics"] == {}
    client.raylets.add(2)


def test_ctrl_c_keeps_what_was_measured_and_ends_all(client: Client) -> None:
    run = client.start("--ray", "auto", "--hosts", "2", "--num-requests", "1000000")
    wait_for(client.is_sending)
    wait_for(lambda: client.stats()["requests"] > 100)
    os.kill(run.pid, signal.SIGINT)
    output = client.end(run)
    assert run.returncode == 1, output
    assert "So far, not to be judged:" in output
    assert "INVALID: interrupted after " in output
    assert len(client.found()["hosts"]) == 2
