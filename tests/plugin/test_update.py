"""`--inferperf-update` and its companions: recording is an act, done once, by one process, with the reason kept."""

from __future__ import annotations

import json

import pytest

from pytest_inferperf.cli import main
from tests.plugin.conftest import PERFORMANCE, TASK, Project

FLOOR = 'throughput_floor("output_throughput_per_user")'
FILE = "baselines/performance/test-cpu-2x/tiny-llama.json"


@pytest.fixture
def recorded(project: Project) -> Project:
    """A project with a baseline of 100 tok/s/user."""
    project.test(PERFORMANCE, FLOOR)
    project.run("--inferperf-update=new")
    return project


def test_new_records_once_and_says_where(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-update=new")
    result.stdout.fnmatch_lines([f"* values recorded in {FILE}; review with git diff, then commit"])
    before = (project.path / FILE).read_text()
    project.engine(tpot_ms=5)
    again = project.run("--inferperf-update=new")
    again.stdout.fnmatch_lines(["--inferperf-update=new: nothing to record"])
    assert (project.path / FILE).read_text() == before


def test_tighten_moves_only_in_the_better_direction(recorded: Project) -> None:
    recorded.engine(tpot_ms=20)
    recorded.run("--inferperf-update=tighten").assert_outcomes(failed=1)
    recorded.engine(tpot_ms=10)
    recorded.run().assert_outcomes(passed=1)  # the bar has not moved down
    recorded.engine(tpot_ms=5)
    recorded.run("--inferperf-update=tighten").assert_outcomes(passed=1)
    recorded.engine(tpot_ms=10)
    recorded.run().assert_outcomes(failed=1)  # the bar has moved up


def test_all_needs_a_reason_before_anything_runs(recorded: Project) -> None:
    result = recorded.run("--inferperf-update=all")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ['ERROR: --inferperf-update=all may loosen a baseline: say why with --inferperf-reason="…"']
    )


def test_loosening_beyond_tolerance_is_refused_without_acceptance(recorded: Project) -> None:
    before = (recorded.path / FILE).read_text()
    recorded.engine(tpot_ms=20)
    result = recorded.run("--inferperf-update=all", "--inferperf-reason=new driver")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["not recorded: *"])
    assert (recorded.path / FILE).read_text() == before


def test_accepted_regression_is_recorded_with_its_reason(recorded: Project) -> None:
    recorded.engine(tpot_ms=20)
    recorded.run("--inferperf-update=all", "--inferperf-reason=new driver", "--inferperf-accept-regression")
    assert "new driver" in (recorded.path / FILE).read_text()
    recorded.run().assert_outcomes(passed=1)


def test_refusal_turns_a_green_session_red(recorded: Project) -> None:
    """A refused update with no failing gate must not look like success."""
    recorded.engine(tpot_ms=20)
    recorded.test(PERFORMANCE, "throughput_floor(output_throughput_per_user=1)")
    result = recorded.run("--inferperf-update=all", "--inferperf-reason=x")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_ci_must_say_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-update=new")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --inferperf-update in CI records what CI measured, unreviewed. *"])
    assert not (project.path / FILE).exists()
    project.run("--inferperf-update=new", "--inferperf-update-in-ci")
    assert (project.path / FILE).exists()


@pytest.mark.parametrize("workers", ["-n2", "-n0"])
def test_not_under_xdist(project: Project, workers: str) -> None:
    project.test(TASK, body="inferperf.evaluate()")
    result = project.pytester.runpytest_subprocess(workers, "--inferperf-update=new")
    if workers == "-n0":
        assert result.ret == 0
        assert (project.path / "baselines/accuracy/tiny-llama.json").exists()
        return
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --inferperf-update does not go with xdist: one serial process records *"])


@pytest.mark.parametrize("option", ["--inferperf-reason=x", "--inferperf-accept-regression"])
def test_companions_without_update(project: Project, option: str) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {option.partition('=')[0]} goes with --inferperf-update; *"])


def test_invalid_run_is_never_recorded(project: Project) -> None:
    project.engine(failed=1)
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-update=new")
    result.stdout.fnmatch_lines(["not recorded: *"])
    assert not (project.path / FILE).exists()


def test_a_test_that_fails_in_teardown_is_never_recorded(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by its own run nor from the result file that it wrote."""
    project.pytester.makepyfile(
        test_it=f"""
import pytest

@pytest.fixture
def broken():
    yield
    assert False, "the server log has errors"

@pytest.mark.{PERFORMANCE}
@pytest.mark.{FLOOR}
def test_it(broken, inferperf):
    inferperf.measure()
"""
    )
    result = project.run("--inferperf-update=new", "--inferperf-json=r.json")
    result.stdout.fnmatch_lines(["not recorded: *: the run is invalid: the test failed"])
    capsys.readouterr()
    root = str(project.path / "baselines")
    assert main(["baseline", "update", str(project.path / "r.json"), "--root", root]) == 1
    assert ": the run is invalid: the test failed" in capsys.readouterr().err
    assert not (project.path / FILE).exists()


def test_broken_baseline_file_is_an_error_not_a_missing_one(recorded: Project) -> None:
    (recorded.path / FILE).write_text("<<<<<<< HEAD\n{}")
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{FILE}*"])
    result.stdout.no_fnmatch_line("*has no baseline*")


def test_context_that_moved_is_shown(recorded: Project) -> None:
    path = recorded.path / FILE
    data = json.loads(path.read_text())
    for entry in data["entries"].values():
        entry["context"]["driver"] = "550.2"
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
    recorded.engine(tpot_ms=20)
    recorded.run().stdout.fnmatch_lines(["  note: context differs: driver 550.2 -> 570.1"])


def test_accuracy_is_recorded_per_precision(project: Project) -> None:
    for quant in ("BF16", "NVFP4"):
        project.test(
            f'inferperf(model="tiny-llama", quant="{quant}", task="gsm8k")',
            'accuracy_loss_ceiling(reference="NVFP4", points=1)',
            body="inferperf.evaluate()",
        )
        project.run("--inferperf-update=new")
    data = json.loads((project.path / "baselines/accuracy/tiny-llama.json").read_text())
    assert sorted(data["tasks"]["gsm8k-exact_match"]["scores"]) == ["BF16", "NVFP4"]
