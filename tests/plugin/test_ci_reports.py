"""Whichever variable the CI sets decides what is written; no secret is in any of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_inferperf import cli
from tests.plugin.conftest import PERFORMANCE, Project

FLOOR = "throughput_floor(output_throughput_per_user=1000)"
SECRET = "swordfish-0451"


@pytest.fixture
def leaking(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose test says the value of an API key in what makes the run invalid, and in its own name."""
    monkeypatch.setenv("MY_API_KEY", SECRET)
    project.pytester.makepyfile(
        test_it=f"""
        import pytest
        from pytest_inferperf.errors import InvalidRun

        @pytest.mark.{PERFORMANCE}
        @pytest.mark.{FLOOR}
        def test_it(inferperf):
            inferperf.measure()
            raise InvalidRun("the server answered 401: key {SECRET} sk-abcdefghijklmnopqrst")
        """
    )
    return project


def test_github_gets_a_summary_and_annotations(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = project.path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    project.test(PERFORMANCE, FLOOR)
    result = project.run()
    result.stdout.fnmatch_lines(["::error file=test_it.py,title=output_throughput_per_user::test_it.py::test_it*"])
    assert summary.read_text().startswith("❌ **FAIL: 1 gate in 1 test (1 FAIL)**\n")


def test_gitlab_gets_its_reports(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.delenv("CI_PROJECT_DIR", raising=False)
    project.test(PERFORMANCE, FLOOR)
    project.run()
    assert len(json.loads((project.path / "inferperf-code-quality.json").read_text())) == 1
    assert "inferperf_ttft_ms_p99{" in (project.path / "inferperf-metrics.txt").read_text()


def test_nothing_is_written_outside_ci(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.run().stdout.no_fnmatch_line("::error*")
    assert not list(project.path.glob("inferperf-*"))


def test_a_summary_that_cannot_be_written_turns_the_session_red(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "no" / "such" / "folder"))
    project.test(PERFORMANCE, "throughput_floor(output_throughput_per_user=1)")
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: what CI reads of the run cannot be written: *"])


def test_no_secret_reaches_a_report(
    leaking: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = leaking.path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("CI_PROJECT_DIR", str(leaking.path))
    result = leaking.run("--inferperf-json=results.json")
    results = str(leaking.path / "results.json")
    capsys.readouterr()
    cli.main(["report", results])
    cli.main(["compare", results, results])
    cli.main(["report", results, "--markdown", str(leaking.path / "report.md")])
    faces = {
        "commands": capsys.readouterr().out,
        "annotations": "\n".join(line for line in result.outlines if line.startswith("::")),
        **{
            name: (leaking.path / name).read_text()
            for name in ("summary.md", "report.md", "inferperf-code-quality.json", "inferperf-metrics.txt")
        },
    }
    for name, text in faces.items():
        # Metrics hold names and figures alone.
        assert ("hidden" in text) is (name != "inferperf-metrics.txt"), name
        assert SECRET not in text, name
        assert "sk-abcdef" not in text, name


def test_what_was_measured_before_the_engine_died_is_kept(project: Project) -> None:
    project.engine(relaunch_error="the engine process died")
    project.test(
        'inferperf(model="tiny-llama", quant="NVFP4", isl=16, osl=8, concurrency=2, rounds=3, sessions=2)', FLOOR
    )
    project.run("--inferperf-json=results.json")
    (record,) = json.loads(Path(project.path / "results.json").read_text())["records"]
    assert len(record["result"]["performance"]["sessions"]) == 1
    assert "the engine process died" in record["result"]["invalid"]
    assert record["status"] != "PASS"


def test_ctrl_c_in_the_middle_keeps_what_was_measured(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR, body="inferperf.measure(); raise KeyboardInterrupt")
    result = project.pytester.runpytest_subprocess("-p", "no:xdist", "--inferperf-json=results.json")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (record,) = json.loads((project.path / "results.json").read_text())["records"]
    assert len(record["result"]["performance"]["sessions"][0]["rounds"]) == 3
    assert record["result"]["invalid"].startswith("the test body failed: KeyboardInterrupt")
    assert [item.name for item in project.path.iterdir() if item.name.endswith(".tmp")] == []
