"""pytest-rerunfailures: a rerun never re-rolls a verdict, and may repeat a run that decided nothing."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tests.plugin.conftest import PERFORMANCE, TASK, Project

FLOOR = "throughput_floor(output_throughput_per_user=90)"
LOSS = 'accuracy_loss_ceiling(reference="BF16", points=1)'


def write(project: Project, *attempts: str, marks: tuple[str, ...] = (PERFORMANCE, FLOOR)) -> None:
    """Write a test whose first attempt does the first statement, the second the second, …, then measures."""
    decorators = "\n".join(f"@pytest.mark.{mark}" for mark in marks)
    act = "evaluate" if "task=" in marks[0] else "measure"
    project.pytester.makepyfile(
        test_it=f"""
import json
import pytest
from pathlib import Path

ATTEMPTS = {attempts!r}

{decorators}
def test_it(inferperf):
    log = Path("attempts.log")
    number = len(log.read_text()) if log.exists() else 0
    log.write_text("x" * (number + 1))
    before, _, after = ATTEMPTS[min(number, len(ATTEMPTS) - 1)].partition(" then ")
    script = inferperf.engine.script
    exec(before)
    inferperf.{act}()
    exec(after)
"""
    )


def attempts(project: Project) -> int:
    return len((project.path / "attempts.log").read_text())


def run(project: Project, *arguments: str) -> pytest.RunResult:
    return project.run("--inferperf-json=r.json", "--junitxml=j.xml", *arguments)


def record(project: Project) -> dict[str, Any]:
    (found,) = json.loads((project.path / "r.json").read_text())["records"]
    assert isinstance(found, dict)
    return found


def properties(project: Project) -> dict[str, str]:
    return {item.attrib["name"]: item.attrib["value"] for item in ET.parse(project.path / "j.xml").iter("property")}


SLOW, GOOD = "script['tpot_ms'] = 20", "script['tpot_ms'] = 10"
INVALID = "script['short_by'] = 1"
DEAD = "script['generate_error'] = 'the engine died'"
REPAIRED = "script.update(short_by=0, generate_error='')"


@pytest.mark.parametrize("ask", ["option", "mark"])
def test_a_regression_is_not_measured_again(project: Project, ask: str) -> None:
    marks = (PERFORMANCE, FLOOR) if ask == "option" else (PERFORMANCE, FLOOR, "flaky(reruns=2)")
    write(project, SLOW, GOOD, marks=marks)
    result = run(project, *(("--reruns=2",) if ask == "option" else ()))
    assert attempts(project) == 1
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "output_throughput_per_user 50 tok/s/user is below its floor 90; 1 of 1 gate failed",
            "Not run again: the verdict of the first attempt stands. A rerun would re-roll it, and each further look at "
            "a gate spends part of its alpha (inferperf_alpha = 0.05), all of which its own looks spend.",
            "  FAIL  output_throughput_per_user  50.00 >= 90.00 tok/s/user *mark",
            "1 gate in 1 test: 1 failed",
            "ERROR test_it.py::test_it* - Failed: output_throughput_pe*",
        ]
    )
    assert record(project)["status"] == "FAIL"
    assert properties(project)["inferperf.verdict"] == "FAIL"
    assert properties(project)["inferperf.metric.tpot_ms.mean"] == "20.0"


def test_the_regression_is_one_that_a_second_attempt_would_hide(project: Project) -> None:
    """What the test above guards against: the second statement alone passes."""
    write(project, GOOD)
    run(project, "--reruns=2").assert_outcomes(passed=1)


@pytest.mark.parametrize("first", [INVALID, DEAD])
def test_an_attempt_that_judged_nothing_may_be_run_again(project: Project, first: str) -> None:
    write(project, first, REPAIRED)
    result = run(project, "--reruns=2")
    assert attempts(project) == 2
    result.stdout.fnmatch_lines(["1 gate in 1 test: 1 passed", "*1 passed, 1 rerun*"])
    assert record(project)["status"] == "PASS"
    assert properties(project)["inferperf.verdict"] == "PASS"


def test_a_regression_after_an_invalid_attempt_stands(project: Project) -> None:
    write(project, INVALID, f"{REPAIRED}; {SLOW}", GOOD)
    result = run(project, "--reruns=2")
    assert attempts(project) == 2
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert record(project)["status"] == "FAIL"


def test_an_engine_that_dies_every_time_fails(project: Project) -> None:
    write(project, DEAD)
    result = run(project, "--reruns=2")
    assert attempts(project) == 3
    result.assert_outcomes(failed=1)


def test_a_failure_of_the_body_with_good_gates_may_be_run_again(project: Project) -> None:
    write(project, f"{GOOD} then assert 0", GOOD)
    result = run(project, "--reruns=2")
    assert attempts(project) == 2
    result.stdout.fnmatch_lines(["*1 passed, 1 rerun*"])


def test_a_failure_of_the_body_does_not_hide_a_regression(project: Project) -> None:
    write(project, f"{SLOW} then assert 0", GOOD)
    result = run(project, "--reruns=2")
    assert attempts(project) == 1
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert record(project)["status"] == "FAIL"


def test_a_missing_baseline_judges_nothing(project: Project) -> None:
    write(project, GOOD, marks=(PERFORMANCE, 'throughput_floor("output_throughput_per_user")'))
    result = run(project, "--reruns=1")
    assert attempts(project) == 2
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["output_throughput_per_user has no baseline *"])


def answers(right: int) -> str:
    return f"Path('engine.json').write_text(json.dumps({{'right': {{'BF16': 900, 'NVFP4': {right}}}}}))"


@pytest.mark.parametrize("arguments", [("-pno:xdist",), ("-n2",)])
@pytest.mark.parametrize(("right", "status"), [(800, "FAIL"), (893, "INCONCLUSIVE")])
def test_accuracy_is_not_evaluated_again(project: Project, arguments: tuple[str, ...], right: int, status: str) -> None:
    write(project, answers(900), marks=(TASK.replace("NVFP4", "BF16"), LOSS))
    project.run("--inferperf-update=new")
    (project.path / "attempts.log").unlink()
    write(project, answers(right), answers(900), marks=(TASK, LOSS))
    options = ("--reruns=2", "--inferperf-json=r.json", "--junitxml=j.xml", *arguments)
    result = project.pytester.runpytest_subprocess(*options)
    assert attempts(project) == 1
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["Not run again: the verdict of the first attempt stands. *"])
    assert record(project)["status"] == status
    assert properties(project)["inferperf.verdict"] == status


def test_a_refused_rerun_leaves_the_verdict_recordable(project: Project) -> None:
    """The refusal stands for the verdict; it is not a failure of another kind, which would forbid to record."""
    floor = 'throughput_floor("output_throughput_per_user")'
    write(project, GOOD, marks=(PERFORMANCE, floor))
    project.run("--inferperf-update=new")
    (project.path / "attempts.log").unlink()
    write(project, SLOW, GOOD, marks=(PERFORMANCE, floor))
    accept = ("--inferperf-update=all", "--inferperf-accept-regression", "--inferperf-reason=slower")
    project.run("--reruns=1", *accept).stdout.fnmatch_lines(["*value* recorded in *"])


def test_a_second_attempt_begins_without_the_record_of_the_first(project: Project) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """

def pytest_runtest_logreport(report):
    print("REPORT", report.when, report.outcome, getattr(report, "inferperf_record", {}).get("status"))
"""
    )
    write(project, INVALID, REPAIRED)
    lines = run(project, "-s", "--reruns=2").outlines
    assert [line.partition("REPORT ")[2] for line in lines if "REPORT" in line] == [
        "setup passed None",
        "call rerun INVALID",
        "teardown passed None",
        "setup passed None",
        "call passed PASS",
        "teardown passed None",
    ]
