"""Which documents are kept as flips, with whose answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf.baselines.update import update
from pytest_inferperf.flips import MOST_SHOWN, with_flips
from pytest_inferperf.model.case import ReferenceEngine
from pytest_inferperf.model.gates import AccuracyFloor
from pytest_inferperf.model.results import AccuracyResult, CaseResult, Comparison, Flips
from tests.report.page.planted import ANSWERS, QUESTIONS, answers, info, judged

pytestmark = pytest.mark.newest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A baseline of which the first 360 answers are right."""
    record = judged("t.py::test", answers("BF16", range(360)), ANSWERS, tmp_path)
    update(tmp_path, [record], mode="new", reason="", accept_regression=False, now="2026-01-01")
    return tmp_path


def flips(result: CaseResult, root: Path) -> Flips:
    found = with_flips(result, ANSWERS, root=root).accuracy
    assert found is not None
    (flips,) = found.flips
    return flips


def scored(result: CaseResult) -> AccuracyResult:
    assert result.accuracy is not None
    return result.accuracy


def test_every_flip_is_counted_and_some_are_shown(root: Path) -> None:
    found = flips(answers("NVFP4", range(100, 370)), root)
    assert (found.lost, found.gained) == (100, 10)
    assert [flip.document for flip in found.shown] == [*range(MOST_SHOWN), *range(360, 370)]


def test_of_questions_that_were_not_asked_none_flips(root: Path) -> None:
    result = answers("NVFP4", range(20, 360))
    half = tuple(number % 2 == 0 for number in range(QUESTIONS))
    part = replace(
        scored(result),
        asked=half,
        outcomes=scored(result).outcomes[::2],
        unparseable=None,
        texts={number: text for number, text in (scored(result).texts or {}).items() if half[number]},
    )
    found = flips(replace(result, accuracy=part), root)
    assert [flip.document for flip in found.shown] == list(range(0, 20, 2))


def test_a_reference_that_answered_beside_it_is_quoted(root: Path) -> None:
    beside = answers("BF16", range(360))
    comparison = Comparison(
        reference=ReferenceEngine(label="BF16", spec=beside.case.engine), engine=info("BF16"), accuracy=beside.accuracy
    )
    found = flips(replace(answers("NVFP4", range(1, 360)), comparisons=(comparison,)), root)
    assert found.shown[0].reference_answer == "0"


def test_answers_to_other_questions_do_not_flip(root: Path) -> None:
    result = answers("NVFP4", range(20, 360))
    other = replace(result, accuracy=replace(scored(result), documents_digest="d2"))
    assert scored(with_flips(other, ANSWERS, root=root)).flips == ()


def test_without_a_reference_nothing_flips(root: Path, tmp_path: Path) -> None:
    result = answers("NVFP4", range(20, 360))
    assert scored(with_flips(result, (AccuracyFloor(points=50),), root=root)).flips == ()
    assert scored(with_flips(result, ANSWERS, root=tmp_path / "nothing")).flips == ()
