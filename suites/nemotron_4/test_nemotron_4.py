"""Nemotron-4 15B and 340B Base on one DGX B200: BF16, NVFP4 by PTQ, and NVFP4 by QAT.

The published table names no task, so its scores are on file under the task `not_stated`, which nothing evaluates. The
tasks here are ours, judged against answers of your own BF16 engine: `pytest suites/nemotron_4 --inferperf-update=new`.
docs/runbook.md says what it takes, and where the checkpoints come from.
"""

from __future__ import annotations

import pytest

from pytest_inferperf.fixture import Inferperf

pytestmark = [
    pytest.mark.inferperf(backend="tensorrt_llm", tp=8, task=["mmlu", "gsm8k"]),
    # BF16 too is compared on the hardware of the others.
    pytest.mark.requires_gpu(sm=100, memory_gib=160),
]

PTQ = pytest.mark.inferperf(quant="NVFP4")
# These weights are trained already: the recipe gives their answers a place of their own beside those of PTQ.
QAT = pytest.mark.inferperf(quant="NVFP4", recipe="qat")


@pytest.mark.inferperf(model="nvidia/Nemotron-4-15B-Base", quant="BF16")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=1.0)
def test_reference_15b(inferperf: Inferperf) -> None:
    """Recorded, its answers are the reference, question by question."""
    inferperf.evaluate()


@PTQ
@pytest.mark.inferperf(model="nvidia/Nemotron-4-15B-Base-NVFP4", served_model_name="nemotron-4-15b-base")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=4.0)
def test_ptq_15b(inferperf: Inferperf) -> None:
    """Quantized after training; published, on an unnamed task: 3.2 points lost."""
    inferperf.evaluate()


@QAT
@pytest.mark.inferperf(model="nvidia/Nemotron-4-15B-Base-NVFP4-QAT", served_model_name="nemotron-4-15b-base")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=1.0)
def test_qat_15b(inferperf: Inferperf) -> None:
    """Fine-tuned in the format; published, on an unnamed task: 0.3 points gained."""
    inferperf.evaluate()


@pytest.mark.inferperf(model="nvidia/Nemotron-4-340B-Base", quant="BF16")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=1.0)
def test_reference_340b(inferperf: Inferperf) -> None:
    """Recorded, its answers are the reference, question by question."""
    inferperf.evaluate()


@PTQ
@pytest.mark.inferperf(model="nvidia/Nemotron-4-340B-Base-NVFP4", served_model_name="nemotron-4-340b-base")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=1.0)
def test_ptq_340b(inferperf: Inferperf) -> None:
    """Quantized after training; published, on an unnamed task: 0.3 points lost."""
    inferperf.evaluate()


@QAT
@pytest.mark.inferperf(model="nvidia/Nemotron-4-340B-Base-NVFP4-QAT", served_model_name="nemotron-4-340b-base")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=1.0)
def test_qat_340b(inferperf: Inferperf) -> None:
    """Fine-tuned in the format; published, on an unnamed task: 0.3 points gained."""
    inferperf.evaluate()
