"""The embedded suite: a small Llama on a CPU, quantized by ModelOpt, gated like any deployed model.

Baselines of accuracy are in the repository; performance depends on the machine and is recorded on it first:
`pytest suites/embedded --inferperf-update=new`.
"""

from __future__ import annotations

import pytest

from pytest_inferperf.engines.interface import Engine, GenerationRequest
from pytest_inferperf.fixture import Inferperf

pytestmark = pytest.mark.inferperf(
    model="model", served_model_name="inferperf-tiny-llama", calib_dataset="data/calibration.jsonl"
)

PRECISIONS = ["BF16", "FP8", "NVFP4", "W4A16_NVFP4", "INT4_AWQ"]


@pytest.mark.inferperf(quant=["BF16", "NVFP4"], isl=256, osl=64, concurrency=4, rounds=5, warmup_rounds=1)
# Wide, because CPUs are shared: what must be caught here is a broken path, not a slow neighbour.
@pytest.mark.throughput_floor("output_throughput", "output_throughput_per_user", tolerance=0.5)
@pytest.mark.latency_ceiling("tpot_ms.p50", tolerance=0.9)
def test_performance(inferperf: Inferperf) -> None:
    """Generation keeps its speed."""
    assert inferperf.measure().num_failed_requests == 0


@pytest.mark.inferperf(quant=PRECISIONS, task="tasks/embedded_transform.yaml")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=3.0)
@pytest.mark.accuracy_floor(points=55.0)
def test_accuracy_transform(inferperf: Inferperf) -> None:
    """Generated answers keep their accuracy."""
    inferperf.evaluate()


@pytest.mark.inferperf(quant=PRECISIONS, task="tasks/embedded_facts.yaml")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=3.0)
@pytest.mark.accuracy_floor(points=55.0)
def test_accuracy_facts(inferperf: Inferperf) -> None:
    """Multiple-choice answers keep their accuracy."""
    inferperf.evaluate()


@pytest.mark.inferperf(quant=PRECISIONS, task="tasks/embedded_stories.yaml")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", percent=3.0, metric="bits_per_byte")
def test_perplexity_stories(inferperf: Inferperf) -> None:
    """Perplexity stays close to the reference."""
    inferperf.evaluate()


@pytest.mark.inferperf(quant="NVFP4", kv_cache_dtype="fp8", task="tasks/embedded_transform.yaml")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=3.0)
def test_accuracy_with_fp8_kv_cache(inferperf: Inferperf) -> None:
    """A quantized KV cache costs no more than the weights do."""
    inferperf.evaluate()


@pytest.mark.inferperf(quant="NVFP4")
def test_greedy_generation_repeats_itself(inferperf_engine: Engine) -> None:
    """The built engine serves a test's own asserts."""
    (prompt,) = inferperf_engine.encode(["add 123+456="])
    request = GenerationRequest(prompt=prompt, max_tokens=8)
    first, second = inferperf_engine.generate([request, request], concurrency=2)
    assert first.token_ids == second.token_ids
    streamed = [token for chunk in inferperf_engine.stream(request) for token in chunk.token_ids]
    assert tuple(streamed) == first.token_ids
