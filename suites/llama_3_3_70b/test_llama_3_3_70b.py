"""Llama 3.3 70B on one DGX B200: NVFP4 against BF16, in speed and on two tasks.

Scores of both precisions are published; speeds are judged by baselines of your own:
`pytest suites/llama_3_3_70b --inferperf-update=new`. docs/runbook.md says what it takes.
"""

from __future__ import annotations

import pytest

from pytest_inferperf.fixture import Inferperf

pytestmark = [
    pytest.mark.inferperf(
        model="nvidia/Llama-3.3-70B-Instruct-FP4",
        served_model_name="llama-3.3-70b",
        quant="NVFP4",
        backend="tensorrt_llm",
        tp=8,
    ),
    pytest.mark.requires_gpu(memory_gib=160),
]

BF16 = pytest.mark.inferperf(model="meta-llama/Llama-3.3-70B-Instruct", quant="BF16")


@pytest.mark.inferperf(isl=2048, osl=128, concurrency=[1, 64, 512])
@pytest.mark.throughput_floor("output_throughput_per_gpu", "output_throughput_per_user")
@pytest.mark.latency_ceiling("ttft_ms.p99", "tpot_ms.p50")
def test_speed(inferperf: Inferperf) -> None:
    """NVFP4 keeps its speed."""
    inferperf.measure()


@BF16
@pytest.mark.inferperf(isl=2048, osl=128, concurrency=[1, 64, 512])
@pytest.mark.throughput_floor("output_throughput_per_gpu", "output_throughput_per_user")
@pytest.mark.latency_ceiling("ttft_ms.p99", "tpot_ms.p50")
def test_speed_of_the_reference(inferperf: Inferperf) -> None:
    """BF16 keeps its speed."""
    inferperf.measure()


@pytest.mark.inferperf(isl=2048, osl=128, concurrency=64)
@pytest.mark.speedup_floor(
    "output_throughput", over={"quant": "BF16", "model": "meta-llama/Llama-3.3-70B-Instruct"}, ratio=1.5, reload=True
)
def test_speedup(inferperf: Inferperf) -> None:
    """NVFP4 is at least half as fast again as BF16; on this machine, no figure for it is published."""
    inferperf.measure()


@pytest.mark.inferperf(task=["mmlu", "gsm8k"])
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=3.0)
def test_accuracy(inferperf: Inferperf) -> None:
    """NVFP4 loses at most three points; published: 2.0 and 2.7, which a ceiling of one point would fail."""
    inferperf.evaluate()


@BF16
@pytest.mark.inferperf(task=["mmlu", "gsm8k"])
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=1.0)
def test_reference(inferperf: Inferperf) -> None:
    """BF16 scores what is published; recorded, its answers are the reference, question by question."""
    inferperf.evaluate()
