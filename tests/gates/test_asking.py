"""Answers in the order of asking: what stopped early is judged only if it asked the questions it had to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_inferperf.gates.asking import Answers, answers_of, asking_looks, asking_order
from pytest_inferperf.model.results import AccuracyResult


def result(count: int, asked: int | None = None, groups: tuple[int, ...] | None = None) -> AccuracyResult:
    """Outcomes that are the number of their document."""
    first = sorted(asking_order(count, groups)[: count if asked is None else asked])
    return AccuracyResult(
        task="t",
        metric="acc",
        higher_is_better=True,
        score=0.5,
        outcomes=tuple(float(document) for document in first),
        documents_digest="d",
        asked=None if asked is None else tuple(document in first for document in range(count)),
        unparseable=tuple(document % 2 == 0 for document in first),
        groups=groups,
    )


@pytest.mark.parametrize("asked", [None, 25, 50])
@pytest.mark.parametrize("groups", [None, tuple(number // 4 for number in range(100))])
def test_answers_follow_the_order(asked: int | None, groups: tuple[int, ...] | None) -> None:
    found = answers_of(result(100, asked, groups))
    assert isinstance(found, Answers)
    assert sorted(found.order) == list(range(100))
    assert found.outcomes == found.order[: asked or 100]
    assert found.unparseable == tuple(document % 2 == 0 for document in found.outcomes)
    assert found.groups == (None if groups is None else tuple(groups[document] for document in found.order))
    assert found.next_look() == {None: None, 25: 50, 50: 75}[asked]
    assert [size for size, _ in found.looks(0.05)] == [size for size in (25, 50, 75, 100) if size <= (asked or 100)]


def test_other_documents_than_the_first_are_refused() -> None:
    """Whoever chooses the documents chooses the verdict."""
    good = result(100, 25)
    assert good.asked is not None
    chosen = replace(good, asked=tuple(number < 25 for number in range(100)))
    assert "25 of 100 documents asked are not the first in the order of asking" in str(answers_of(chosen))
    assert "25 outcomes belong to 26 documents" in str(
        answers_of(replace(good, asked=(*good.asked[:-1], not good.asked[-1])))
    )


def test_the_order_of_groups_is_another() -> None:
    groups = tuple(number // 4 for number in range(100))
    assert "not the first in the order of asking" in str(answers_of(replace(result(100, 25), groups=groups)))
    assert "99 groups belong to 100 documents" in str(answers_of(replace(result(100), groups=groups[1:])))


def test_no_documents() -> None:
    empty = replace(result(4), outcomes=(), unparseable=None)
    assert answers_of(empty) == "no document was asked"


@pytest.mark.parametrize(("count", "looks"), [(1000, (250, 500, 750, 1000)), (3, (1, 2, 3)), (1, (1,))])
def test_looks(count: int, looks: tuple[int, ...]) -> None:
    assert asking_looks(count) == looks
