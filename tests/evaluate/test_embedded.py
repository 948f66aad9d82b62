"""The embedded engine gives lm-eval's `hf` answers: on the tiny checkpoint, and on the model and tasks of the suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.evaluate import evaluate
from pytest_inferperf.evaluate.interim import Asking
from pytest_inferperf.evaluate.run import evaluate_lm
from pytest_inferperf.gates.asking import asking_looks, asking_order
from pytest_inferperf.model.case import EngineSpec, Task
from pytest_inferperf.model.results import AccuracyResult

SUITE = Path(__file__).resolve().parents[2] / "suites" / "embedded"
LIMIT = 64


@pytest.fixture(scope="module")
def embedded() -> Callable[[Path], Any]:
    """Make the in-process embedded engine of a checkpoint, in float32."""

    @cache
    def make(folder: Path) -> Any:
        from pytest_inferperf.engines.transformers_engine import TransformersEngine

        options = (("compute_dtype", "float32"),)
        spec = EngineSpec(model=str(folder), served_model_name="model", engine_options=options)
        return TransformersEngine(spec, checkpoint=str(folder))

    return make


@pytest.mark.parametrize("name", ["tiny_choices", "tiny_words", "tiny_text"])
def test_the_tiny_model(
    name: str, embedded: Callable[[Path], Any], tiny_model: Path, tiny_task: Any, hf_model: Any, hf_samples: Any
) -> None:
    task = tiny_task(name)
    ours = evaluate(embedded(tiny_model), task)
    samples, results = hf_samples(hf_model(tiny_model), Path(task.path))
    theirs = evaluate_lm(hf_model(tiny_model), task)
    assert [item["doc_id"] for item in samples] == list(range(len(ours.outcomes)))
    assert ours.outcomes == pytest.approx(theirs.outcomes, rel=1e-5)
    assert ours.score == pytest.approx(results[f"{ours.metric},{samples[0]['filter']}"], rel=1e-5)
    assert (ours.documents_digest, ours.unparseable) == (theirs.documents_digest, theirs.unparseable)


@pytest.mark.parametrize("path", sorted((SUITE / "tasks").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_suite_s_model(path: Path, embedded: Callable[[Path], Any], hf_model: Any, hf_samples: Any) -> None:
    ours = evaluate(embedded(SUITE / "model"), Task(name=path.stem, path=str(path), limit=LIMIT))
    samples, results = hf_samples(hf_model(SUITE / "model"), path, limit=LIMIT)
    theirs = evaluate_lm(hf_model(SUITE / "model"), Task(name=path.stem, path=str(path), limit=LIMIT))
    assert len(ours.outcomes) == len(samples) == LIMIT
    assert ours.outcomes == pytest.approx(theirs.outcomes, rel=1e-5)
    if ours.is_binary:
        assert ours.outcomes == tuple(float(item[ours.metric]) for item in samples)
    assert ours.score == pytest.approx(results[f"{ours.metric},{samples[0]['filter']}"], rel=1e-5)


@pytest.mark.parametrize("path", sorted((SUITE / "tasks").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_suite_s_tasks_score_in_part_as_they_do_whole(
    path: Path, embedded: Callable[[Path], Any], whole_in_part: list[AccuracyResult]
) -> None:
    asking = Asking(order=asking_order, looks=asking_looks)
    theirs = evaluate(embedded(SUITE / "model"), Task(name=path.stem, path=str(path), limit=LIMIT), asking=asking)
    (ours,) = whole_in_part
    assert (ours.outcomes, ours.unparseable, ours.score) == (theirs.outcomes, theirs.unparseable, theirs.score)
    assert (ours.documents_digest, ours.logprobs) == (theirs.documents_digest, theirs.logprobs)
