"""Accuracy gates: pairing by hand-worked cases, limits, absence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, Provenance, ScoreEntry
from pytest_inferperf.gates.accuracy import judge_floor, judge_loss, pair
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling
from pytest_inferperf.model.results import AccuracyResult
from pytest_inferperf.model.verdicts import Status


def answers(right: str, **changes: object) -> AccuracyResult:
    outcomes = tuple(float(letter) for letter in right)
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


def test_pairing_worked_by_hand() -> None:
    paired = pair((1, 1, 1, 0, 0), (1, 0, 0, 1, 0), higher_is_better=True)
    assert (paired.lost, paired.gained, paired.count) == (2, 1, 5)
    assert paired.loss == pytest.approx(0.2)
    assert paired.flips == pytest.approx(0.6)


def test_pairing_flips_its_sign_where_lower_is_better() -> None:
    paired = pair((2.0, 3.0), (2.5, 3.0), higher_is_better=False)
    assert (paired.lost, paired.gained) == (1, 0)
    assert paired.loss == pytest.approx(0.25)


@pytest.mark.parametrize(("reference", "candidate"), [((), ()), ((1.0,), (1.0, 0.0))])
def test_unpairable(reference: tuple[float, ...], candidate: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cannot pair"):
        pair(reference, candidate, higher_is_better=True)


@pytest.mark.parametrize(
    ("candidate", "status"),
    [
        ("1111100000", Status.PASS),
        ("1111000000", Status.PASS),
        ("1110000000", Status.FAIL),
        ("0000011111", Status.PASS),
        ("1111111111", Status.PASS),
    ],
)
def test_loss_in_points(candidate: str, status: Status) -> None:
    (row,) = judge_loss(POINTS, answers(candidate), stored(answers("1111100000")))
    assert row.status is status


def test_equal_scores_with_other_answers_are_shown_as_flips() -> None:
    (row,) = judge_loss(POINTS, answers("0000011111"), stored(answers("1111100000")))
    assert row.measured == 0.0
    assert row.details["flips_percent"] == 100.0


def test_all_wrong_fails() -> None:
    (row,) = judge_loss(POINTS, answers("0" * 10), stored(answers("1111100000")))
    assert row.status is Status.FAIL


def test_percent_of_a_perplexity() -> None:
    gate = AccuracyLossCeiling(reference="BF16", percent=2.0)
    reference = answers("1", metric="bits_per_byte", higher_is_better=False, score=2.0, outcomes=(2.0, 2.0))
    for value, status in (
        (2.03, Status.PASS),
        (2.05, Status.FAIL),
        (1.0, Status.PASS),
        (9e9, Status.FAIL),
        (math.nan, Status.INVALID),
    ):
        candidate = replace(reference, score=value, outcomes=(value, value))
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
    reference = answers("1111100000", unparseable=(False,) * 10)
    broken = answers("1111100000", unparseable=(False,) * 8 + (True,) * 2)
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
