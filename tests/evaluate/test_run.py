"""A task's answers, document by document, are those of lm-eval's `hf` model."""

from __future__ import annotations

import json
import logging
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.interface import Generation
from pytest_inferperf.errors import EngineError, InvalidRun, TaskError
from pytest_inferperf.evaluate import evaluate
from pytest_inferperf.model.case import Task


@pytest.mark.parametrize("name", ["tiny_choices", "tiny_words"])
def test_outcomes_equal_hf(
    name: str, tiny: Any, tiny_model: Path, tiny_task: Any, hf_model: Any, hf_samples: Any
) -> None:
    task = tiny_task(name)
    ours = evaluate(tiny, task)
    samples, results = hf_samples(hf_model(tiny_model), Path(task.path))
    assert ours.outcomes == tuple(float(item[ours.metric]) for item in samples)
    assert set(ours.outcomes) == {0.0, 1.0}, "a task that is all right or all wrong shows nothing"
    assert ours.score == results[f"{ours.metric},{samples[0]['filter']}"]
    assert ours.is_binary
    assert ours.higher_is_better


def test_rolling_outcomes_equal_hf(tiny: Any, tiny_model: Path, tiny_task: Any, hf_model: Any, hf_samples: Any) -> None:
    from lm_eval.api.metrics import bits_per_byte

    task = tiny_task("tiny_text")
    ours = evaluate(tiny, task)
    samples, results = hf_samples(hf_model(tiny_model), Path(task.path))
    assert ours.metric == "bits_per_byte"
    assert not ours.higher_is_better
    assert ours.outcomes == pytest.approx([bits_per_byte([item["bits_per_byte"]]) for item in samples], rel=1e-5)
    assert ours.score == pytest.approx(results["bits_per_byte,none"], rel=1e-6)
    assert ours.unparseable is None
    assert set(ours.scores) == {"bits_per_byte,none", "word_perplexity,none"}


def test_a_perplexity_is_that_of_each_document(tiny: Any, tiny_task: Any) -> None:
    bits = evaluate(tiny, tiny_task("tiny_text", limit=4))
    found = evaluate(tiny, tiny_task("tiny_text", limit=4), metric="word_perplexity")
    assert found.metric == "word_perplexity"
    assert found.score == bits.scores["word_perplexity,none"]
    assert len(found.outcomes) == 4
    assert all(value > 1 for value in found.outcomes)


def test_another_metric_can_count(tiny: Any, tiny_task: Any) -> None:
    first = evaluate(tiny, tiny_task("tiny_choices"))
    second = evaluate(tiny, tiny_task("tiny_choices"), metric="acc_norm")
    assert (first.metric, second.metric) == ("acc", "acc_norm")
    assert second.score == first.scores["acc_norm,none"] == pytest.approx(sum(second.outcomes) / len(second.outcomes))


def test_the_first_filter_counts_and_unparseable_answers_are_counted_apart(
    tiny: Any, tiny_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["river one", "123", "!stone", "STONE"]

    def generate(requests: Any, *, concurrency: int) -> list[Generation]:
        return [
            Generation(token_ids=(5,), text=text, finish_reason="stop", prompt_tokens=1, token_times_s=(0.0,))
            for _, text in zip(requests, answers, strict=True)
        ]

    monkeypatch.setattr(tiny, "generate", generate)
    found = evaluate(tiny, tiny_task("tiny_words", limit=4))
    assert found.unparseable == (False, True, False, True)
    assert set(found.scores) == {"exact_match,first-letters", "exact_match,whole"}
    assert found.score == found.scores["exact_match,first-letters"]


def test_limit_takes_the_first_documents(tiny: Any, tiny_task: Any) -> None:
    whole, part = evaluate(tiny, tiny_task("tiny_choices")), evaluate(tiny, tiny_task("tiny_choices", limit=5))
    assert part.outcomes == whole.outcomes[:5]
    assert part.documents_digest != whole.documents_digest
    with pytest.raises(TaskError, match="limit=0 leaves no document"):
        evaluate(tiny, tiny_task("tiny_choices", limit=0))


def test_the_digest_is_that_of_the_documents(tiny: Any, tiny_tasks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_tasks, folder)
    task = Task(name="tiny_choices", path=str(folder / "tiny_choices.yaml"), limit=6)
    first = evaluate(tiny, Task(name="tiny_choices", path=str(tiny_tasks / "tiny_choices.yaml"), limit=6))
    assert evaluate(tiny, task).documents_digest == first.documents_digest
    documents = folder / "choices.jsonl"
    lines = documents.read_text(encoding="utf-8").splitlines()
    for key, value in (("prompt", "Another question"), ("choices", [" a", " b", " c", " d"]), ("label", -1)):
        row = json.loads(lines[3])
        row[key] = value if key != "label" else (row["label"] + 1) % 4
        documents.write_text("\n".join([*lines[:3], json.dumps(row), *lines[4:]]) + "\n", encoding="utf-8")
        assert evaluate(tiny, task).documents_digest != first.documents_digest, key
    documents.write_text("\n".join([*lines[1:3], lines[0], *lines[3:]]) + "\n", encoding="utf-8")
    assert evaluate(tiny, task).documents_digest != first.documents_digest, "another order"


def test_few_shot_examples_are_the_same_every_time(tiny: Any, tiny_task: Any) -> None:
    digests = {evaluate(tiny, tiny_task("tiny_words", limit=2, num_fewshot=1)).documents_digest for _ in range(2)}
    assert len(digests) == 1
    tiny.asked.clear()
    evaluate(tiny, tiny_task("tiny_words", limit=2, num_fewshot=1))
    assert all(tiny.decode([item.prompt])[0].count("Q: ") == 2 for item in tiny.asked)


def test_a_fixed_number_of_shots_cannot_be_changed(tiny: Any, tiny_tasks: Path) -> None:
    text = (tiny_tasks / "tiny_words.yaml").read_text(encoding="utf-8").replace("tiny_words", "fixed")
    path = tiny_tasks / "fixed.yaml"
    path.write_text(text + "num_fewshot: 0\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"fixes num_fewshot: 0, so num_fewshot=2 cannot be honoured"):
        evaluate(tiny, Task(name="fixed", path=str(path), num_fewshot=2))
    assert len(evaluate(tiny, Task(name="fixed", path=str(path), num_fewshot=0, limit=2)).outcomes) == 2


def test_an_unknown_metric_names_the_metrics_of_the_task(tiny: Any, tiny_task: Any) -> None:
    with pytest.raises(TaskError, match=r"no metric 'acc_nrm'. Did you mean 'acc_norm'\? Its metrics: acc, acc_norm"):
        evaluate(tiny, tiny_task("tiny_choices"), metric="acc_nrm")


def test_a_metric_of_the_whole_corpus_is_refused(tiny: Any, tiny_tasks: Path) -> None:
    text = (tiny_tasks / "tiny_choices.yaml").read_text(encoding="utf-8").replace("tiny_choices", "with_f1")
    path = tiny_tasks / "with_f1.yaml"
    path.write_text(text + "  - metric: f1\n    aggregation: f1\n    higher_is_better: true\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"'f1'.*only for all documents together.*acc, acc_norm"):
        evaluate(tiny, Task(name="with_f1", path=str(path)), metric="f1")


def test_a_prompt_that_is_too_long_is_invalid(tiny: Any, tiny_task: Any) -> None:
    with pytest.raises(InvalidRun, match=r"of tiny_words: .* prompt tokens"):
        evaluate(tiny, tiny_task("tiny_words", limit=2, num_fewshot=20))


@pytest.mark.parametrize("error", [EngineError("the engine died"), RuntimeError("CUDA error"), MemoryError()])
def test_what_the_engine_raises_passes_through(
    tiny: Any, tiny_task: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(requests: Any, *, concurrency: int) -> Any:
        raise error

    monkeypatch.setattr(tiny, "loglikelihood", fail)
    with pytest.raises(type(error)) as caught:
        evaluate(tiny, tiny_task("tiny_choices", limit=2))
    assert caught.value is error


def test_an_error_in_a_task_s_own_code_names_the_task(tiny: Any, tiny_tasks: Path) -> None:
    text = (tiny_tasks / "tiny_words.yaml").read_text(encoding="utf-8").replace("tiny_words", "broken")
    path = tiny_tasks / "broken.yaml"
    path.write_text(text.replace("function: lowercase", "function: no_such_filter"), encoding="utf-8")
    with pytest.raises(TaskError, match="'broken'"):
        evaluate(tiny, Task(name="broken", path=str(path), limit=2))


def test_an_empty_document_has_no_perplexity(tiny: Any, tiny_tasks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_tasks, folder)
    (folder / "text.jsonl").write_text('{"text": "river"}\n{"text": ""}\n', encoding="utf-8")
    with pytest.raises(TaskError, match="document 1 of tiny_text: 'bits_per_byte' has no value"):
        evaluate(tiny, Task(name="tiny_text", path=str(folder / "tiny_text.yaml")))


def test_a_group_is_scored_over_its_tasks_in_order(tiny: Any, tiny_tasks: Path) -> None:
    for name in ("part_a", "part_b"):
        text = (tiny_tasks / "tiny_choices.yaml").read_text(encoding="utf-8").replace("tiny_choices", name)
        (tiny_tasks / f"{name}.yaml").write_text(text, encoding="utf-8")
    group = "group: both\ntask: [part_a, part_b]\n"
    (tiny_tasks / "both.yaml").write_text(
        group + "aggregate_metric_list:\n  - metric: acc\n    aggregation: mean\n    weight_by_size: true\n"
    )
    (tiny_tasks / "bare.yaml").write_text(group.replace("both", "bare"))
    found = evaluate(tiny, Task(name="both", limit=6), search_paths=[tiny_tasks])
    part = evaluate(tiny, Task(name="part_a", limit=6), search_paths=[tiny_tasks])
    assert found.outcomes == part.outcomes * 2
    assert (found.metric, found.score, found.higher_is_better) == ("acc", part.score, True)
    with pytest.raises(TaskError, match=r"the group 'bare' .* has no score of its own.*part_a, part_b"):
        evaluate(tiny, Task(name="bare"), search_paths=[tiny_tasks])
    with pytest.raises(TaskError, match="no metric 'acc_norm'"):
        evaluate(tiny, Task(name="both"), search_paths=[tiny_tasks], metric="acc_norm")


def test_lm_eval_is_quiet_and_leaves_the_process_alone(
    tiny: Any, tiny_task: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state, level = random.getstate(), logging.getLogger("lm_eval").level
    lines: list[str] = []
    evaluate(tiny, tiny_task("tiny_choices", limit=2), progress=lines.append)
    assert capfd.readouterr() == ("", "")
    assert (random.getstate(), logging.getLogger("lm_eval").level) == (state, level)
    assert lines == ["score 8 loglikelihood requests"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["pytest_inferperf.evaluate", "pytest_inferperf.evaluate.run"])
def test_importing_evaluate_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([name for name in ('lm_eval', 'datasets', 'torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
