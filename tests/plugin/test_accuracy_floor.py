"""`accuracy_floor`: an absolute floor in points."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import TASK, Project


@pytest.mark.parametrize(("right", "outcome"), [(900, "passed"), (850, "passed"), (849, "failed"), (0, "failed")])
def test_floor(project: Project, right: int, outcome: str) -> None:
    project.engine(right={"BF16": right})
    project.test(TASK, "accuracy_floor(points=85)", body="inferperf.evaluate()")
    project.run().assert_outcomes(**{outcome: 1})


def test_message(project: Project) -> None:
    project.engine(right={"BF16": 800})
    project.test(TASK, "accuracy_floor(points=85)", body="inferperf.evaluate()")
    result = project.run()
    result.stdout.fnmatch_lines(
        [
            "exact_match 80.80 points is below its floor 85.00 (500 of 1000 questions; score between 76.76 and 84.42 "
            "points at 98.3 % each way); 1 of 1 gate failed",
            "  FAIL  exact_match  80.80 >= 85.00 points  *mark",
        ]
    )


def test_message_of_all_questions(project: Project) -> None:
    """A floor is not a bound: once every question is answered, the score itself is compared."""
    project.engine(right={"BF16": 849})
    project.test(TASK, "accuracy_floor(points=85)", body="inferperf.evaluate()")
    project.run().stdout.fnmatch_lines(["exact_match 84.90 points is below its floor 85.00; 1 of 1 gate failed"])
    assert project.asked() == "1000"
    project.engine(right={"BF16": 850})
    project.run().assert_outcomes(passed=1)
    assert project.asked() == "1000"


@pytest.mark.parametrize(("right", "outcome"), [(990, "passed"), (600, "failed")])
def test_a_clear_score_stops_early(project: Project, right: int, outcome: str) -> None:
    project.engine(right={"BF16": right})
    project.test(TASK, "accuracy_floor(points=85)", body="inferperf.evaluate()")
    project.run().assert_outcomes(**{outcome: 1})
    assert project.asked() == "250"


def test_a_perplexity_has_no_floor_in_points(project: Project) -> None:
    project.engine(perplexity=True)
    project.test(TASK, "accuracy_floor(points=1)", body="inferperf.evaluate()")
    project.run().assert_outcomes(failed=1)


def test_not_evaluated_fails(project: Project) -> None:
    project.test(TASK, "accuracy_floor(points=1)", body="pass")
    project.run().assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (
            "accuracy_floor()",
            "*accuracy_floor: points is missing; give the smallest score in percentage points: points=61.5.",
        ),
        ("accuracy_floor(points='a')", "*accuracy_floor: points='a' is a str; it takes a number."),
        ("accuracy_floor(points=0)", "*accuracy_floor: points=0 must lie between 0 and 100; *"),
        ("accuracy_floor(0.6)", "*accuracy_floor: takes keywords only, not 0.6. Keywords: points, metric."),
    ],
)
def test_wrong_mark(project: Project, mark: str, expected: str) -> None:
    project.test(TASK, mark, body="inferperf.evaluate()")
    project.run().stdout.fnmatch_lines([expected])
