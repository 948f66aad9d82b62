"""The loss against a published score: unpaired, and never silent about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_inferperf.baselines.entries import AccuracyEntry, Provenance, ScoreEntry
from pytest_inferperf.gates.accuracy import judge_loss
from pytest_inferperf.gates.asking import asking_order
from pytest_inferperf.model.gates import AccuracyLossCeiling
from pytest_inferperf.model.results import AccuracyResult
from pytest_inferperf.model.verdicts import GateVerdict, Status

ONE_POINT = AccuracyLossCeiling(reference="BF16", points=1.0)


def answered(right: int, count: int = 1000, **changes: object) -> AccuracyResult:
    base = AccuracyResult(
        task="gsm8k",
        metric="exact_match",
        higher_is_better=True,
        score=right / count,
        outcomes=(1.0,) * right + (0.0,) * (count - right),
        documents_digest="d",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def published(score: float, **changes: object) -> AccuracyEntry:
    base = AccuracyEntry(
        path="baselines/accuracy/m.json",
        key="gsm8k-exact_match",
        metric="exact_match",
        higher_is_better=True,
        documents_digest="",
        num_documents=0,
        scores={
            "BF16": ScoreEntry(
                score=score,
                outcomes=(),
                unparseable=None,
                provenance=Provenance(kind="published", source="a talk"),
            )
        },
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def judged(gate: AccuracyLossCeiling, result: AccuracyResult, entry: AccuracyEntry) -> GateVerdict:
    return judge_loss(gate, result, entry)[0]


@pytest.mark.parametrize(
    ("right", "status"),
    [(960, Status.PASS), (950, Status.PASS), (940, Status.PASS), (939, Status.FAIL), (900, Status.FAIL)],
)
def test_the_scores_themselves_are_compared(right: int, status: Status) -> None:
    row = judged(ONE_POINT, answered(right), published(0.95))
    assert row.status is status
    assert row.measured == pytest.approx(95 - right / 10)
    assert (row.limit, row.baseline, row.source) == (1.0, 0.95, "baselines/accuracy/m.json")


@pytest.mark.parametrize("right", [950, 900])
def test_pass_and_fail_both_say_that_nothing_was_paired(right: int) -> None:
    (note,) = judged(ONE_POINT, answered(right), published(0.95)).notes
    assert note.startswith("vs BF16: unpaired and uncalibrated: a published score without answers (a talk), ")
    assert note.endswith("evaluate the task with quant='BF16' and --inferperf-update=all --inferperf-reason=\"…\"")


def test_the_note_says_what_chance_alone_does() -> None:
    """Two shares of .95 of 1000: 1.96 * sqrt(2 * .95 * .05 / 1000) = 1.91 points."""
    row = judged(ONE_POINT, answered(950), published(0.95))
    assert row.details["chance"] == pytest.approx(1.910, abs=0.001)
    assert "1000 questions chance alone moves the loss by up to 1.91 points" in row.notes[0]


def test_the_reason_names_both_scores() -> None:
    row = judged(ONE_POINT, answered(900), published(0.95))
    assert row.reason == "5.00 points is above its ceiling 1.00 (published 0.9500 -> 0.9000)"


@pytest.mark.parametrize(("score", "status"), [(10.2, Status.PASS), (10.4, Status.FAIL), (9.0, Status.PASS)])
def test_percent_of_a_score_that_is_better_when_lower(score: float, status: Status) -> None:
    gate = AccuracyLossCeiling(reference="BF16", percent=3.0)
    result = answered(1, 2, higher_is_better=False, score=score, outcomes=(score - 1, score + 1))
    assert judged(gate, result, published(10.0, higher_is_better=False)).status is status


def test_points_do_not_apply_to_a_perplexity() -> None:
    result = answered(1, 2, higher_is_better=False, score=10.0, outcomes=(9.0, 11.0))
    row = judged(ONE_POINT, result, published(10.0, higher_is_better=False))
    assert (row.status, "points do not apply" in row.reason) == (Status.FAIL, True)


def test_a_percentage_of_nothing_is_no_limit() -> None:
    row = judged(AccuracyLossCeiling(reference="BF16", percent=3.0), answered(5), published(0.0))
    assert (row.status, "use points=" in row.reason) == (Status.FAIL, True)


def test_the_other_direction_is_not_compared() -> None:
    row = judged(ONE_POINT, answered(950), published(0.95, higher_is_better=False))
    assert (row.status, "better in the other direction" in row.reason) == (Status.FAIL, True)


def test_part_of_the_questions_decides_nothing() -> None:
    order = asking_order(1000, None)
    asked = set(order[:250])
    part = answered(250, 250, asked=tuple(document in asked for document in range(1000)), sequential=True)
    row = judged(ONE_POINT, part, published(0.95))
    assert (row.status, row.next_look) == (Status.INCONCLUSIVE, 500)
    assert row.reason == "250 of 1000 questions: a published score is compared with that of all of them"


def test_unparseable_answers_are_gated_all_the_same() -> None:
    result = answered(950, unparseable=(True,) * 11 + (False,) * 989)
    loss, unparseable = judge_loss(ONE_POINT, result, published(0.95))
    assert (loss.status, unparseable.status) == (Status.PASS, Status.FAIL)
    assert unparseable.measured == pytest.approx(1.1)


def test_answers_of_ones_own_are_paired_again() -> None:
    own = answered(950)
    score = ScoreEntry(score=0.95, outcomes=own.outcomes, unparseable=None, provenance=Provenance(kind="measured"))
    entry = published(0.99, scores={"BF16": score}, documents_digest="d", num_documents=1000)
    row = judged(ONE_POINT, own, entry)
    assert (row.status, row.measured) == (Status.PASS, 0.0)
    assert "unpaired" not in " ".join(row.notes)
