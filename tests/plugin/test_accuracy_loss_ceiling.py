"""`accuracy_loss_ceiling`: paired against the stored reference; a real loss fails, absence fails."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import PERFORMANCE, TASK, Project, record_reference

CEILING = 'accuracy_loss_ceiling(reference="BF16", points=1.0)'
EVALUATE = "inferperf.evaluate()"


@pytest.fixture
def recorded(project: Project) -> Project:
    """A project with stored BF16 answers, 900 of 1,000 right."""
    record_reference(project, CEILING)
    return project


def test_no_loss_passes(recorded: Project) -> None:
    result = recorded.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_it[[]NVFP4-gsm8k[]]*",
            "  ok  exact_match loss vs BF16  0.000 <= 1.000 points  reference *  baselines/accuracy/tiny-llama.json",
            "  ok  unparseable rise vs BF16  0.000 <= 1.000 points  *",
            "2 gates in 1 test: 2 passed",
        ]
    )


@pytest.mark.parametrize(
    ("right", "outcome"),
    [(900, "passed"), (898, "passed"), (895, "failed"), (890, "failed"), (950, "passed"), (100, "failed")],
)
def test_ceiling_is_in_points(recorded: Project, right: int, outcome: str) -> None:
    recorded.engine(right={"BF16": 900, "NVFP4": right})
    recorded.run().assert_outcomes(**{outcome: 1})


def test_inconclusive_fails_unless_the_ini_says_warn(recorded: Project) -> None:
    recorded.engine(right={"BF16": 900, "NVFP4": 895})
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["INCONCLUSIVE: exact_match loss vs BF16 0.50 points, at most *, is not proven below its ceiling 1.00 *"]
    )
    result = recorded.run("-W", "default", "-o", "inferperf_on_inconclusive=warn")
    result.assert_outcomes(passed=1, warnings=1)
    recorded.engine(right={"BF16": 900, "NVFP4": 800})
    recorded.run("-W", "default", "-o", "inferperf_on_inconclusive=warn").assert_outcomes(failed=1)


def test_regression_message(recorded: Project) -> None:
    recorded.engine(right={"BF16": 900, "NVFP4": 870})
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "exact_match loss vs BF16 2.80 points is above its ceiling 1.00 (14 lost, 0 gained in 500 of 1000 questions); "
            "1 of 2 gates failed",
            "  note: vs BF16: 14 lost, 0 gained in 500 of 1000 questions; loss between 1.23 and 4.82 points at 98.3 % each way",
            "  note: vs BF16: 2.80 % flips, A/A flips of BF16: 0 of 250, McNemar mid-p 3.1e-05, detectable loss 1.86 "
            "points, KL 0 nats",
        ]
    )


def test_unparseable_answers_are_a_gate_of_their_own(recorded: Project) -> None:
    """A broken output format fails even where the score has not moved."""
    recorded.engine(right={"BF16": 900}, unparseable={"NVFP4": 60})
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "unparseable rise vs BF16 5.20 points is above its ceiling 1.00 (0.00 % -> 5.20 % of answers "
            "unparseable; rise between 2.01 and 9.30 at 98.8 % each way); *",
        ]
    )


def test_missing_reference_file(project: Project) -> None:
    project.test(TASK, CEILING, body=EVALUATE)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "exact_match loss vs BF16 has no baseline (baselines/accuracy/tiny-llama.json: *; key gsm8k-exact_match); *1 of 1 gate *",
            "Next: evaluate the same task with quant='BF16' and --inferperf-update=new",
        ]
    )


def test_reference_of_another_precision_is_missing(recorded: Project) -> None:
    recorded.test(TASK, 'accuracy_loss_ceiling(reference="FP8", points=1.0)', body=EVALUATE)
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["exact_match loss vs FP8 has no baseline (*: key gsm8k-exact_match has no FP8; it holds BF16); *"]
    )


@pytest.mark.parametrize("script", [{"digest": "d2"}, {"questions": 999, "right": {"BF16": 899}}])
def test_other_questions_cannot_be_paired(recorded: Project, script: dict[str, object]) -> None:
    recorded.engine(**script)
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*cannot be paired: *; the questions changed; *"])


def test_evaluation_that_never_ran_fails(recorded: Project) -> None:
    recorded.test(TASK, CEILING, body="pass")
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["accuracy loss vs BF16 was not measured; 1 of 1 gate failed"])


@pytest.mark.parametrize(("score", "outcome"), [(909, "passed"), (920, "failed"), (800, "passed")])
def test_perplexity_takes_percent(project: Project, score: int, outcome: str) -> None:
    ceiling = 'accuracy_loss_ceiling(reference="BF16", percent=2.0)'
    project.engine(perplexity=True)
    project.test('inferperf(model="tiny-llama", quant="BF16", task="wikitext")', ceiling, body=EVALUATE)
    project.run("--inferperf-update=new").assert_outcomes(failed=1)
    project.engine(perplexity=True, right={"BF16": 900, "NVFP4": score})
    project.test('inferperf(model="tiny-llama", quant="NVFP4", task="wikitext")', ceiling, body=EVALUATE)
    project.run().assert_outcomes(**{outcome: 1})


def test_points_on_a_perplexity_fail(project: Project) -> None:
    """A limit in the wrong unit must not pass."""
    project.engine(perplexity=True)
    project.test('inferperf(model="tiny-llama", quant="BF16", task="wikitext")', CEILING, body=EVALUATE)
    project.run("--inferperf-update=new")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*bits_per_byte is not a score between 0 and 1 that is better when higher: points do not *"]
    )


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("accuracy_loss_ceiling(points=1.0)", '*reference=None; name the stored precision: reference="BF16".'),
        ('accuracy_loss_ceiling(reference="FP16", points=1.0)', "*unknown reference 'FP16'."),
        ('accuracy_loss_ceiling(reference="FP8+kv_fp4", points=1.0)', "*unknown reference 'FP8+kv_fp4'."),
        ('accuracy_loss_ceiling(reference="BF16")', "*give points= (percentage points, *) or percent= *"),
        ('accuracy_loss_ceiling(reference="BF16", points=1, percent=1)', "*give points= *, not both and not neither."),
        (
            'accuracy_loss_ceiling(reference="BF16", points=100)',
            "*points=100 must lie between 0 and 100; 1.0 is one percentage point.",
        ),
        ('accuracy_loss_ceiling(reference="BF16", points=0)', "*points=0 must lie between 0 and 100; *"),
        ('accuracy_loss_ceiling(reference="BF16", point=1)', "*accuracy_loss_ceiling: unknown keyword 'point'."),
        ('accuracy_loss_ceiling("BF16", points=1)', "*accuracy_loss_ceiling: takes keywords only, not 'BF16'. *"),
        ('accuracy_loss_ceiling(reference="BF16", points=1, metric=3)', "*metric=3; it takes the name of an lm-eval *"),
    ],
)
def test_wrong_mark(project: Project, mark: str, expected: str) -> None:
    project.test(TASK, mark, body=EVALUATE)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([expected])


def test_accuracy_gate_on_a_workload(project: Project) -> None:
    project.test(PERFORMANCE, CEILING)
    project.run().stdout.fnmatch_lines(
        ["*accuracy_loss_ceiling: needs a task to evaluate; give the inferperf mark task=."]
    )


def test_two_metrics_in_one_test(project: Project) -> None:
    project.test(
        TASK,
        'accuracy_loss_ceiling(reference="BF16", points=1, metric="acc")',
        'accuracy_floor(points=1, metric="acc_norm")',
        body=EVALUATE,
    )
    project.run().stdout.fnmatch_lines(
        ["*accuracy gates of one test judge one metric, not acc, acc_norm. Write two tests."]
    )
