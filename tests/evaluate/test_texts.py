"""The texts of a document: what was asked, expected and answered, cut to what people read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_inferperf.evaluate.interim import Document
from pytest_inferperf.evaluate.texts import MOST_ANSWER, MOST_PROMPT, texts_of
from pytest_inferperf.model.results import Answered


def texts(
    kind: str, arguments: list[tuple[Any, ...]], responses: list[Any], target: Any, *, metric: str = "acc"
) -> Answered | None:
    """Return the texts of the only document of a task, number 3 of an evaluation."""
    document = Document(task="t", doc_id=0, instances=[SimpleNamespace(args=item) for item in arguments], target=target)
    found = SimpleNamespace(tasks={"t": SimpleNamespace(OUTPUT_TYPE=kind)})
    documents = SimpleNamespace(rows={3: document})
    return texts_of(found, documents, {3: {"resps": responses}}, metric=metric).get(3)  # type: ignore[arg-type]


def test_a_generated_answer() -> None:
    assert texts("generate_until", [("What is 2+2?", {})], [["5"]], 4) == Answered(
        prompt="What is 2+2?", expected="4", answer="5"
    )


def test_any_of_several_targets_is_right() -> None:
    found = texts("generate_until", [("q", {})], [["5"]], ["4", "four"])
    assert found is not None
    assert found.expected == "4, four"


def test_the_most_probable_choice_is_the_answer() -> None:
    arguments = [("Sky?", " blue"), ("Sky?", " green"), ("Sky?", " red")]
    responses = [[(-2.0, False)], [(-1.0, True)], [(-3.0, False)]]
    assert texts("multiple_choice", arguments, responses, 0) == Answered(
        prompt="Sky?", expected="blue", answer="green", choices=("blue", "green", "red")
    )


@pytest.mark.parametrize(
    ("metric", "answer"), [("acc", "no"), ("acc_norm", "a long answer"), ("acc_bytes", "a long answer")]
)
def test_the_answer_is_the_choice_that_the_metric_takes(metric: str, answer: str) -> None:
    arguments = [("Why?", " no"), ("Why?", " a long answer")]
    found = texts("multiple_choice", arguments, [[(-2.0, False)], [(-3.0, False)]], 1, metric=metric)
    assert found is not None
    assert found.answer == answer


def test_choices_that_stand_in_the_context() -> None:
    arguments = [("The cup", " fell."), ("The table", " fell.")]
    found = texts("multiple_choice", arguments, [[(-2.0, False)], [(-1.0, True)]], 0)
    assert found is not None
    assert (found.expected, found.answer) == ("The cup", "The table")


def test_a_choice_asked_for_by_itself_is_none_of_the_answers() -> None:
    arguments = [("Q", " a"), ("Q", " b"), ("Answer:", " a"), ("Answer:", " b")]
    responses = [[(-2.0, False)], [(-1.0, True)], [(-0.1, False)], [(-0.2, False)]]
    found = texts("multiple_choice", arguments, responses, 1)
    assert found is not None
    assert (found.choices, found.answer) == (("a", "b"), "b")


@pytest.mark.parametrize(("greedy", "answer"), [(True, "mat"), (False, "(another one)")])
def test_a_continuation_that_is_asked_for(greedy: bool, answer: str) -> None:
    assert texts("loglikelihood", [("The cat sat on the", " mat")], [[(-1.0, greedy)]], "mat") == Answered(
        prompt="The cat sat on the", expected="mat", answer=answer
    )


def test_documents_scored_whole_have_no_answer() -> None:
    assert texts("loglikelihood_rolling", [("A story.",)], [[-12.0]], "") is None


def test_long_texts_lose_their_middle() -> None:
    """The examples come first, the question last: of a prompt more of the end is kept."""
    found = texts("generate_until", [("e" * 9000 + "?", {})], [["<" + "a" * 5000 + ">"]], "x")
    assert found is not None
    assert len(found.prompt) == MOST_PROMPT
    assert found.prompt.endswith("e?")
    assert found.prompt.index("…") < MOST_PROMPT / 3
    assert len(found.answer) == MOST_ANSWER
    assert (found.answer[0], found.answer[-1]) == ("<", ">")
