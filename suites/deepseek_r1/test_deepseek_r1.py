"""DeepSeek-R1 (671B) on one DGX B200: the published records, multi-token prediction, and five tasks in NVFP4 and FP8.

The records are baselines of provenance `published`; what speculation gains is judged by baselines of your own:
`pytest suites/deepseek_r1 --inferperf-update=new`. docs/runbook.md says what it takes.
"""

from __future__ import annotations

import pytest

from pytest_inferperf.fixture import Inferperf

pytestmark = [
    pytest.mark.inferperf(model="nvidia/DeepSeek-R1-FP4", quant="NVFP4", backend="tensorrt_llm", tp=8),
    pytest.mark.requires_gpu(memory_gib=160),
]

# DeepSeek's own weights: FP8 with a scale for each block.
FP8 = pytest.mark.inferperf(model="deepseek-ai/DeepSeek-R1", quant="FP8_BLOCK_SCALES")
SERVED = pytest.mark.inferperf(served_model_name="deepseek-r1")
MTP = {"speculative": "mtp", "max_draft_len": 3}
THROUGHPUT = {"attention_dp": True, "max_batch_size": 256}


@SERVED
@pytest.mark.inferperf(isl=1024, osl=2048, concurrency=1, engine_options=MTP)
@pytest.mark.throughput_floor("output_throughput_per_user")
def test_record_for_one_user(inferperf: Inferperf) -> None:
    """Over 250 tokens/s/user."""
    inferperf.measure()


@SERVED
# The source says "maximum throughput" and no concurrency.
@pytest.mark.inferperf(isl=1024, osl=2048, concurrency=2048, ep=8, rounds=2, engine_options=THROUGHPUT)
@pytest.mark.throughput_floor("output_throughput")
def test_record_throughput(inferperf: Inferperf) -> None:
    """Over 30,000 tokens/s."""
    inferperf.measure()


@pytest.mark.inferperf(served_model_name="deepseek-r1-mtp", isl=1024, osl=2048, concurrency=[1, 8, 64, 256])
@pytest.mark.inferperf(engine_options=MTP)
@pytest.mark.throughput_floor("output_throughput_per_gpu", "output_throughput_per_user")
@pytest.mark.latency_ceiling("ttft_ms.p99", "tpot_ms.p50")
def test_with_multi_token_prediction(inferperf: Inferperf) -> None:
    """Speed with MTP, across concurrencies, against your own baseline."""
    inferperf.measure()


@pytest.mark.inferperf(served_model_name="deepseek-r1-no-mtp", isl=1024, osl=2048, concurrency=[1, 8, 64, 256])
@pytest.mark.throughput_floor("output_throughput_per_gpu", "output_throughput_per_user")
@pytest.mark.latency_ceiling("ttft_ms.p99", "tpot_ms.p50")
def test_without_multi_token_prediction(inferperf: Inferperf) -> None:
    """Speed without MTP, across concurrencies, against your own baseline."""
    inferperf.measure()


@SERVED
@pytest.mark.inferperf(task=["mmlu", "gsm8k", "aime24", "gpqa_diamond_cot_zeroshot"])
@pytest.mark.accuracy_loss_ceiling(reference="FP8_BLOCK_SCALES", points=1.0)
def test_accuracy(inferperf: Inferperf) -> None:
    """NVFP4 loses at most a point to FP8; published: 0.0 to 0.5."""
    inferperf.evaluate()


@SERVED
@pytest.mark.inferperf(task="hendrycks_math500")
@pytest.mark.accuracy_loss_ceiling(reference="FP8_BLOCK_SCALES", points=1.5)
def test_accuracy_math(inferperf: Inferperf) -> None:
    """The published loss on MATH-500 is 1.2 points, above the ceiling of the other tasks."""
    inferperf.evaluate()


@SERVED
@FP8
@pytest.mark.inferperf(task=["mmlu", "gsm8k", "aime24", "gpqa_diamond_cot_zeroshot", "hendrycks_math500"])
@pytest.mark.accuracy_loss_ceiling(reference="FP8_BLOCK_SCALES", points=1.0)
def test_reference(inferperf: Inferperf) -> None:
    """FP8 scores what is published; recorded, its answers are the reference, question by question."""
    inferperf.evaluate()
