"""Asking in parts: the same questions and scores as without it, an early end, and A/A."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.entries import AccuracyEntry, Provenance, ScoreEntry
from pytest_inferperf.engines.interface import Generation, LogLikelihood
from pytest_inferperf.errors import InvalidRun, TaskError
from pytest_inferperf.evaluate import evaluate
from pytest_inferperf.evaluate.interim import Asking
from pytest_inferperf.gates.accuracy import judge_loss
from pytest_inferperf.gates.asking import asking_looks, asking_order
from pytest_inferperf.model.case import Task
from pytest_inferperf.model.gates import AccuracyLossCeiling
from pytest_inferperf.model.results import AccuracyResult, Repeat
from pytest_inferperf.model.verdicts import Status

Decide = Callable[[AccuracyResult], bool]


class Watch:
    """Looks at the answers, and keeps how many there were."""

    def __init__(self, enough: int | None = None) -> None:
        self.enough = enough
        self.seen: list[int] = []

    def __call__(self, answers: AccuracyResult) -> bool:
        self.seen.append(len(answers.outcomes))
        return len(answers.outcomes) == self.enough


def asking(decided: Decide | None = None, *, repeat: bool = False) -> Asking:
    return Asking(order=asking_order, looks=asking_looks, decided=decided, repeat=repeat)


@pytest.mark.parametrize("name", ["tiny_choices", "tiny_words", "tiny_text", "tiny_samples"])
def test_both_roads_score_alike(name: str, tiny: Any, tiny_task: Any, whole_in_part: list[AccuracyResult]) -> None:
    theirs = evaluate(tiny, tiny_task(name), asking=asking())
    (ours,) = whole_in_part
    assert (ours.outcomes, ours.unparseable, ours.asked) == (theirs.outcomes, theirs.unparseable, None)
    assert ours.documents_digest == theirs.documents_digest
    assert ours.logprobs == theirs.logprobs
    assert ours.score == theirs.score
    assert ours.scores.items() <= theirs.scores.items()


def test_both_roads_score_a_group_alike(tiny: Any, tiny_tasks: Path, whole_in_part: list[AccuracyResult]) -> None:
    for name in ("large", "small"):
        text = (tiny_tasks / "tiny_choices.yaml").read_text(encoding="utf-8").replace("tiny_choices", name)
        (tiny_tasks / f"{name}.yaml").write_text(
            text + ("" if name == "large" else "process_docs: !function utils.few\n")
        )
    utils = tiny_tasks / "utils.py"
    utils.write_text(utils.read_text() + "\n\ndef few(documents: Any) -> Any:\n    return documents.select(range(7))\n")
    aggregate = "aggregate_metric_list:\n  - metric: acc\n    aggregation: mean\n    weight_by_size: "
    for weighted in ("true", "false"):
        name = f"weighted_{weighted}"
        # Of another filter, which has no say in the score.
        other = f"  - metric: acc\n    aggregation: mean\n    filter_list: [other]\n    weight_by_size: {weighted != 'true'}\n"
        (tiny_tasks / f"{name}.yaml").write_text(f"group: {name}\ntask: [large, small]\n{aggregate}{weighted}\n{other}")
        theirs = evaluate(tiny, Task(name=name), search_paths=[tiny_tasks], asking=asking())
        ours = whole_in_part.pop()
        assert (ours.score, ours.outcomes) == (theirs.score, theirs.outcomes)
        part = evaluate(tiny, Task(name=name), search_paths=[tiny_tasks], asking=asking(lambda answers: True))
        assert part.is_partial
        assert (part.documents_digest, part.planned) == (theirs.documents_digest, 55)
        assert part.asked is not None
        assert part.outcomes == tuple(value for value, was in zip(theirs.outcomes, part.asked, strict=True) if was)
        by_size = math.isclose(part.score, sum(part.outcomes) / len(part.outcomes))
        assert by_size is (weighted == "true")
        assert theirs.task_sizes == ours.task_sizes == (None if by_size else (48, 7))
        if not by_size:
            large, small = part.task_sizes or ()
            means = sum(part.outcomes[:large]) / large, sum(part.outcomes[large:]) / small
            assert part.score == pytest.approx(sum(means) / 2)


@pytest.mark.parametrize("name", ["tiny_choices", "tiny_words", "tiny_text"])
def test_an_evaluation_ends_at_the_look_that_decides(name: str, tiny: Any, tiny_task: Any) -> None:
    whole = evaluate(tiny, tiny_task(name))
    count = len(whole.outcomes)
    watch = Watch(enough=count // 2)
    part = evaluate(tiny, tiny_task(name), asking=asking(watch))
    assert watch.seen == [count // 4, count // 2]
    assert part.sequential
    assert (part.planned, len(part.outcomes), part.documents_digest) == (count, count // 2, whole.documents_digest)
    assert part.asked is not None
    asked = [number for number, was in enumerate(part.asked) if was]
    assert set(asked) == set(asking_order(count, None)[: count // 2])
    assert part.outcomes == pytest.approx([whole.outcomes[number] for number in asked])
    if whole.unparseable is not None:
        assert part.unparseable == tuple(whole.unparseable[number] for number in asked)
    assert part.scores[next(iter(part.scores))] == part.score


def test_an_undecided_evaluation_is_the_plain_one(tiny: Any, tiny_task: Any) -> None:
    watch = Watch()
    plain = evaluate(tiny, tiny_task("tiny_words"))
    found = evaluate(tiny, tiny_task("tiny_words"), asking=asking(watch))
    assert watch.seen == [8, 16, 24], "nobody looks at the whole: it is judged at the end"
    assert (found.outcomes, found.score, found.scores) == (plain.outcomes, plain.score, plain.scores)
    assert (found.asked, found.sequential, plain.sequential) == (None, True, False)


def test_parts_ask_the_same_prompts_with_the_same_seeds(tiny: Any, tiny_task: Any) -> None:
    """Few-shot examples are drawn document by document: other parts must not draw others."""
    task = tiny_task("tiny_words", num_fewshot=1, limit=16)
    tiny.asked.clear()
    evaluate(tiny, task)
    whole = list(tiny.asked)
    tiny.asked.clear()
    evaluate(tiny, task, asking=asking(lambda answers: len(answers.outcomes) == 12))
    assert len(tiny.asked) == 12
    assert all(request in whole for request in tiny.asked)
    tiny.asked.clear()
    evaluate(tiny, task, asking=asking(lambda answers: False))
    assert sorted(request.seed for request in tiny.asked) == list(range(16))
    assert all(request in whole for request in tiny.asked)


def test_a_prompt_that_does_not_fit_is_found_before_the_first_part(tiny: Any, tiny_task: Any) -> None:
    tiny.asked.clear()
    with pytest.raises(InvalidRun, match="of 16 requests do not fit"):
        evaluate(tiny, tiny_task("tiny_words", num_fewshot=5, limit=16), asking=asking(lambda answers: True))
    assert not tiny.asked


def test_what_has_no_score_in_part_is_asked_whole(tiny: Any, tiny_tasks: Path) -> None:
    text = (tiny_tasks / "tiny_choices.yaml").read_text(encoding="utf-8").replace("tiny_choices", "whole_only")
    path = tiny_tasks / "whole_only.yaml"
    path.write_text(text.replace("aggregation: mean", "aggregation: !function utils.all_or_nothing", 1))
    task = Task(name="whole_only", path=str(path))
    watch = Watch()
    found = evaluate(tiny, task, asking=asking(watch, repeat=True))
    assert (watch.seen, found.sequential, found.is_partial, found.repeat) == ([], False, False, None)
    assert found.outcomes == evaluate(tiny, task).outcomes
    # Another metric of the task has a score in part.
    evaluate(tiny, task, metric="acc_norm", asking=asking(watch))
    assert watch.seen == [12, 24, 36]


def test_several_kinds_of_requests_are_asked_whole(tiny: Any, tiny_tasks: Path) -> None:
    text = (tiny_tasks / "tiny_words.yaml").read_text(encoding="utf-8").replace("tiny_words", "spelled")
    head, _, rest = text.partition("filter_list:")
    metrics = rest[rest.index("metric_list:") :].replace("metric: exact_match", "metric: acc")
    (tiny_tasks / "spelled.yaml").write_text(f"{head}{metrics}process_results: !function utils.as_acc\n")
    (tiny_tasks / "mixed.yaml").write_text(
        "group: mixed\ntask: [tiny_choices, spelled]\naggregate_metric_list:\n  - metric: acc\n    aggregation: mean\n"
    )
    watch = Watch()
    found = evaluate(tiny, Task(name="mixed"), search_paths=[tiny_tasks], asking=asking(watch, repeat=True))
    assert (watch.seen, found.sequential, found.planned, found.repeat) == ([], False, 80, None)


@pytest.mark.parametrize("error", [InvalidRun("another process came"), RuntimeError("a bug of the judge")])
def test_what_the_callback_raises_passes_through(tiny: Any, tiny_task: Any, error: Exception) -> None:
    def fail(answers: AccuracyResult) -> bool:
        raise error

    with pytest.raises(type(error)) as caught:
        evaluate(tiny, tiny_task("tiny_choices"), asking=asking(fail))
    assert caught.value is error


# A/A.


@pytest.mark.parametrize("name", ["tiny_choices", "tiny_words", "tiny_text"])
def test_an_engine_that_repeats_itself_has_no_flips(name: str, tiny: Any, tiny_task: Any) -> None:
    plain = evaluate(tiny, tiny_task(name))
    found = evaluate(tiny, tiny_task(name), asking=asking(repeat=True))
    assert found.repeat == Repeat(questions=len(plain.outcomes) // 4, flips=0)
    assert (found.outcomes, found.score, found.sequential) == (plain.outcomes, plain.score, False)


def test_flips_of_an_engine_that_does_not_are_counted(
    tiny: Any, tiny_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def loglikelihood(requests: Any, *, concurrency: int) -> list[LogLikelihood]:
        calls.append(len(requests))
        chance = random.Random(len(calls))
        return [LogLikelihood(logprob=-chance.random(), is_greedy=False) for _ in requests]

    monkeypatch.setattr(tiny, "loglikelihood", loglikelihood)
    found = evaluate(tiny, tiny_task("tiny_choices"), asking=asking(repeat=True))
    assert calls == [4 * 48, 4 * 12]
    assert found.repeat is not None
    assert 0 < found.repeat.flips < found.repeat.questions == 12


# What is kept of a document.


def test_groups_are_the_documents_with_an_equal_field(tiny: Any, tiny_task: Any) -> None:
    found = evaluate(tiny, tiny_task("tiny_choices", group_by="label", limit=12))
    labels = evaluate(tiny, tiny_task("tiny_choices", limit=12))
    assert labels.groups is None
    assert found.groups is not None
    assert (len(found.groups), found.groups[0]) == (12, 0)
    assert len(set(found.groups)) == max(found.groups) + 1 <= 4
    assert found.documents_digest == labels.documents_digest


def test_an_unknown_field_names_the_fields(tiny: Any, tiny_task: Any) -> None:
    calls = tiny.asked.copy()
    with pytest.raises(TaskError, match=r"group_by='passage'.*document 0.*Its fields: choices, label, prompt"):
        evaluate(tiny, tiny_task("tiny_choices", group_by="passage"), asking=asking())
    assert tiny.asked == calls


def test_choices_keep_their_probabilities(tiny: Any, tiny_task: Any) -> None:
    found = evaluate(tiny, tiny_task("tiny_choices"), asking=asking())
    assert found.logprobs is not None
    assert set(found.logprobs) == set(range(48))
    for document, row in found.logprobs.items():
        assert math.fsum(map(math.exp, row)) == pytest.approx(1.0, rel=1e-3)
        assert len(row) == 4, document
    assert evaluate(tiny, tiny_task("tiny_words")).logprobs is None
    assert evaluate(tiny, tiny_task("tiny_text")).logprobs is None


# Averages over samples.


def test_repeats_are_averaged_and_judged_by_sign_flips(
    tiny: Any, tiny_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval's `repeats`, as AIME over k samples has them: outcomes between 0 and 1."""
    task = tiny_task("tiny_samples")
    words = [
        row.split('"answer": "')[1].split('"')[0]
        for row in Path(task.path).parent.joinpath("words.jsonl").read_text().splitlines()
    ]

    def engine(share: float) -> Callable[..., list[Generation]]:
        def generate(requests: Any, *, concurrency: int) -> list[Generation]:
            assert all(request.temperature == 0.8 for request in requests)
            return [
                Generation(
                    token_ids=(5,),
                    text=words[request.seed // 4] if random.Random(request.seed).random() < share else "nothing",
                    finish_reason="stop",
                    prompt_tokens=1,
                    token_times_s=(0.0,),
                )
                for request in requests
            ]

        return generate

    monkeypatch.setattr(tiny, "generate", engine(0.8))
    reference = evaluate(tiny, task, asking=asking(repeat=True))
    assert set(reference.outcomes) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert not reference.is_binary
    assert reference.score == pytest.approx(sum(reference.outcomes) / 32)
    assert reference.repeat == Repeat(questions=8, flips=0)
    stored = ScoreEntry(
        score=reference.score,
        outcomes=reference.outcomes,
        unparseable=None,
        provenance=Provenance(kind="measured"),
        repeat=reference.repeat,
    )
    entry = AccuracyEntry(
        path="p",
        key="k",
        metric="exact_match",
        higher_is_better=True,
        documents_digest=reference.documents_digest,
        num_documents=32,
        scores={"BF16": stored},
    )
    gate = AccuracyLossCeiling(reference="BF16", points=20.0)
    for share, status in ((0.8, Status.PASS), (0.2, Status.FAIL)):
        monkeypatch.setattr(tiny, "generate", engine(share))
        found = evaluate(
            tiny, task, asking=asking(lambda part: judge_loss(gate, part, entry)[0].status is not Status.INCONCLUSIVE)
        )
        (row,) = judge_loss(gate, found, entry)
        assert (row.status, row.details["method"]) == (status, "sign-flip"), share
