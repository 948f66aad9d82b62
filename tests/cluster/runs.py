"""Runs of pytest in a project on the cluster, and what is seen of them from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.project import BACKEND, CONFTEST, INI

WAIT_S = 180.0
"""Longest time that anything here takes on a machine with other things to do."""


class Project:
    """A project on the cluster."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.path = folder
        self.environment = environment
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

    def start(
        self, *arguments: str, ray: str = "auto", tmp: Path | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Start pytest, in a process group of its own, as a shell does, which gets Ctrl-C."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-s", *([f"--inferperf-ray={ray}"] if ray else []), *arguments],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**self.environment, **environment} | ({"TMPDIR": str(tmp)} if tmp else {}),
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

    def loads(self) -> list[int]:
        """Return the processes of engines that loaded, or began to."""
        log = self.path / "loads.log"
        return [int(row.split()[0]) for row in log.read_text().splitlines()] if log.exists() else []

    def hold(self, name: str) -> None:
        """Let engines of these names load for ever, those of any other go on."""
        new = self.path / "hold.new"
        new.write_text(name)
        new.rename(self.path / "hold")

    def records(self, name: str) -> dict[str, Any]:
        """Return the results of a run, by test."""
        found = json.loads((self.path / name).read_text())["records"]
        return {record["nodeid"].rpartition("::")[2].partition("[")[0]: record["result"] for record in found}


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def head_of(processes: Iterable[psutil.Process]) -> psutil.Process:
    """Return the head of a cluster among processes, of which some may be gone by now."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found += [process] if process.name() == "gcs_server" else []
    (head,) = found
    return head


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
