"""`--inferperf-inject`: gates fail by what was put in, everything says so, and nothing of it becomes a baseline."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from pytest_inferperf.baselines.result_file import read_result_file
from pytest_inferperf.cli import main
from tests.plugin.conftest import PERFORMANCE, TASK, Project

SPEED = 'throughput_floor("output_throughput_per_user")'
DELAY = 'latency_ceiling("ttft_ms.p99")'
LOSS = 'accuracy_loss_ceiling(reference="BF16", points=3.0)'


@pytest.fixture
def serving(project: Project) -> Project:
    """A project with a recorded performance baseline."""
    project.test(PERFORMANCE, SPEED, DELAY)
    project.run("--inferperf-update=new")
    project.run().assert_outcomes(passed=1)
    return project


@pytest.fixture
def answering(project: Project) -> Project:
    """A project with a recorded reference, and the same answers from NVFP4."""
    project.test(TASK.replace("NVFP4", "BF16"), LOSS, body="inferperf.evaluate()")
    project.run("--inferperf-update=new")
    project.test(TASK, LOSS, "accuracy_floor(points=80)", body="inferperf.evaluate()")
    project.run().assert_outcomes(passed=1)
    return project


@pytest.mark.parametrize(
    ("injection", "failing"),
    [
        ("slowdown:8%", ["output_throughput_per_user", "ttft_ms.p99"]),
        ("latency:8%", ["output_throughput_per_user", "ttft_ms.p99"]),
        ("latency:9ms", ["ttft_ms.p99"]),
        ("slowdown:2%", []),
        ("latency:1ms", []),
    ],
)
def test_speed(serving: Project, injection: str, failing: list[str]) -> None:
    serving.run(f"--inferperf-inject={injection}", "--inferperf-json=results.json")
    (record,) = read_result_file(serving.path / "results.json").records
    assert [item.gate for item in record.verdicts if item.status.value == "FAIL"] == failing
    assert all(item.measured is not None for item in record.verdicts)


@pytest.mark.parametrize(
    ("injection", "score"), [("accuracy:2pt", 0.88), ("accuracy:8pt", 0.82), ("accuracy:45pt", 0.45)]
)
def test_score_falls_by_what_was_asked_for(answering: Project, injection: str, score: float) -> None:
    answering.run(f"--inferperf-inject={injection}", "--inferperf-json=results.json")
    (record,) = read_result_file(answering.path / "results.json").records
    assert record.result.accuracy is not None
    assert record.result.accuracy.score == pytest.approx(score, abs=0.02)


def test_every_accuracy_gate_fails(answering: Project) -> None:
    answering.run("--inferperf-inject=accuracy:15pt", "--inferperf-json=results.json").assert_outcomes(failed=1)
    (record,) = read_result_file(answering.path / "results.json").records
    assert [(item.gate, item.status.value) for item in record.verdicts] == [
        ("exact_match loss vs BF16", "FAIL"),
        ("unparseable rise vs BF16", "FAIL"),
        ("exact_match", "FAIL"),
    ]


def test_perplexity_gets_worse(project: Project) -> None:
    project.engine(perplexity=True)
    percent = LOSS.replace("points", "percent")
    project.test(TASK.replace("NVFP4", "BF16"), percent, body="inferperf.evaluate()")
    project.run("--inferperf-update=new")
    project.test(TASK, percent, body="inferperf.evaluate()")
    project.run().assert_outcomes(passed=1)
    result = project.run("--inferperf-inject=accuracy:8pt")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r".*bits_per_byte loss vs BF16 [6-9]\.\d\d % is above its ceiling 3\.00"])


def test_memory(project: Project) -> None:
    project.test(PERFORMANCE, "latency_ceiling(peak_memory_gib=1.1)")
    project.run().assert_outcomes(passed=1)
    project.run("--inferperf-inject=memory:20%").assert_outcomes(failed=1)


def test_noise_is_the_same_in_every_run(serving: Project) -> None:
    found = []
    for _ in range(2):
        serving.run("--inferperf-inject=noise:3%", "--inferperf-json=results.json")
        (record,) = read_result_file(serving.path / "results.json").records
        assert record.result.performance is not None
        found.append(record.result.performance["tpot_ms.p50"])
    assert found[0] == found[1] != 10.0


def test_everything_says_that_a_regression_was_injected(serving: Project) -> None:
    options = ("--inferperf-inject=slowdown:8%", "--inferperf-inject=accuracy:2pt")
    result = serving.run(*options, "--junitxml=junit.xml", "--inferperf-json=results.json")
    result.stdout.fnmatch_lines(
        [
            "inferperf: 1 case, 1 engine, 2 gates, baselines in baselines, slowdown:8% injected, accuracy:2pt injected",
            "*note: a regression was injected (slowdown:8%, accuracy:2pt): this says nothing about the engine itself",
            "2 gates in 1 test: 2 failed",
            "a regression was injected (slowdown:8%, accuracy:2pt): this says nothing about the engine itself",
        ]
    )
    # There is nothing to accept.
    result.stdout.no_fnmatch_line("*inferperf baseline update*")
    failure = ET.parse(serving.path / "junit.xml").getroot().find(".//failure")
    assert failure is not None
    assert "a regression was injected (slowdown:8%, accuracy:2pt)" in str(failure.text)
    file = read_result_file(serving.path / "results.json")
    assert file.environment["--inferperf-inject"] == "slowdown:8%, accuracy:2pt"
    assert file.records[0].result.context["inferperf_inject"] == "slowdown:8%, accuracy:2pt"


def test_an_invalid_run_says_it_too(project: Project) -> None:
    project.test(PERFORMANCE, SPEED)
    project.engine(failed=1)
    project.run("--inferperf-inject=slowdown:8%").stdout.fnmatch_lines(
        ["*INVALID*", "*note: a regression was injected*"]
    )


@pytest.mark.parametrize("mode", ["new", "tighten", "all"])
def test_an_injected_run_records_nothing(serving: Project, mode: str) -> None:
    before = (serving.path / "baselines/performance/test-cpu-2x/tiny-llama.json").read_bytes()
    options = ("--inferperf-inject=slowdown:8%", f"--inferperf-update={mode}", "--inferperf-reason=why")
    result = serving.run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: --inferperf-update does not go with --inferperf-inject=slowdown:8%: a regression that was put in on "
            "purpose is no baseline. Leave one of the two out."
        ]
    )
    assert (serving.path / "baselines/performance/test-cpu-2x/tiny-llama.json").read_bytes() == before


def test_nor_does_its_result_file(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.test(PERFORMANCE, SPEED)
    project.run("--inferperf-inject=slowdown:8%", "--inferperf-json=results.json")
    (project.path / "baselines").mkdir()
    capsys.readouterr()
    assert main(["baseline", "update", "results.json"]) == 1
    refusal = "a regression was injected (slowdown:8%); leave --inferperf-inject out\n  Repeat the run"
    assert refusal in capsys.readouterr().err
    assert not list((project.path / "baselines").rglob("*.json"))


def test_a_wrong_kind_ends_the_run_before_collection(project: Project) -> None:
    project.test(PERFORMANCE)
    result = project.run("--inferperf-inject=slow:5%")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --inferperf-inject 'slow:5%': unknown kind 'slow'. Did you mean 'slowdown'?*"])
    assert project.engines() == []


def test_the_engine_fixture_is_the_engine_itself(project: Project) -> None:
    project.test(PERFORMANCE, fixture="inferperf_engine", body="assert inferperf_engine.peak_memory_bytes() == 2**30")
    project.run("--inferperf-inject=memory:50%").assert_outcomes(passed=1)
