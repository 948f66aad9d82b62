"""BF16, post-training quantization and quantization-aware training side by side, as the published FP4 tables show them.

PTQ loses, QAT recovers most of it. The format is the harshest that the engine deploys: NVFP4 weights, activations and KV
cache. What QAT trains on are puzzles that no task asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_inferperf.baselines.store import read_accuracy
from pytest_inferperf.fixture import Inferperf
from pytest_inferperf.gates.paired import sign_flip_bounds

pytestmark = pytest.mark.inferperf(
    model="model",
    served_model_name="inferperf-tiny-llama",
    calib_dataset="data/calibration.jsonl",
    task="tasks/embedded_puzzles.yaml",
)

STORED = Path(__file__).parents[2] / "baselines" / "accuracy" / "inferperf-tiny-llama.json"
TASK = "embedded_puzzles-exact_match"
PTQ, QAT = "NVFP4+kv_nvfp4", "NVFP4+qat+kv_nvfp4"


def recovery_bounds(
    bf16: Sequence[float], ptq: Sequence[float], qat: Sequence[float], level: float = 0.05
) -> tuple[float, float]:
    """Bound how far QAT is above the middle between PTQ and BF16, question by question, each bound at `level`.

    Above 0: more than half of what PTQ lost is recovered. `level` is the error of each bound.
    """
    above = [trained - (whole + lossy) / 2 for whole, lossy, trained in zip(bf16, ptq, qat, strict=True)]
    return sign_flip_bounds(above, [1.0] * len(above), level)


@pytest.mark.inferperf(quant="BF16")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=1.0)
def test_accuracy_bf16(inferperf: Inferperf) -> None:
    """The reference answers as it did when it was recorded."""
    inferperf.evaluate()


@pytest.mark.inferperf(quant="NVFP4", kv_cache_dtype="nvfp4")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=5.0)
def test_accuracy_ptq(inferperf: Inferperf) -> None:
    """Without training, the format costs some points."""
    inferperf.evaluate()


@pytest.mark.inferperf(
    quant="NVFP4",
    kv_cache_dtype="nvfp4",
    recipe="qat",
    qat_dataset="data/qat.jsonl",
    qat_steps=300,
    qat_learning_rate=3e-4,
    early_stop=False,
)
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=2.0)
def test_accuracy_qat_recovers_half_of_what_ptq_loses(inferperf: Inferperf) -> None:
    """Training wins at least half of it back, by a paired test on the same questions."""
    trained = inferperf.evaluate()
    stored = read_accuracy(STORED).tasks[TASK]
    assert stored.documents_digest == trained.documents_digest
    lower, _ = recovery_bounds(stored.scores["BF16"].outcomes, stored.scores[PTQ].outcomes, trained.outcomes)
    assert lower > 0, f"QAT may be as low as {100 * lower:+.2f} points from the middle between PTQ and BF16"
