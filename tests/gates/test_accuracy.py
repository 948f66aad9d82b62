"""Accuracy gates: pairing by hand-worked cases, limits, absence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, Provenance, ScoreEntry
from pytest_inferperf.gates.accuracy import judge_floor, judge_loss
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling
from pytest_inferperf.model.results import AccuracyResult
from pytest_inferperf.model.verdicts import Status


def answers(right: str, **changes: object) -> AccuracyResult:
    # Ten letters are easy to read; a thousand questions are enough to judge.
    outcomes = tuple(float(letter) for letter in right * 100)
    base = AccuracyResult(
        task="t",
        metric="exact_match",
        higher_is_better=True,
        score=sum(outcomes) / len(outcomes),
        outcomes=outcomes,
        documents_digest="d",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def stored(reference: AccuracyResult, **changes: object) -> AccuracyEntry:
    score = ScoreEntry(
        score=reference.score,
        outcomes=reference.outcomes,
        unparseable=reference.unparseable,
        provenance=Provenance(kind="measured"),
    )
    base = AccuracyEntry(
        path="baselines/accuracy/m.json",
        key="t",
        metric=reference.metric,
        higher_is_better=reference.higher_is_better,
        documents_digest=reference.documents_digest,
        num_documents=len(reference.outcomes),
        scores={"BF16": score},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


POINTS = AccuracyLossCeiling(reference="BF16", points=10.0)


@pytest.mark.parametrize(
    ("candidate", "status"),
    [
        ("1111100000", Status.PASS),
        ("1111000000", Status.FAIL),
        ("1110000000", Status.FAIL),
        ("0000011111", Status.PASS),
        ("1111111111", Status.PASS),
    ],
)
def test_loss_in_points(candidate: str, status: Status) -> None:
    (row,) = judge_loss(POINTS, answers(candidate), stored(answers("1111100000")))
    assert row.status is status


@pytest.mark.parametrize(
    ("lost", "status"),
    [(0, Status.PASS), (2, Status.PASS), (5, Status.INCONCLUSIVE), (12, Status.FAIL), (50, Status.FAIL)],
)
def test_three_outcomes_around_a_ceiling_of_one_point(lost: int, status: Status) -> None:
    """Of 1,000 questions, 10 lost are one point; half a point is neither proven harmless nor proven a loss."""
    reference = answers("1111111111")
    candidate = replace(reference, outcomes=(0.0,) * lost + (1.0,) * (1000 - lost), score=1 - lost / 1000)
    (row,) = judge_loss(AccuracyLossCeiling(reference="BF16", points=1.0), candidate, stored(reference))
    assert row.status is status
    assert row.measured == pytest.approx(lost / 10)
    if status is Status.INCONCLUSIVE:
        assert "is not proven below its ceiling 1.00" in row.reason
        assert "more questions would decide it" in row.reason


def test_too_few_questions_for_the_ceiling_fail() -> None:
    reference = replace(answers("1"), outcomes=(1.0,) * 10)
    (row,) = judge_loss(AccuracyLossCeiling(reference="BF16", points=1.0), reference, stored(reference))
    assert (row.status, row.reason.partition(":")[0]) == (Status.FAIL, "cannot be judged")


def test_a_reference_that_is_all_wrong_fails() -> None:
    (row,) = judge_loss(POINTS, answers("1"), stored(answers("0")))
    assert row.status is Status.FAIL
    assert "wrong on all" in row.reason


def test_equal_scores_with_other_answers_are_shown_as_flips() -> None:
    (row,) = judge_loss(POINTS, answers("0000011111"), stored(answers("1111100000")))
    assert row.measured == 0.0
    assert row.details["flips_percent"] == 100.0


def test_all_wrong_fails() -> None:
    (row,) = judge_loss(POINTS, answers("0" * 10), stored(answers("1111100000")))
    assert row.status is Status.FAIL


def test_percent_of_a_perplexity() -> None:
    gate = AccuracyLossCeiling(reference="BF16", percent=2.0)
    reference = answers("1", metric="bits_per_byte", higher_is_better=False, score=2.0, outcomes=(2.0,) * 50)
    for value, status in (
        (2.03, Status.PASS),
        (2.05, Status.FAIL),
        (1.0, Status.PASS),
        (9e9, Status.FAIL),
        (math.nan, Status.INVALID),
    ):
        candidate = replace(reference, score=value, outcomes=(value,) * 50)
        (row,) = judge_loss(gate, candidate, stored(reference))
        assert row.status is status, value


def test_percent_of_a_reference_of_zero_fails() -> None:
    gate = AccuracyLossCeiling(reference="BF16", percent=2.0)
    (row,) = judge_loss(gate, answers("0000"), stored(answers("0000")))
    assert row.status is Status.FAIL


def test_points_on_another_scale_fail() -> None:
    reference = answers("1", higher_is_better=False, score=2.0, outcomes=(2.0,))
    (row,) = judge_loss(POINTS, reference, stored(reference))
    assert (row.status, "points do not apply" in row.reason) == (Status.FAIL, True)


def test_unparseable_rise() -> None:
    reference = answers("1111100000", unparseable=(False,) * 1000)
    broken = answers("1111100000", unparseable=(False,) * 800 + (True,) * 200)
    loss, unparseable = judge_loss(POINTS, broken, stored(reference))
    assert (loss.status, unparseable.status) == (Status.PASS, Status.FAIL)
    assert unparseable.measured == pytest.approx(20.0)
    lenient = replace(POINTS, unparseable_points=30.0)
    assert judge_loss(lenient, broken, stored(reference))[1].status is Status.PASS


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (None, "has no baseline"),
        (Missing(path="p", key="t", reason="no such file"), "has no baseline (p: no such file; key t)"),
        (stored(answers("11"), scores={}), "has no BF16"),
        (stored(answers("11"), documents_digest="other"), "the questions changed"),
        (stored(answers("111")), "the questions changed"),
        (stored(answers("11"), higher_is_better=False), "better in the other direction"),
        (
            stored(
                answers("11"),
                scores={
                    "BF16": ScoreEntry(
                        score=0.9,
                        outcomes=(),
                        unparseable=None,
                        provenance=Provenance(kind="published", source="a talk"),
                    )
                },
            ),
            "published score without per-sample outcomes",
        ),
    ],
)
def test_what_cannot_be_compared_fails(entry: AccuracyEntry | Missing | None, reason: str) -> None:
    (row,) = judge_loss(POINTS, answers("11"), entry)
    assert row.status is Status.FAIL
    assert reason in row.reason


@pytest.mark.parametrize(("right", "status"), [("1111100000", Status.PASS), ("1111000000", Status.FAIL)])
def test_floor(right: str, status: Status) -> None:
    assert judge_floor(AccuracyFloor(points=50.0), answers(right)).status is status
