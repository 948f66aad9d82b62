"""A pytest plugin (`-p ray_clock`): writes when each phase of each test began and ended, and what CPU time was spent.

Into the file that `RAY_CLOCK` names: `phases` in seconds since the epoch, CPU seconds of `pytest` itself, and of the `head`
and the `node` of a Ray cluster that it started, between the first and the last test.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

HEAD, NODE = "gcs_server", "raylet"


def cpu_s(name: str) -> float:
    """Return the CPU time so far of the child processes of a name; 0 where there is none."""
    found = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name() == name:
                times = process.cpu_times()
                found += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return found


class Clock:
    """Keeps what the reports say."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._phases: list[tuple[str, str, float, float]] = []
        self._before: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep when a phase began and ended."""
        self._phases.append((report.nodeid, report.when, report.start, report.stop))
        if not self._before:
            self._before = self._spent()

    def pytest_sessionfinish(self) -> None:
        """Write all of it, while the cluster is still there."""
        after = self._spent()
        spent = {name: after[name] - self._before.get(name, 0.0) for name in after}
        self._path.write_text(json.dumps({"phases": self._phases, "cpu_s": spent}))

    def _spent(self) -> dict[str, float]:
        return {"pytest": time.process_time(), "head": cpu_s(HEAD), "node": cpu_s(NODE)}


def pytest_configure(config: pytest.Config) -> None:
    if path := os.environ.get("RAY_CLOCK"):
        config.pluginmanager.register(Clock(Path(path)), "ray-clock")


def read_clock(path: Path) -> Any:
    """Return what a run wrote."""
    return json.loads(path.read_text())
