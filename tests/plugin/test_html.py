"""`--inferperf-html`: the page that a run writes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.plugin.conftest import PERFORMANCE, Project

FLOOR = "throughput_floor(output_throughput=0.001)"


def test_a_run_writes_the_page(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-html=out/report.html", "--inferperf-set=sessions=1")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["HTML report written to out/report.html"])
    page = (project.path / "out" / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>PASS: 1 gate in 1 test (1 PASS)</title>" in page


def test_a_run_that_fails_writes_it_too(project: Project) -> None:
    project.test(PERFORMANCE, "throughput_floor(output_throughput=1e9)")
    project.run("--inferperf-html=report.html", "--inferperf-set=sessions=1").assert_outcomes(failed=1)
    assert "<title>FAIL: 1 gate in 1 test (1 FAIL)</title>" in (project.path / "report.html").read_text()


@pytest.mark.parametrize("missing", ["jinja2", "plotly"])
def test_without_the_extra_the_run_says_what_to_type_before_it_measures(
    project: Project, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-html=report.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            f'ERROR: An HTML report needs the "html" extra ({missing} is not installed): pip install "pytest-inferperf[[]html]"'
        ]
    )
    assert project.engines() == []


def test_a_page_that_cannot_be_written_turns_the_run_red(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    Path(project.path / "folder").mkdir()
    result = project.run("--inferperf-html=folder", "--inferperf-set=sessions=1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: folder*"])
