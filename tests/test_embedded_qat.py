"""The suite of quantization-aware training: its texts, its paired test, and the answers that are on file."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.store import read_accuracy
from pytest_inferperf.model.case import EngineSpec

SUITE = Path(__file__).parents[1] / "suites" / "embedded"


@pytest.fixture(scope="module")
def suite() -> Any:
    spec = importlib.util.spec_from_file_location("embedded_test_qat", SUITE / "test_qat.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SUITE / "data" / name).read_text(encoding="utf-8").splitlines()]


def test_training_texts_repeat_no_document_of_a_task() -> None:
    """The same digits in another puzzle are another document; the same prompt is not."""
    taught = rows("qat.jsonl")
    prompts = {row["prompt"] for row in taught}
    questions = {row["prompt"] for row in rows("puzzles.jsonl")}
    assert len(prompts) == len(taught) == 6400
    assert len(questions) == 4000
    assert not prompts & questions
    assert not (prompts | questions) & {row["prompt"] for row in rows("transform.jsonl")}
    # Nothing of another task is taught at all.
    assert {prompt.split()[0] for prompt in prompts} == {"add", "reverse", "sort"}
    assert all(row["text"].strip().isdigit() for row in taught)


def outcomes(right: int, of: int = 1500, *, flips: int = 0, seed: int = 0) -> list[float]:
    """The first `right` questions are answered, but for as many flips in each direction, drawn from a seed."""
    found = [1.0] * right + [0.0] * (of - right)
    rng = random.Random(seed)
    for index in (*rng.sample(range(right), flips), *rng.sample(range(right, of), flips)):
        found[index] = 1.0 - found[index]
    return found


@pytest.mark.parametrize(
    ("recovered", "proven"), [(40, True), (32, True), (20, False), (8, False), (0, False), (-10, False)]
)
def test_half_is_proven_where_it_is_recovered_and_nowhere_else(suite: Any, recovered: int, proven: bool) -> None:
    """PTQ loses 40 of 937 answers; training wins some of them back, and trades some answers for others."""
    lower, upper = suite.recovery_bounds(
        outcomes(937), outcomes(897, flips=20, seed=1), outcomes(897 + recovered, flips=15, seed=2)
    )
    assert (lower > 0) is proven
    assert lower < (recovered - 20) / 1500 < upper


def test_no_loss_is_no_proof(suite: Any) -> None:
    """Where PTQ loses nothing there is nothing to recover."""
    lower, _ = suite.recovery_bounds(outcomes(900), outcomes(900, flips=20, seed=1), outcomes(900, flips=20, seed=2))
    assert lower <= 0


def test_answers_on_file_have_the_shape_of_the_published_table(suite: Any) -> None:
    """BF16 above PTQ by a paired test, QAT above the middle between the two by another, on the same 4,000 questions."""
    stored = read_accuracy(suite.STORED).tasks[suite.TASK]
    bf16, ptq, qat = (stored.scores[name].outcomes for name in ("BF16", suite.PTQ, suite.QAT))
    assert len(bf16) == len(ptq) == len(qat) == 4000
    lost, _ = suite.recovery_bounds(ptq, ptq, bf16)
    assert lost > 0
    recovered, _ = suite.recovery_bounds(bf16, ptq, qat)
    assert recovered > 0


def test_names_on_file_are_those_of_the_cases(suite: Any) -> None:
    spec = EngineSpec(model="m", served_model_name="m", quant="NVFP4", kv_cache_dtype="nvfp4", recipe="qat")
    assert spec.precision == suite.QAT
