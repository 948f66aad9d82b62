"""The longest engine first with `--inferperf-ray`, here with engines that a hook brings: none of them needs a cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from tests.plugin.conftest import Project

RAY = "--inferperf-ray=auto"
SECONDS = {"test_short": 10.0, "test_long": 500.0, "test_fp8": 90.0}
SUITE = ["test_of_others", "test_fp8", "test_short", "test_long", "test_of_others_too"]

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


@pytest.mark.parametrize(
    "arguments",
    [(), (RAY, "--inferperf-past=past.json"), (RAY, "--inferperf-past=past.json", "--ff")],
    ids=["no ray", "ray", "failed first"],
)
def test_without_workers_the_order_of_the_suite_stays(night: Project, arguments: tuple[str, ...]) -> None:
    assert ran(night.run("-v", *arguments)) == SUITE


@pytest.mark.parametrize(
    "arguments",
    [("--ff",), ("--nf",), ("--sw",), ("--sw-skip",), ("-o", "inferperf_order=suite")],
    ids=["ff", "nf", "sw", "sw-skip", "suite"],
)
def test_who_asks_for_an_order_is_dealt_by_xdist(night: Project, arguments: tuple[str, ...]) -> None:
    result = night.pytester.runpytest_subprocess("-v", "-n1", "-p", "no:benchmark", RAY, *arguments)
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["scheduling tests via LoadScheduling"])


def turned(night: Project, name: str, *arguments: str) -> pytest.RunResult:
    """Run with a plugin that turns the suite around, under the name of one that orders."""
    conftest = night.path / "conftest.py"
    conftest.write_text(
        f"{conftest.read_text()}\n\nclass Turning:\n    def pytest_collection_modifyitems(self, items):\n"
        "        items.reverse()\n\n\ndef pytest_addoption(pluginmanager):\n"
        f"    pluginmanager.register(Turning(), {name!r})\n"
    )
    result = night.pytester.runpytest_subprocess(
        "-v", "-n1", "-p", "no:benchmark", RAY, "--inferperf-past=past.json", *arguments
    )
    result.assert_outcomes(passed=5)
    return result


@pytest.mark.parametrize("name", ["randomly", "random_order", "pytest_order", "pytest_ordering", "pytest_randomly"])
def test_the_order_of_a_plugin_is_dealt_by_xdist(night: Project, name: str) -> None:
    result = turned(night, name)
    result.stdout.fnmatch_lines(["scheduling tests via LoadScheduling"])
    assert dealt(result) == SUITE[::-1]


def test_a_plugin_that_is_off_orders_nothing(night: Project) -> None:
    result = turned(night, "randomly", "-p", "no:randomly")
    result.stdout.fnmatch_lines(["scheduling tests via LongestFirst"])


def test_stepwise_goes_on_where_it_stopped(night: Project) -> None:
    """The longest is last in the suite: dealt first, it would have run before the test that fails."""
    module = night.path / "test_night.py"
    passing = module.read_text()
    failing = passing.replace(
        "def test_short(inferperf):\n", "def test_short(inferperf):\n    assert not inferperf.case\n"
    )
    assert failing != passing
    # Stepwise remembers in the cache, which is off in the project's own options.
    arguments = ("-v", "-n1", "-p", "no:benchmark", "-o", "addopts=", RAY, "--inferperf-past=past.json", "--sw")
    module.write_text(failing)
    stopped = night.pytester.runpytest_subprocess(*arguments)
    stopped.stdout.fnmatch_lines(["*Test failed, continuing from this test next run.*"])
    assert stopped.ret == pytest.ExitCode.INTERRUPTED
    assert dealt(stopped)[:2] == SUITE[:2]
    assert "test_long" not in dealt(stopped)
    module.write_text(passing)
    resumed = night.pytester.runpytest_subprocess(*arguments)
    assert resumed.ret == pytest.ExitCode.OK
    assert dealt(resumed) == SUITE[2:]


def dealt(result: pytest.RunResult) -> list[str]:
    """Return the tests that passed on workers, in order."""
    return [
        line.partition("::")[2].partition("[")[0].split()[0]
        for line in result.outlines
        if " PASSED " in line and "::" in line
    ]


def test_a_test_given_twice_runs_twice(night: Project) -> None:
    result = night.pytester.runpytest_subprocess(
        "-n2", "-p", "no:benchmark", RAY, "--keep-duplicates", "test_night.py", "test_night.py"
    )
    result.assert_outcomes(passed=10)


def test_past_results_that_cannot_be_read_are_said(night: Project) -> None:
    (night.path / "broken.json").write_text("{")
    result = night.pytester.runpytest_subprocess("-n1", "-p", "no:benchmark", RAY, "--inferperf-past=broken.json")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        ["inferperf: engines dealt in the order of the suite, since past results cannot be read: *"]
    )


def test_an_order_that_there_is_not(night: Project) -> None:
    result = night.run(RAY, "-o", "inferperf_order=random")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: inferperf_order = random in the ini file is not one of: longest, suite."])


def test_with_workers_each_engine_is_one_workers(night: Project) -> None:
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
    assert [name for name in nvfp4 if "others" not in name] == ["test_short", "test_long"]
    assert nvfp4 != fp8
    assert len([line for line in night.engines() if line.startswith("build ")]) == 2 + 2


def test_another_dist_deals_as_it_says(night: Project) -> None:
    arguments = ("-v", "-p", "no:benchmark", RAY, "--inferperf-past=past.json", "--dist", "loadfile")
    result = night.pytester.runpytest_subprocess("-n2", *arguments)
    result.assert_outcomes(passed=5)
    names = [line.partition("::")[2].partition("[")[0].strip() for line in result.outlines if "PASSED" in line]
    assert names == SUITE


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
