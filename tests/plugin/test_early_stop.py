"""Early stopping: an evaluation ends when every accuracy gate is decided, and never where something else needs it all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plugin.conftest import TASK, Project, record_reference

TWO_POINTS = 'accuracy_loss_ceiling(reference="BF16", points=2.0)'
EVALUATE = "inferperf.evaluate()"
JSON = "--inferperf-json=results.json"


@pytest.fixture
def recorded(project: Project) -> Project:
    """A project with stored BF16 answers, 900 of 1,000 right."""
    record_reference(project, TWO_POINTS)
    return project


def accuracy(project: Project) -> dict[str, object]:
    (record,) = json.loads((project.path / "results.json").read_text())["records"]
    found: dict[str, object] = record["result"]["accuracy"]
    return found


def test_recording_asks_everything_and_a_quarter_twice(recorded: Project) -> None:
    assert recorded.asked() == "1000 and 250 twice"
    entry = json.loads((recorded.path / "baselines/accuracy/tiny-llama.json").read_text())
    score = entry["tasks"]["gsm8k-exact_match"]["scores"]["BF16"]
    assert (score["outcomes"]["count"], score["repeat"]) == (1000, {"questions": 250, "flips": 0})
    assert (score["logprobs"]["count"], score["logprobs"]["choices"]) == (256, 2)
    # Also where there is a baseline to be judged by.
    recorded.run("--inferperf-update=new")
    assert recorded.asked() == "1000 and 250 twice"


def test_an_unchanged_engine_passes_after_a_quarter(recorded: Project) -> None:
    result = recorded.run(JSON)
    result.assert_outcomes(passed=1)
    assert recorded.asked() == "250"
    result.stdout.fnmatch_lines(
        [
            "  ok  exact_match loss vs BF16  0.000 <= 2.000 points *",
            "  note: vs BF16: 0 lost, 0 gained in 250 of 1000 questions; loss between -1.75 and 1.75 points at 98.8 % each way",
        ]
    )
    found = accuracy(recorded)
    assert [found[name]["count"] for name in ("outcomes", "asked")] == [250, 1000]  # type: ignore[index]


def test_a_clear_regression_fails_after_a_quarter(recorded: Project) -> None:
    recorded.engine(right={"BF16": 900, "NVFP4": 700})
    result = recorded.run()
    result.assert_outcomes(failed=1)
    assert recorded.asked() == "250"
    result.stdout.fnmatch_lines(
        ["exact_match loss vs BF16 * points is above its ceiling 2.00 (* in 250 of 1000 questions)*"]
    )


def test_a_doubtful_one_is_asked_everything(recorded: Project) -> None:
    recorded.engine(right={"BF16": 900, "NVFP4": 886})
    result = recorded.run()
    result.assert_outcomes(failed=1)
    assert recorded.asked() == "1000"
    result.stdout.fnmatch_lines(["INCONCLUSIVE: exact_match loss vs BF16 1.40 points, at most *"])


@pytest.mark.parametrize("way", ["option", "mark"])
def test_early_stop_can_be_switched_off(recorded: Project, way: str) -> None:
    if way == "mark":
        recorded.test(TASK.replace(")", ", early_stop=False)"), TWO_POINTS, body=EVALUATE)
    result = recorded.run(*(["--inferperf-set=early_stop=false"] if way == "option" else []))
    result.assert_outcomes(passed=1)
    assert recorded.asked() == "1000"
    # Nobody looked in between, so that all of alpha is spent on the one look.
    result.stdout.fnmatch_lines(["*0 lost, 0 gained of 1000; loss between -0.30 and 0.30 points at 95 % each way"])


@pytest.mark.parametrize(
    ("marks", "asked"),
    [
        ((TWO_POINTS, "accuracy_floor(points=50)"), "250"),
        ((TWO_POINTS, "accuracy_floor(points=89)"), "1000"),
        ((TWO_POINTS.replace("2.0", "1.0"),), "500"),
        ((TWO_POINTS.replace(")", ", unparseable_points=1.0)"),), "500"),
        (('accuracy_loss_ceiling(reference="FP8", points=2.0)',), "1000"),
        (('accuracy_loss_ceiling(reference="BF16", points=0.01)',), "1000"),
        ((), "1000"),
    ],
)
def test_every_gate_has_to_be_decided(recorded: Project, marks: tuple[str, ...], asked: str) -> None:
    """A gate without a figure decides nothing: all answers are there to be recorded. So are they without gates."""
    recorded.test(TASK, *marks, body=EVALUATE)
    recorded.run()
    assert recorded.asked() == asked


def test_a_broken_baseline_file_is_reported_after_all_questions(recorded: Project) -> None:
    (recorded.path / "baselines/accuracy/tiny-llama.json").write_text("{")
    recorded.run().assert_outcomes(failed=1)
    assert recorded.asked() == "1000"


def test_alpha_of_the_ini_moves_the_looks(recorded: Project) -> None:
    recorded.run("-o", "inferperf_alpha=0.001").assert_outcomes(passed=1)
    assert recorded.asked() == "500"


@pytest.mark.parametrize(("score", "outcome", "asked"), [(900, "passed", "250"), (990, "failed", "250")])
def test_perplexities_stop_early_too(project: Project, score: int, outcome: str, asked: str) -> None:
    ceiling = 'accuracy_loss_ceiling(reference="BF16", percent=2.0)'
    project.engine(perplexity=True)
    project.test('inferperf(model="tiny-llama", quant="BF16", task="wikitext")', ceiling, body=EVALUATE)
    project.run("--inferperf-update=new").assert_outcomes(failed=1)
    project.engine(perplexity=True, right={"BF16": 900, "NVFP4": score})
    project.test('inferperf(model="tiny-llama", quant="NVFP4", task="wikitext")', ceiling, body=EVALUATE)
    project.run().assert_outcomes(**{outcome: 1})
    assert project.asked() == asked


def test_a_stopped_evaluation_never_becomes_a_baseline(recorded: Project, capsys: pytest.CaptureFixture[str]) -> None:
    from pytest_inferperf import cli

    recorded.run(JSON).assert_outcomes(passed=1)
    before = (recorded.path / "baselines/accuracy/tiny-llama.json").read_text()
    arguments = ["baseline", "update", "results.json", "--mode", "all", "--reason", "x", "--accept-regression"]
    capsys.readouterr()
    assert cli.main(arguments) == 1
    assert (
        "the evaluation stopped after 250 of 1000 questions, and a baseline needs all: evaluate with "
        "--inferperf-set=early_stop=false"
    ) in "".join(capsys.readouterr())
    assert (recorded.path / "baselines/accuracy/tiny-llama.json").read_text() == before
    recorded.run(JSON, "--inferperf-set=early_stop=false").assert_outcomes(passed=1)
    assert cli.main(arguments) == 0


def test_passages_are_groups(recorded: Project) -> None:
    """20 passages of 10 questions each, one of which is lost as a whole: what looks clear is one observation."""
    recorded.engine(right={"BF16": 900, "NVFP4": 890})
    recorded.test(TASK, TWO_POINTS, body=EVALUATE)
    recorded.run().assert_outcomes(passed=1)
    recorded.engine(right={"BF16": 900, "NVFP4": 890}, passage=50)
    recorded.test(TASK.replace(")", ', group_by="passage")'), TWO_POINTS, body=EVALUATE)
    result = recorded.run(JSON)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INCONCLUSIVE: exact_match loss vs BF16 1.00 points, at most *"])
    assert accuracy(recorded)["groups"] == [number // 50 for number in range(1000)]


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ('early_stop="no"', "*inferperf: early_stop='no' is a str; early_stop takes a bool, or a list of them."),
        ("early_stop=1", "*inferperf: early_stop=1 is an int; early_stop takes a bool, *"),
        ("group_by=True", "*inferperf: group_by=True is a bool; group_by takes a str, *"),
    ],
)
def test_wrong_keywords(project: Project, mark: str, expected: str) -> None:
    project.test(TASK.replace(")", f", {mark})"), TWO_POINTS, body=EVALUATE)
    project.run().stdout.fnmatch_lines([expected])


# Drift.


@pytest.fixture
def both(recorded: Project) -> Path:
    """The stored answers of NVFP4 too."""
    recorded.run("--inferperf-update=new").assert_outcomes(passed=1)
    return recorded.path


@pytest.mark.usefixtures("both")
def test_an_unchanged_engine_shows_no_drift(recorded: Project) -> None:
    result = recorded.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["  note: vs the own baseline NVFP4: 0 lost, 0 gained of 250, net loss 0.00 points, KL 0 nats"]
    )
    result.stdout.no_fnmatch_line("*drift:*")


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ({"shift": {"NVFP4": 0.1}}, "KL 0.02 nats (KL is above 0.001)"),
        ({"right": {"BF16": 950}}, "KL 0 nats (* flips are more than the engine's own noise)"),
    ],
)
def test_drift_is_noted_and_does_not_fail(recorded: Project, script: dict[str, object], cause: str) -> None:
    recorded.engine(**script)
    result = recorded.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"  note: drift: vs the own baseline NVFP4: *, {cause}"])


@pytest.mark.usefixtures("both")
def test_the_own_baseline_can_be_a_gate_beside_the_reference(recorded: Project) -> None:
    """Both are judged: better than BF16 still, and worse than it was itself."""
    recorded.engine(right={"BF16": 980})
    recorded.run("--inferperf-update=all", "--inferperf-reason=better").assert_outcomes(passed=1)
    recorded.engine(right={"BF16": 930})
    own = 'accuracy_loss_ceiling(reference="NVFP4", points=2.0)'
    recorded.test(TASK, TWO_POINTS, own, body=EVALUATE)
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["  ok    exact_match loss vs BF16 *", "  FAIL  exact_match loss vs NVFP4 *"],
    )
