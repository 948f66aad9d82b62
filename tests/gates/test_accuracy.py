"""Accuracy gates: pairing by hand-worked cases, limits, absence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, Provenance, ScoreEntry
from pytest_inferperf.gates.accuracy import judge_floor, judge_loss
from pytest_inferperf.gates.asking import asking_order
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling
from pytest_inferperf.model.results import AccuracyResult, Repeat
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
    ],
)
def test_what_cannot_be_compared_fails(entry: AccuracyEntry | Missing | None, reason: str) -> None:
    (row,) = judge_loss(POINTS, answers("11"), entry)
    assert row.status is Status.FAIL
    assert reason in row.reason


@pytest.mark.parametrize(("right", "status"), [("1111100000", Status.PASS), ("1111000000", Status.FAIL)])
def test_floor(right: str, status: Status) -> None:
    assert judge_floor(AccuracyFloor(points=50.0), answers(right)).status is status


# Looks, and evaluations that stopped.


def first(result: AccuracyResult, share: float) -> AccuracyResult:
    """Stop after a share of the questions."""
    order = asking_order(len(result.outcomes), result.groups)
    asked = sorted(order[: int(share * len(order))])
    flags = result.unparseable
    outcomes = tuple(result.outcomes[document] for document in asked)
    return replace(
        result,
        outcomes=outcomes,
        score=sum(outcomes) / len(outcomes),
        asked=tuple(document in set(asked) for document in range(len(order))),
        sequential=True,
        unparseable=None if flags is None else tuple(flags[document] for document in asked),
    )


@pytest.mark.parametrize(
    ("candidate", "share", "status", "next_look"),
    [
        ("1111100000", 0.25, Status.PASS, None),
        ("1111000000", 0.25, Status.FAIL, None),
        ("0000000000", 0.25, Status.FAIL, None),
        ("1111100000", 0.1, Status.INCONCLUSIVE, 250),
    ],
)
def test_a_part_decides_what_is_clear(candidate: str, share: float, status: Status, next_look: int | None) -> None:
    (row,) = judge_loss(POINTS, first(answers(candidate), share), stored(answers("1111100000")))
    assert (row.status, row.next_look) == (status, next_look)
    assert (row.measured is None) is (status is Status.INCONCLUSIVE)
    assert row.details["planned"] == 1000
    if status is Status.INCONCLUSIVE:
        assert row.reason == "100 of 1000 questions are fewer than the first look takes"


def test_an_open_gate_names_the_next_look() -> None:
    reference = answers("1111111111")
    candidate = replace(reference, outcomes=tuple(float(number % 200 != 0) for number in range(1000)))
    gate = AccuracyLossCeiling(reference="BF16", points=1.0)
    (row,) = judge_loss(gate, first(candidate, 0.5), stored(reference))
    assert (row.status, row.next_look) == (Status.INCONCLUSIVE, 750)
    assert "the next look is at 750 questions" in row.reason
    (row,) = judge_loss(gate, replace(candidate, sequential=True), stored(reference))
    assert (row.status, row.next_look) == (Status.INCONCLUSIVE, None)
    assert "more questions would decide it" in row.reason


def test_the_first_decision_stands_where_somebody_looked() -> None:
    """The questions after the look that decided are not a second chance."""
    reference = answers("1111111111")
    order = asking_order(1000, None)
    late = set(order[250:])
    candidate = replace(reference, outcomes=tuple(float(number not in late) for number in range(1000)), score=0.25)
    (looked,) = judge_loss(POINTS, replace(candidate, sequential=True), stored(reference))
    assert (looked.status, looked.details["questions"]) == (Status.PASS, 250)
    (whole,) = judge_loss(POINTS, candidate, stored(reference))
    assert (whole.status, whole.details["questions"]) == (Status.FAIL, 1000)


def test_alpha_widens_the_bounds() -> None:
    reference = answers("1111111111")
    candidate = replace(reference, outcomes=(0.0,) * 3 + (1.0,) * 997)
    gate = AccuracyLossCeiling(reference="BF16", points=1.0)
    (usual,) = judge_loss(gate, candidate, stored(reference))
    (strict,) = judge_loss(gate, candidate, stored(reference), alpha=0.001)
    assert (usual.status, strict.status) == (Status.PASS, Status.INCONCLUSIVE)
    assert float(strict.details["upper"]) > float(usual.details["upper"])
    assert float(usual.details["level"]) == pytest.approx(0.05)
    assert float(strict.details["level"]) == pytest.approx(0.001)


def test_documents_that_were_chosen_are_invalid() -> None:
    part = first(answers("1111100000"), 0.25)
    chosen = replace(part, asked=tuple(number < 250 for number in range(1000)))
    (row,) = judge_loss(POINTS, chosen, stored(answers("1111100000")))
    assert row.status is Status.INVALID
    assert "not the first in the order of asking" in row.reason
    assert judge_floor(AccuracyFloor(points=1.0), chosen).status is Status.INVALID


@pytest.mark.parametrize(
    "changes", [{"documents_digest": "other"}, {"asked": (True,) * 250 + (False,) * 749}, {"higher_is_better": False}]
)
def test_a_part_of_other_questions_cannot_be_paired(changes: dict[str, object]) -> None:
    part = replace(first(answers("1111100000"), 0.25), **changes)  # type: ignore[arg-type]
    (row,) = judge_loss(replace(POINTS, points=None, percent=5.0), part, stored(answers("1111100000")))
    assert (row.status, "cannot be paired" in row.reason) == (Status.FAIL, True)


def test_nan_in_a_part_is_invalid() -> None:
    part = first(answers("1111100000"), 0.25)
    (row,) = judge_loss(POINTS, replace(part, outcomes=(math.nan, *part.outcomes[1:])), stored(answers("1111100000")))
    assert row.status is Status.INVALID


def test_no_differences_leave_nothing_infinite_in_the_file() -> None:
    reference = answers("1111100000")
    (row,) = judge_loss(POINTS, first(reference, 0.25), stored(reference))
    assert (row.status, row.details["lost"], row.details["gained"]) == (Status.PASS, 0, 0)
    assert all(math.isfinite(value) for value in row.details.values() if not isinstance(value, str))
    assert "detectable" not in row.details


def test_groups_widen_the_bounds() -> None:
    """Ten answers that always fail together are one observation."""
    reference = answers("1111111111")
    candidate = replace(reference, outcomes=tuple(float(number // 10 % 33 != 0) for number in range(1000)))
    groups = tuple(number // 10 for number in range(1000))
    (alone,) = judge_loss(POINTS, candidate, stored(reference))
    (grouped,) = judge_loss(POINTS, replace(candidate, groups=groups), stored(reference))
    assert (alone.details["method"], grouped.details["method"]) == ("score", "sign-flip")
    assert float(grouped.details["upper"]) > float(alone.details["upper"]) + 1


def test_unparseable_answers_keep_a_part_open() -> None:
    reference = answers("1111100000", unparseable=(False,) * 1000)
    some = answers("1111100000", unparseable=tuple(number % 12 == 0 for number in range(1000)))
    loss, unparseable = judge_loss(POINTS, first(some, 0.25), stored(reference))
    assert (loss.status, unparseable.status, unparseable.next_look) == (Status.PASS, Status.INCONCLUSIVE, 500)
    assert "neither proven below nor above its ceiling 10.00" in unparseable.reason
    many = answers("1111100000", unparseable=tuple(number % 4 == 0 for number in range(1000)))
    assert judge_loss(POINTS, first(many, 0.25), stored(reference))[1].status is Status.FAIL
    assert judge_loss(POINTS, first(reference, 0.25), stored(reference))[1].status is Status.PASS
    # All answered: the share itself counts, as without looks.
    assert judge_loss(POINTS, replace(some, sequential=True), stored(reference))[1].status is Status.PASS


@pytest.mark.parametrize(("points", "status"), [(40.0, Status.PASS), (65.0, Status.FAIL), (49.0, Status.INCONCLUSIVE)])
def test_a_floor_in_part(points: float, status: Status) -> None:
    row = judge_floor(AccuracyFloor(points=points), first(answers("1111100000"), 0.25))
    assert (row.status, row.next_look) == (status, 500 if status is Status.INCONCLUSIVE else None)
    assert row.measured is not None
    assert "250 of 1000 questions; score between " in row.notes[0]


def test_a_floor_has_no_bounds_for_groups_and_averages() -> None:
    part = first(answers("1111100000", groups=tuple(number // 10 for number in range(1000))), 0.25)
    assert judge_floor(AccuracyFloor(points=10.0), part).status is Status.INCONCLUSIVE
    averaged = first(replace(answers("1"), outcomes=(0.75,) * 1000), 0.25)
    assert judge_floor(AccuracyFloor(points=10.0), averaged).status is Status.INCONCLUSIVE


# Drift.


def test_drift_is_a_note_and_changes_no_status() -> None:
    reference = answers("1111100000")
    entry = stored(reference)
    own = replace(entry.scores["BF16"], outcomes=answers("1111100001").outcomes, repeat=Repeat(questions=250, flips=0))
    both = replace(entry, scores={**entry.scores, "NVFP4": own})
    (row,) = judge_loss(POINTS, reference, both, precision="NVFP4")
    assert row.status is Status.PASS
    assert row.notes[-1] == (
        "drift: vs the own baseline NVFP4: 100 lost, 0 gained of 1000, net loss 10.00 points "
        "(100 flips are more than the engine's own noise)"
    )
    assert row.details["drift"] == "100 flips are more than the engine's own noise"
    (row,) = judge_loss(POINTS, reference, entry, precision="NVFP4")
    assert not any("own baseline" in note for note in row.notes)
    (row,) = judge_loss(POINTS, reference, both, precision="BF16")
    assert not any("own baseline" in note for note in row.notes), "the reference is the own baseline"


def test_every_stored_reference_can_be_gated() -> None:
    """Against BF16 and against the candidate's own baseline: two gates, two rows."""
    entry = stored(answers("1111100000"))
    better = replace(entry.scores["BF16"], outcomes=answers("1111111100").outcomes)
    both = replace(entry, scores={**entry.scores, "NVFP4": better})
    rows = [
        judge_loss(AccuracyLossCeiling(reference=name, points=10.0), answers("1111100000"), both, precision="NVFP4")[0]
        for name in ("BF16", "NVFP4")
    ]
    assert [row.status for row in rows] == [Status.PASS, Status.FAIL]
    assert [row.gate for row in rows] == ["exact_match loss vs BF16", "exact_match loss vs NVFP4"]
