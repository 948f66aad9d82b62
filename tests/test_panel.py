"""The line that says what runs where on a cluster and what waits, by what workers told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_inferperf.panel import Panel, tell


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def worker(folder: Path, name: str) -> Any:
    return SimpleNamespace(workerinput={"inferperf_panel": str(folder), "workerid": name})


def panel(folder: Path, left_s: float | None = None) -> Panel:
    found = Panel(SimpleNamespace(add_cleanup=lambda _: None), lambda: left_s)  # type: ignore[arg-type]
    found._folder = folder
    return found


def age(folder: Path, name: str, seconds: float) -> None:
    path = folder / f"{name}.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"since": time.time() - seconds}))


def test_the_line_says_what_runs_where_what_waits_and_how_long_it_takes_yet(folder: Path) -> None:
    tell(worker(folder, "gw0"), "FP8 llama")
    tell(worker(folder, "gw0"), "FP8 llama", "node gpu-07 (3f2a)")
    tell(worker(folder, "gw1"), "BF16 llama")
    tell(worker(folder, "gw2"), "")
    age(folder, "gw0", 720.0)
    age(folder, "gw1", 240.0)
    assert panel(folder, 4800.0).text() == (
        "1 run (FP8 llama on gpu-07 (3f2a) 12 min); 1 wait (BF16 llama 4 min); about 80 min left"
    )


def test_before_anybody_has_asked_the_line_says_so(folder: Path) -> None:
    assert panel(folder).text() == "no engine has asked for a node yet"


def test_what_a_worker_is_in_the_middle_of_writing_is_left_out(folder: Path) -> None:
    (folder / "gw0.json").write_text("{")
    assert panel(folder, 60.0).text() == "about 60 s left"


def test_without_workers_and_with_workers_elsewhere_nothing_is_told(folder: Path) -> None:
    tell(SimpleNamespace(), "FP8 llama")  # type: ignore[arg-type]
    tell(worker(folder / "not here", "gw0"), "FP8 llama")
    assert not list(folder.iterdir())
