"""Ten minutes on one B200 with an 8B model: is this machine, with this TensorRT-LLM, worth a longer suite?

Record once: `pytest suites/blackwell_smoke --inferperf-update=new`. docs/runbook.md says what it takes.
"""

from __future__ import annotations

import pytest

from pytest_inferperf.engines.interface import Engine, GenerationRequest
from pytest_inferperf.fixture import Inferperf

pytestmark = [
    pytest.mark.inferperf(
        model="nvidia/Llama-3.1-8B-Instruct-FP4",
        served_model_name="llama-3.1-8b",
        quant="NVFP4",
        backend="tensorrt_llm",
    ),
    pytest.mark.requires_gpu(memory_gib=160),
]


@pytest.mark.inferperf(isl=1024, osl=128, concurrency=[1, 64], rounds=3)
@pytest.mark.throughput_floor("output_throughput", "output_throughput_per_user")
@pytest.mark.latency_ceiling("ttft_ms.p99", "tpot_ms.p50")
def test_speed(inferperf: Inferperf) -> None:
    """NVFP4 keeps its speed."""
    assert inferperf.measure().num_failed_requests == 0


@pytest.mark.inferperf(isl=1024, osl=128, concurrency=64, rounds=2)
@pytest.mark.speedup_floor(
    "output_throughput", over={"quant": "BF16", "model": "meta-llama/Llama-3.1-8B-Instruct"}, ratio=1.2, reload=True
)
def test_nvfp4_is_faster_than_bf16(inferperf: Inferperf) -> None:
    """A format that gains nothing has fallen back to other kernels."""
    inferperf.measure()


@pytest.mark.inferperf(task="gsm8k", limit=250)
@pytest.mark.accuracy_floor(points=60.0)
def test_accuracy(inferperf: Inferperf) -> None:
    """Broken kernels and scales answer far below this; a floor of ours, no published figure."""
    inferperf.evaluate()


def test_greedy_generation_repeats_itself(inferperf_engine: Engine) -> None:
    """The same prompt gets the same answer, streamed or not."""
    (prompt,) = inferperf_engine.encode(["The capital of France is"])
    request = GenerationRequest(prompt=prompt, max_tokens=16)
    (first,) = inferperf_engine.generate([request], concurrency=1)
    streamed = [token for chunk in inferperf_engine.stream(request) for token in chunk.token_ids]
    assert tuple(streamed) == first.token_ids
