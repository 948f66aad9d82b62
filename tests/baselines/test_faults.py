"""What goes wrong while baselines are kept: each fault leaves whole files, a free lock, and a message."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.cases import CollectedCase, CollectedCases, write_cases
from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, write_result_file
from pytest_inferperf.baselines.store import read_performance
from pytest_inferperf.baselines.update import update
from pytest_inferperf.baselines.write import locked
from pytest_inferperf.cli import main
from pytest_inferperf.model.case import Case

Make = Callable[..., ResultRecord]
Capture = pytest.CaptureFixture[str]
SPEED = Path("performance/nvidia-b200-8x/tiny.json")
KEY = "NVFP4+kv_fp8-tp8-isl64-osl32-c1"


def record(root: Path, *records: ResultRecord, mode: Any = "new", now: str = "2026-11-21T00:00:00+00:00") -> None:
    plan, _ = update(root, records, mode=mode, reason="r", accept_regression=False, now=now)
    assert plan.refusals == ()


def other(speed: Make, isl: int) -> ResultRecord:
    case = speed(output_throughput=1.0).result.case
    assert case.workload is not None
    return speed(
        output_throughput=1.0, nodeid=f"t.py::test_{isl}", case=replace(case, workload=replace(case.workload, isl=isl))
    )


_KILLED = """
import os, signal, sys
from pytest_inferperf.cli import main
setattr(os, sys.argv[1], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main(["baseline", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("command", ["prune", "migrate", "update"])
def test_kill_in_the_middle_of_any_write(
    root: Path, speed: Make, speed_case: Case, tmp_path: Path, command: str
) -> None:
    """The old file is whole, and the next writer gets the lock at once and clears away what the dead one left."""
    record(root, speed(output_throughput=100.0), other(speed, 128))
    path = root / SPEED
    if command == "migrate":
        path.write_text(json.dumps(json.loads(path.read_text())))
    before = path.read_bytes()
    cases, results = tmp_path / "cases.json", tmp_path / "r.json"
    write_cases(cases, CollectedCases(partial="", cases=(CollectedCase(nodeid="t", case=speed_case, gates=()),)))
    write_result_file(results, ResultFile(created="", environment={}, records=(other(speed, 256),)))
    arguments = {"prune": ["--cases", str(cases)], "migrate": [], "update": [str(results)]}[command]
    run = [command, *arguments, "--root", str(root)]
    done = subprocess.run([sys.executable, "-c", _KILLED, "fsync", *run], stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    with locked(root, timeout_s=5):
        pass
    assert main(["baseline", *run]) == 0
    assert path.read_bytes() != before
    assert [item.name for item in path.parent.iterdir()] == ["tiny.json"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_folder_that_takes_no_file(
    root: Path, speed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, code: int
) -> None:
    """As a read-only folder, a full disk and a foreign owner answer; root, who may run the tests, meets only the first two."""
    record(root, speed(output_throughput=100.0))
    before = (root / SPEED).read_bytes()
    results = tmp_path / "r.json"
    write_result_file(results, ResultFile(created="", environment={}, records=(other(speed, 128),)))
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).endswith(".tmp"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert main(["baseline", "update", str(results), "--root", str(root)]) == 2
    shown = f"baselines/{SPEED.as_posix()}"
    assert f"{shown}: cannot be written: {os.strerror(code)}. The old file is unchanged.\n" in capsys.readouterr().err
    monkeypatch.undo()
    assert (root / SPEED).read_bytes() == before
    with locked(root, timeout_s=5):
        pass


def _conflict(text: str) -> str:
    lines = text.splitlines()
    return "\n".join([*lines[:3], "<<<<<<< HEAD", lines[3], "=======", lines[3], ">>>>>>> theirs", *lines[4:]])


NONSENSE: dict[str, tuple[Callable[[str], str], str]] = {
    "a merge conflict": (_conflict, "a merge conflict marker (<<<<<<<)"),
    "cut short": (lambda text: text[: len(text) // 2], "not JSON"),
    "words": (lambda text: text.replace("100.0", '"fast"'), '"fast" is not a number'),
    "below 0": (lambda text: text.replace("100.0", "-1.0"), "must be above 0"),
    "not a number": (lambda text: text.replace("100.0", "NaN"), "NaN is not a finite number"),
    "another list": (lambda text: "[]", "is not an object"),
}


@pytest.mark.parametrize(("edit", "message"), NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("command", ["update", "diff", "prune", "migrate", "check"])
def test_a_file_edited_into_nonsense_is_named_and_left_alone(
    root: Path,
    speed: Make,
    speed_case: Case,
    tmp_path: Path,
    capsys: Capture,
    command: str,
    edit: Callable[[str], str],
    message: str,
) -> None:
    record(root, speed(output_throughput=100.0))
    path = root / SPEED
    path.write_text(edit(path.read_text()))
    before = path.read_bytes()
    cases, results = tmp_path / "cases.json", tmp_path / "r.json"
    write_cases(cases, CollectedCases(partial="", cases=(CollectedCase(nodeid="t", case=speed_case, gates=()),)))
    write_result_file(results, ResultFile(created="", environment={}, records=(speed(output_throughput=1.0),)))
    arguments = {"update": [str(results)], "diff": [str(results)], "prune": ["--cases", str(cases)]}.get(command, [])
    status = main(["baseline", command, *arguments, "--root", str(root)])
    assert status == {"update": 1, "check": 1}.get(command, 2)
    out, err = capsys.readouterr()
    assert f"baselines/{SPEED.as_posix()}: " in out + err
    assert message in out + err
    assert path.read_bytes() == before


def test_a_clock_that_goes_backwards(root: Path, speed: Make, capsys: Capture) -> None:
    """Dates are told, not compared: the update is done, the anchor keeps the date of what it anchors, and check says so."""
    record(root, speed(output_throughput=100.0), now="2099-01-01T00:00:00+00:00")
    record(root, speed(output_throughput=97.0), mode="all", now="2026-11-21T00:00:00+00:00")
    entry = read_performance(root / SPEED).entries[KEY]
    assert entry.provenance.recorded == "2026-11-21T00:00:00+00:00"
    anchor = entry.metrics["output_throughput"].anchor
    assert anchor is not None
    assert (anchor.level, anchor.recorded) == (100.0, "2099-01-01T00:00:00+00:00")
    assert main(["baseline", "check", "--root", str(root)]) == 0
    record(root, speed(output_throughput=96.0), mode="all", now="2099-01-01T00:00:00+00:00")
    assert main(["baseline", "check", "--root", str(root)]) == 1
    assert "recorded 2099-01-01T00:00:00+00:00 has not come yet" in capsys.readouterr().out
