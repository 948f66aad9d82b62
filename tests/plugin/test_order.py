"""The longest case first with `--inferperf-ray`, here with engines that a hook brings: none of them needs a cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from tests.plugin.conftest import Project

RAY = "--inferperf-ray=auto"
SECONDS = {"test_short": 10.0, "test_long": 500.0, "test_fp8": 90.0}
LONGEST_FIRST = ["test_of_others", "test_long", "test_short", "test_fp8", "test_of_others_too"]

TESTS = """
import pytest

pytestmark = pytest.mark.inferperf(model="tiny-llama", task="gsm8k")


def test_of_others():
    pass


@pytest.mark.inferperf(quant="FP8")
def test_fp8(inferperf):
    inferperf.evaluate()


@pytest.mark.inferperf(quant="NVFP4")
def test_short(inferperf):
    inferperf.evaluate()


def test_of_others_too():
    pass


@pytest.mark.inferperf(quant="NVFP4", limit=7)
def test_long(inferperf):
    inferperf.evaluate()
"""


@pytest.fixture
def night(project: Project) -> Project:
    """A suite whose tests took a known time the last time."""
    project.pytester.makepyfile(test_night=TESTS)
    project.run("--inferperf-json=past.json").assert_outcomes(passed=5)
    took(project, SECONDS)
    return project


def took(project: Project, seconds: Mapping[str, float]) -> None:
    """Say in the past results how long tests took; those that are not named are in them no more."""
    path = project.path / "past.json"
    data = json.loads(path.read_text())
    rows = {record["nodeid"].partition("::")[2].partition("[")[0]: record for record in data["records"]}
    for name, record in rows.items():
        record["result"]["accuracy"]["duration_s"] = seconds.get(name, 0.0)
    data["records"] = [record for name, record in rows.items() if name in seconds]
    path.write_text(json.dumps(data))


def ran(result: pytest.RunResult) -> list[str]:
    return [line.partition("::")[2].partition("[")[0].split()[0] for line in result.outlines if "PASSED" in line]


def test_the_longest_runs_first_and_tests_of_others_stay_where_they_are(night: Project) -> None:
    result = night.run("-v", RAY, "--inferperf-past=past.json")
    assert ran(result) == LONGEST_FIRST
    assert "inferperf: longest case first, by past results of 3 tests" in result.outlines


def test_what_nobody_knows_runs_first_with_the_longest(night: Project) -> None:
    took(night, {"test_short": 10.0, "test_fp8": 30.0})
    # The unknown one takes 30 s, so that NVFP4 has 40 s to do.
    assert ran(night.run("-v", RAY, "--inferperf-past=past.json")) == LONGEST_FIRST


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), ""),
        ((RAY, "-o", "inferperf_order=suite", "--inferperf-past=past.json"), ""),
        ((RAY,), "no past results say how long they take (--inferperf-past)"),
        ((RAY, "--inferperf-past=broken.json"), "past results cannot be read: *broken.json*"),
    ],
    ids=["no ray", "said so", "no past", "broken past"],
)
def test_the_order_of_the_suite_stays(night: Project, arguments: tuple[str, ...], said: str) -> None:
    (night.path / "broken.json").write_text("{")
    result = night.run("-v", *arguments)
    assert ran(result) == ["test_of_others", "test_fp8", "test_short", "test_long", "test_of_others_too"]
    if said:
        result.stdout.fnmatch_lines([f"inferperf: tests in the order of the suite, since {said}"])
    else:
        result.stdout.no_fnmatch_line("inferperf: *order*")


def test_an_order_that_there_is_not(night: Project) -> None:
    result = night.run(RAY, "-o", "inferperf_order=random")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: inferperf_order = random in the ini file is not one of: longest, suite."])


def test_workers_order_alike_and_each_engine_is_one_workers(night: Project) -> None:
    arguments = ("-v", "-p", "no:benchmark", RAY, "--inferperf-past=past.json")
    result = night.pytester.runpytest_subprocess("-n2", *arguments)
    result.assert_outcomes(passed=5)
    workers: dict[str, list[str]] = {}
    for line in result.outlines:
        if "PASSED" in line and "::" in line:
            worker, _, name = line.partition(" PASSED ")
            workers.setdefault(worker.split("]")[0], []).append(name.partition("::")[2].partition("[")[0].strip())
    (nvfp4,) = [names for names in workers.values() if "test_long" in names]
    (fp8,) = [names for names in workers.values() if "test_fp8" in names]
    assert [name for name in nvfp4 if "others" not in name] == ["test_long", "test_short"]
    assert fp8[0] == "test_fp8"
    assert len([line for line in night.engines() if line.startswith("build ")]) == 2 + 2


def test_another_dist_deals_as_it_says(night: Project) -> None:
    arguments = ("-v", "-p", "no:benchmark", RAY, "--inferperf-past=past.json", "--dist", "loadfile")
    result = night.pytester.runpytest_subprocess("-n2", *arguments)
    result.assert_outcomes(passed=5)
    names = [line.partition("::")[2].partition("[")[0].strip() for line in result.outlines if "PASSED" in line]
    assert names == LONGEST_FIRST


@pytest.mark.parametrize("verbosity", [(), ("-q",)], ids=["normal", "quiet"])
def test_the_controller_shows_what_waits_but_not_when_it_is_to_be_quiet(
    night: Project, verbosity: tuple[str, ...]
) -> None:
    with (night.path / "conftest.py").open("a") as conftest:
        # Lines of a log come every half a minute.
        conftest.write(
            "\nfrom pytest_inferperf.report.progress import ProgressLine\n"
            "ProgressLine.__init__.__kwdefaults__['quiet_s'] = 0.0\n"
        )
    (night.path / "test_night.py").write_text(
        TESTS + "\n\ndef test_that_takes_a_while():\n    __import__('time').sleep(2)\n"
    )
    result = night.pytester.runpytest_subprocess(
        "-n1", *verbosity, "-p", "no:benchmark", RAY, "--inferperf-past=past.json"
    )
    result.assert_outcomes(passed=6)
    # Nobody asks for a node, with engines of a hook.
    said = [line for line in result.outlines if line.startswith("inferperf: no engine has asked for a node yet")]
    assert bool(said) is not bool(verbosity)
