"""The whole road on a card: the embedded suite, what NVML says during a session, and a neighbour that spoils it.

Each runs pytest in processes of its own on the first visible GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_inferperf.baselines.result_file import ResultFile, read_result_file
from pytest_inferperf.engines.hardware import Gpu, find_gpus

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "suites" / "embedded"
RESULTS = "results.json"
# What others do on the CPUs, and how warm the card is, is not what is tested here.
SHARED = ("-o", "inferperf_max_interference=1", "-o", "inferperf_max_throttled=1", "-o", "inferperf_min_clock=0")
SPEED = f"""
import pytest

@pytest.mark.inferperf(model={str(EMBEDDED / "model")!r}, quant="BF16", backend="transformers", isl=128, osl=128)
@pytest.mark.inferperf(concurrency=4, num_requests=16, rounds=3, warmup_rounds=1)
@pytest.mark.throughput_floor(output_throughput=1.0)
def test_speed(inferperf):
    inferperf.measure()
"""
NEIGHBOUR = """
import sys
import torch

held = torch.ones(1, device="cuda")
torch.cuda.synchronize()
print("on the card", flush=True)
sys.stdin.read()
"""
"""A process with a context on the card, until its input ends."""


def environment(card: Gpu) -> dict[str, str]:
    """Return an environment in which one card is visible, outside CI and xdist."""
    hidden = ("CI", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT")
    return {
        **{name: value for name, value in os.environ.items() if name not in hidden},
        "CUDA_VISIBLE_DEVICES": card.uuid,
    }


def pytest_on(card: Gpu, folder: Path, suite: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    plugins = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark")
    options = (f"--inferperf-cache-dir={folder / 'cache'}", f"--inferperf-json={folder / RESULTS}")
    command = [sys.executable, "-m", "pytest", str(suite), *plugins, *options, *SHARED, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(card), capture_output=True, text=True, check=False)


def measured_on_a_card(folder: Path) -> ResultFile:
    """Read the results of a run, all of which must come from a GPU."""
    found = read_result_file(folder / RESULTS)
    assert found.records
    assert {record.result.engine.hardware.kind for record in found.records if record.result.engine} == {"gpu"}
    return found


@contextmanager
def neighbour(card: Gpu) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR],
        env=environment(card),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "on the card\n"
        yield
    finally:
        process.communicate()


@pytest.fixture
def speed(tmp_path: Path) -> Path:
    path = tmp_path / "test_speed.py"
    path.write_text(SPEED)
    return path


@pytest.mark.gpu
def test_the_embedded_suite_keeps_its_accuracy_on_cuda(tmp_path: Path) -> None:
    """By the baselines of the repository, which a CPU recorded. Speeds are those of one machine, and have no baseline here."""
    done = pytest_on(find_gpus()[0], tmp_path, EMBEDDED, "-k", "accuracy or perplexity or acceptance")
    assert done.returncode == 0, done.stdout
    assert len(measured_on_a_card(tmp_path).records) > 20


@pytest.mark.gpu
def test_a_session_alone_on_a_card_has_telemetry_and_energy(tmp_path: Path, speed: Path) -> None:
    (card,) = find_gpus()[:1]
    done = pytest_on(card, tmp_path, speed, f"--rootdir={tmp_path}")
    assert done.returncode == 0, done.stdout
    (record,) = measured_on_a_card(tmp_path).records
    assert record.result.performance is not None
    for session in record.result.performance.sessions:
        (index,) = {name.partition(".")[0] for name in session.telemetry if name.startswith("gpu")}
        figures = {name.partition(".")[2]: value for name, value in session.telemetry.items() if name.startswith(index)}
        assert {"throttled", "power_capped", "temperature_c.max"} <= figures.keys()
        assert 5 < figures["temperature_c.max"] < 110
        assert figures.get("other_processes", 0.0) == 0
        assert all(0 <= figures[name] <= 1 for name in ("throttled", "power_capped"))
        for one in session.rounds:
            watts = one.metrics["energy_per_token_j"] * one.output_tokens / one.duration_s
            assert 1 < watts < 2000, f"{watts} W on {card.name}"


@pytest.mark.gpu
def test_a_second_process_on_the_card_makes_the_run_invalid(tmp_path: Path, speed: Path) -> None:
    (card,) = find_gpus()[:1]
    with neighbour(card):
        done = pytest_on(card, tmp_path, speed, f"--rootdir={tmp_path}")
    (record,) = measured_on_a_card(tmp_path).records
    if done.returncode == 0:
        assert record.result.performance is not None
        (session,) = record.result.performance.sessions[:1]
        assert not [name for name in session.telemetry if name.endswith(".other_processes")], done.stdout
        pytest.skip("GPU check: NVML names processes as the host of this container does, and none can be told apart")
    assert done.returncode == 1, done.stdout
    assert "INVALID" in done.stdout
    assert "other processes that computed on gpu" in done.stdout
