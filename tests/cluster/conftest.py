"""A real Ray cluster of three nodes on this machine, all on loopback and behind a secret of this run."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.runs import Project, head_of, is_running, wait_for

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # A node that is killed is seen to be dead within seconds.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


class Raylets:
    """The nodes of a cluster, the first of which is its head."""

    def __init__(self, *cpus: int) -> None:
        self._wanted, self._cpus = cpus, list(cpus)
        self.environment = {**os.environ, **ENVIRONMENT, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "CI", "RAY_ADDRESS"):
            self.environment.pop(name, None)
        self._headless = False
        self.folder = Path(tempfile.mkdtemp(prefix="ifp-"))
        self.environment["RAY_TMPDIR"] = str(self.folder)
        with (self.folder / "stderr").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("raylets.py")), *map(str, cpus)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self.folder / "stderr").read_text()
        where = json.loads(line)
        self.address: str = where["address"]
        self._raylets: list[int] = where["raylets"]
        self.environment["RAY_ADDRESS"] = self.address
        self.client_address = f"ray://127.0.0.1:{where['client_port']}"
        """Where machines connect that are no part of the cluster."""

    def node_of(self, pid: int) -> int:
        """Return the number of the node on which a process runs."""
        while pid not in self._raylets:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            assert pid > 1, "runs on no node"
        return self._raylets.index(pid)

    def pids(self) -> list[int]:
        """Return the processes of the nodes that are alive."""
        return [pid for pid in self._raylets if pid]

    def kill(self, number: int) -> None:
        """Kill a node as a power cut does."""
        self._tell(f"kill {number}")

    def behead(self) -> None:
        """Kill what all nodes and drivers are connected to; nothing else may be asked for after it."""
        head_of(self._processes()).kill()
        self._headless = True

    def _processes(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)

    def add(self, cpus: int) -> None:
        """Add a node."""
        self._tell(f"add {cpus}")
        self._cpus.append(cpus)

    def numbers(self) -> list[int]:
        """Return the nodes that are alive and hand out CPUs."""
        return [number for number, pid in enumerate(self._raylets) if self._cpus[number] and pid and is_running(pid)]

    def restore(self) -> None:
        """Give the cluster the nodes again that it was started with, and no other."""
        missing = [cpus for cpus in self._wanted if cpus]
        for number in self.numbers():
            if self._cpus[number] in missing:
                missing.remove(self._cpus[number])
            else:
                self.kill(number)
        for cpus in missing:
            self.add(cpus)

    def held(self) -> list[str]:
        """Return the states of the placement groups that anybody has."""
        found: list[str] = self._say("held")
        return found

    def _tell(self, text: str) -> None:
        self._raylets = self._say(text)

    def _say(self, text: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        if self._headless:
            # Nothing of Ray ends in order without its head.
            for process in [*self._processes(), psutil.Process(self._process.pid)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        try:
            self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def raylets() -> Iterator[Raylets]:
    """Three nodes: the head with no CPU for engines, and two with two each."""
    found = Raylets(0, 2, 2)
    yield found
    found.close()


@pytest.fixture
def project(tmp_path: Path, raylets: Raylets) -> Iterator[Project]:
    found = Project(tmp_path, raylets.environment)
    yield found
    for process in found.running:
        if process.poll() is None:
            process.kill()
            process.communicate()
    # Whatever happened, nobody has anything of the cluster.
    wait_for(lambda: not raylets.held())
    wait_for(lambda: not any(map(is_running, [*found.engines(), *found.loads()])))
