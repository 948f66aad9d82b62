"""The real road, once: the embedded suite in processes of its own, with a checkpoint cache of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
GREEDY = "test_greedy_generation_repeats_itself"


def command(cache: Path, *arguments: str) -> list[str]:
    suite = str(ROOT / "suites" / "embedded")
    plugins = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark")
    return [sys.executable, "-m", "pytest", suite, *plugins, f"--inferperf-cache-dir={cache}", *arguments]


def entries(cache: Path) -> dict[str, int]:
    """Return the finished checkpoints with the times at which they were finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in cache.rglob("inferperf.json")}


def test_two_runs_build_each_checkpoint_once(tmp_path: Path) -> None:
    first = subprocess.run(command(tmp_path, "-k", GREEDY), cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout
    built = entries(tmp_path)
    assert len(built) == 1
    second = subprocess.run(command(tmp_path, "-k", GREEDY), cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout
    assert entries(tmp_path) == built


def test_kill_in_mid_build_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    run = subprocess.Popen(command(tmp_path, "-k", GREEDY), cwd=ROOT, stdout=subprocess.DEVNULL)
    me = psutil.Process(run.pid)
    deadline = time.monotonic() + 60
    while not me.children(recursive=True):
        assert time.monotonic() < deadline, "the build did not start"
        time.sleep(0.05)
    time.sleep(1.0)
    children = me.children(recursive=True)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive, "children outlived pytest"
    assert entries(tmp_path) == {}
    again = subprocess.run(command(tmp_path, "-k", GREEDY), cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout
    assert len(entries(tmp_path)) == 1


def test_accuracy_is_judged_against_the_committed_baseline(tmp_path: Path) -> None:
    """The shipped model still answers as the repository's reference says; the demo shows that a worse recipe fails."""
    select = ("-k", "test_accuracy_transform and BF16", "-q")
    good = subprocess.run(command(tmp_path, *select), cwd=ROOT, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout
    assert "exact_match loss vs BF16" in good.stdout


def test_gates_are_proven_on_the_real_engine(tmp_path: Path) -> None:
    """Each kind of gate passes clean and fails with an injected regression; the baselines stay as they are."""
    before = {path: path.read_bytes() for path in (ROOT / "baselines").rglob("*.json")}
    report = tmp_path / "report.json"
    select = ("-k", "BF16 and (test_performance or test_accuracy_facts)")
    _, *arguments = command(tmp_path / "cache", *select)[2:]
    proof = [sys.executable, "-m", "pytest_inferperf.cli", "selftest", "--json", str(report), *arguments]
    done = subprocess.run(proof, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(gate["gate"], gate["clean"], gate["found"]) for gate in json.loads(report.read_text())["gates"]] == [
        ("output_throughput", "PASS", "FAIL"),
        ("output_throughput_per_user", "PASS", "FAIL"),
        ("tpot_ms.p50", "PASS", "FAIL"),
        ("acc loss vs BF16", "PASS", "FAIL"),
        ("acc", "PASS", "FAIL"),
    ]
    assert {path: path.read_bytes() for path in (ROOT / "baselines").rglob("*.json")} == before
