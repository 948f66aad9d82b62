"""Processes of ours import nothing from the folder where pytest runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pytest_inferperf.cluster.driver import Driver
from pytest_inferperf.cluster.load_host import NodeLoad
from pytest_inferperf.errors import HardwareError

BAD = "raise SystemExit('the file of the project was imported')"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with modules that are named like some that our processes import."""
    found = tmp_path / "project"
    found.mkdir()
    for name in ("queue", "ray", "socket", "pytest_inferperf"):
        (found / f"{name}.py").write_text(BAD)
    monkeypatch.chdir(found)
    return found


def test_the_connection_to_ray_does_not_import_from_the_project(folder: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "ray.py").write_text("import queue\ndef init(**_): raise RuntimeError('this is Ray')")
    with pytest.raises(HardwareError, match=r"^this is Ray$"):
        Driver(environment={"PYTHONPATH": str(real)}, address="auto")


def test_a_load_process_on_a_node_does_not_import_from_the_project(folder: Path) -> None:
    load = NodeLoad()
    load.start([b"no letter"])
    try:
        deadline = time.monotonic() + 60
        while not (heard := load.hear()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        load.end()
    # It came as far as to read what it was given.
    assert isinstance(heard[0][1], bytes)
    assert b"is no letter to a load process" in heard[0][1]
