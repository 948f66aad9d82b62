"""Llama 4 Maverick (400B) on one DGX B200: the published record for one user with EAGLE-3, and server throughput.

Both records are baselines of provenance `published`. docs/runbook.md says what it takes.
"""

from __future__ import annotations

import pytest

from pytest_inferperf.fixture import Inferperf

pytestmark = [
    pytest.mark.inferperf(
        model="nvidia/Llama-4-Maverick-17B-128E-Instruct-FP8",
        served_model_name="llama-4-maverick",
        quant="FP8",
        backend="tensorrt_llm",
        tp=8,
    ),
    # The records are those of B200; FP8 itself runs on older GPUs.
    pytest.mark.requires_gpu(sm=100, memory_gib=160),
]

EAGLE3 = {
    "speculative": "eagle3",
    "draft_model": "nvidia/Llama-4-Maverick-17B-128E-Eagle3",
    "max_draft_len": 3,
}


# The source gives neither input nor output length.
@pytest.mark.inferperf(isl=1024, osl=2048, concurrency=1, engine_options=EAGLE3)
@pytest.mark.throughput_floor("output_throughput_per_user")
def test_record_for_one_user(inferperf: Inferperf) -> None:
    """Over 1,000 tokens/s/user."""
    inferperf.measure()


# "Up to" 72,000 tokens/s, and no concurrency: a floor that even NVIDIA reached once.
@pytest.mark.inferperf(isl=1024, osl=2048, concurrency=2048, ep=8, rounds=2, engine_options={"attention_dp": True})
@pytest.mark.throughput_floor("output_throughput")
def test_record_throughput(inferperf: Inferperf) -> None:
    """Up to 72,000 tokens/s."""
    inferperf.measure()


@pytest.mark.inferperf(served_model_name="llama-4-maverick-eagle3", isl=1024, osl=1024, concurrency=[1, 8, 64])
@pytest.mark.inferperf(engine_options=EAGLE3)
@pytest.mark.throughput_floor("output_throughput_per_gpu", "output_throughput_per_user")
@pytest.mark.latency_ceiling("ttft_ms.p99", "tpot_ms.p50")
def test_with_eagle3(inferperf: Inferperf) -> None:
    """Speed with EAGLE-3, across concurrencies, against your own baseline."""
    inferperf.measure()


@pytest.mark.inferperf(served_model_name="llama-4-maverick-plain", isl=1024, osl=1024, concurrency=[1, 8, 64])
@pytest.mark.throughput_floor("output_throughput_per_gpu", "output_throughput_per_user")
@pytest.mark.latency_ceiling("ttft_ms.p99", "tpot_ms.p50")
def test_without_eagle3(inferperf: Inferperf) -> None:
    """Speed without speculation, across concurrencies, against your own baseline."""
    inferperf.measure()
