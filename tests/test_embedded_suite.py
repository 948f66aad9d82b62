"""The real road, once: the embedded suite in processes of its own, with a checkpoint cache of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
GREEDY = "test_greedy_generation_repeats_itself"
# Whoever shares this machine is not what is tested here.
SHARED = ("-o", "inferperf_max_interference=1", "-o", "inferperf_max_throttled=1", "-o", "inferperf_min_clock=0")


def command(cache: Path, *arguments: str) -> list[str]:
    suite = str(ROOT / "suites" / "embedded")
    plugins = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark")
    return [sys.executable, "-m", "pytest", suite, *plugins, f"--inferperf-cache-dir={cache}", *arguments]


def entries(cache: Path) -> dict[str, int]:
    """Return the finished checkpoints with the times at which they were finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in cache.rglob("inferperf.json")}


def test_kill_in_mid_build_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    """The run after it builds the checkpoint, once: the one after that takes it as it is."""
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
    built = entries(tmp_path)
    assert len(built) == 1
    last = subprocess.run(command(tmp_path, "-k", GREEDY), cwd=ROOT, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stdout
    assert entries(tmp_path) == built


def test_accuracy_is_judged_against_the_committed_baseline(tmp_path: Path) -> None:
    """The shipped model still answers as the repository's reference says; the demo shows that a worse recipe fails."""
    select = ("-k", "test_accuracy_transform and BF16", "-q")
    good = subprocess.run(command(tmp_path, *select), cwd=ROOT, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout
    assert "exact_match loss vs BF16" in good.stdout


SPEED = """
import pytest

pytestmark = pytest.mark.inferperf(
    model={model!r}, calib_dataset={calibration!r}, isl=128, osl=16, concurrency=2, warmup_rounds=1
)


@pytest.mark.inferperf(quant="BF16")
@pytest.mark.speedup_floor("tpot_ms.p50", over={{"engine_options": {{"use_cache": False}}}}, ratio=1.3)
def test_cache(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(quant="BF16")
@pytest.mark.throughput_floor("output_throughput_per_user", tolerance=0.9)
def test_same(inferperf):
    inferperf.measure()
"""


def speed_suite(folder: Path) -> Path:
    embedded = ROOT / "suites" / "embedded"
    model, calibration = embedded / "model", embedded / "data" / "calibration.jsonl"
    path = folder / "test_speed.py"
    path.write_text(SPEED.format(model=str(model), calibration=str(calibration)))
    return path


def run_speed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    plugins = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark")
    suite = (str(speed_suite(folder)), "--rootdir", str(folder))
    command = [sys.executable, "-m", "pytest", *suite, *plugins, *SHARED, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_kv_cache_is_worth_its_floor(tmp_path: Path) -> None:
    """A candidate with the cache beats one without it by far, both held at once and measured interleaved."""
    done = run_speed(tmp_path, "-k", "cache", f"--inferperf-cache-dir={tmp_path / 'cache'}")
    assert done.returncode == 0, done.stdout
    assert "ok  tpot_ms.p50 vs engine_options.use_cache=false" in done.stdout


def test_two_environments_are_compared_for_real(tmp_path: Path) -> None:
    """The reference runs under the interpreter of another environment, here one with the same packages."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "installed.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    python = tmp_path / "venv" / "bin" / "python"
    done = run_speed(tmp_path, "-k", "same", f"--inferperf-against=python={python}")
    assert done.returncode == 0, done.stdout
    assert f"against python={python}" in done.stdout


def test_gates_are_proven_on_the_real_engine(tmp_path: Path) -> None:
    """Each kind of gate passes clean and fails with an injected regression; the baselines stay as they are."""
    before = {path: path.read_bytes() for path in (ROOT / "baselines").rglob("*.json")}
    report = tmp_path / "report.json"
    select = ("-k", "BF16 and (test_performance or test_accuracy_facts)")
    # The demo measures the suite's own load. Here a smaller one does.
    smaller = [f"--inferperf-set={keyword}" for keyword in ("isl=64", "osl=32", "rounds=2")]
    _, *arguments = command(tmp_path / "cache", *select, *smaller, *SHARED)[2:]
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
