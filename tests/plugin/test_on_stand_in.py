"""Whole runs on TensorRT-LLM, as far as they go without it: its strict stand-in, in an engine process of its own."""

from __future__ import annotations

import sys

import psutil
import pytest
import tokenizers  # noqa: F401 - a C extension, which cannot be loaded twice

from pytest_inferperf.engines import hardware
from pytest_inferperf.engines.hardware import Gpu, GpuMachine
from pytest_inferperf.measure import energy, gpu, telemetry
from tests.engines.tensorrt_llm.conftest import STAND_IN, VERSIONS, write_checkpoint, write_weights
from tests.plugin.servers import ServedProject

pytestmark = pytest.mark.newest

ENGINE = "backend='tensorrt_llm', tp=8, isl=16, osl=8, concurrency=2, num_requests=4, rounds=2, warmup_rounds=0"
FLOOR = "throughput_floor(output_throughput=0.001)"


@pytest.fixture
def node(served: ServedProject, monkeypatch: pytest.MonkeyPatch) -> ServedProject:
    """A project on a machine with eight B200, of which nothing else is known, and with a plain checkpoint."""
    machine = GpuMachine(gpus=tuple(Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0) for _ in range(8)))
    monkeypatch.setattr(hardware, "look_at_gpus", lambda: machine)
    # The engine process is given this path; this process imports none of it.
    for folder in (STAND_IN, STAND_IN / "light"):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(hardware, "load_nvml", lambda: None)
    for module in (energy, gpu, telemetry):
        if hasattr(module, "load_nvml"):
            monkeypatch.setattr(module, "load_nvml", lambda: None)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    write_weights(write_checkpoint(served.path / "tiny-llama"))
    return served


def run(node: ServedProject, *arguments: str) -> pytest.RunResult:
    result = node.run("--inferperf-set=sessions=1", "-p", "no:benchmark", *arguments)
    assert not psutil.Process().children(recursive=True)
    return result


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_passes_on_either_release(node: ServedProject, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN_VERSION", version)
    node.test(ENGINE, FLOOR)
    run(node).assert_outcomes(passed=1)


def test_an_engine_that_became_slow_fails(node: ServedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 ms later for each request: 4 requests of 8 tokens, two at a time, take at least 50 ms."""
    monkeypatch.setenv("TRTLLM_STAND_IN", "late")
    node.test(ENGINE, "latency_ceiling(**{'e2e_latency_ms.p50': 40})")
    result = run(node)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*e2e_latency_ms.p50 * is above its ceiling 40*"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("wrong_tp", "*INVALID*tp*"),
        ("wrong_option", "*INVALID*max_batch_size*"),
        ("misquantized", "*INVALID*NVFP4*"),
    ],
)
def test_another_configuration_than_was_asked_for_is_invalid(
    node: ServedProject, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN", fault)
    node.test(f"{ENGINE}, engine_options={{'max_batch_size': 64}}", FLOOR)
    result = run(node)
    assert result.ret == 1
    assert result.parseoutcomes().get("passed", 0) == 0
    result.stdout.fnmatch_lines([message])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("oom", "*failed: out of memory: Executor worker returned error: CUDA out of memory*"),
        ("dies", "*ended with exit status 9*"),
        ("hangs", "*gave no answer to * within 3 s and was killed*"),
        ("failing", "*illegal memory access*"),
        ("short", "*ended a request for its length after 4 of 8 tokens*"),
    ],
)
def test_a_failure_of_the_engine_is_told_with_its_cause_and_leaves_nothing(
    node: ServedProject, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN", fault)
    node.test(ENGINE, FLOOR)
    result = run(node, "-o", "inferperf_call_timeout=3")
    assert result.ret == 1
    assert result.parseoutcomes().get("passed", 0) == 0
    result.stdout.fnmatch_lines([message])
