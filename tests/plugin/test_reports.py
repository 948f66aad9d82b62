"""JUnit, the result file, pytest-benchmark's table, the summary, xdist."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from tests.plugin.conftest import PERFORMANCE, TASK, Project

FLOOR = "throughput_floor(output_throughput_per_user=90)"


def junit(project: Project, *arguments: str) -> ET.Element:
    project.run("--junitxml=junit.xml", "-W", "error", *arguments)
    case = ET.parse(project.path / "junit.xml").getroot().find(".//testcase")
    assert case is not None
    return case


def properties(case: ET.Element) -> dict[str, str]:
    return {item.attrib["name"]: item.attrib["value"] for item in case.iter("property")}


def test_junit_pass_has_every_property(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    case = junit(project)
    assert case.find("failure") is None
    found = properties(case)
    expected = {
        "inferperf.case.model": "tiny-llama",
        "inferperf.case.quant": "NVFP4",
        "inferperf.case.isl": "16",
        "inferperf.metric.ttft_ms.p99": "100.0",
        "inferperf.metric.num_failed_requests": "0",
        "inferperf.verdict": "PASS",
        "inferperf.verdict.output_throughput_per_user": "PASS",
        "inferperf.limit.output_throughput_per_user": "90.0",
        "inferperf.limit_source.output_throughput_per_user": "mark",
        "inferperf.engine.hardware": "Test CPU x2",
        "inferperf.engine.checkpoint_hash": "c0ffee",
        "inferperf.engine.simulated": "True",
        "inferperf.context.driver": "570.1",
    }
    assert {name: found.get(name) for name in expected} == expected


def test_junit_regression_is_a_failure(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.engine(tpot_ms=20)
    case = junit(project)
    failure = case.find("failure")
    assert failure is not None
    assert failure.attrib["message"].startswith(
        "Failed: output_throughput_per_user 50 tok/s/user is below its floor 90"
    )
    assert properties(case)["inferperf.verdict"] == "FAIL"


def test_junit_accuracy(project: Project) -> None:
    project.test(TASK, "accuracy_floor(points=95)", body="inferperf.evaluate()")
    case = junit(project)
    found = properties(case)
    assert case.find("failure") is not None
    assert found["inferperf.metric.exact_match"] == "0.9"
    assert found["inferperf.questions"] == "500"
    assert found["inferperf.questions_planned"] == "1000"
    assert found["inferperf.documents_digest"] == "d1"


def test_junit_through_xdist(project: Project) -> None:
    project.test(TASK, "accuracy_floor(points=95)", body="inferperf.evaluate()")
    project.pytester.runpytest_subprocess("-n2", "--junitxml=junit.xml", "--inferperf-json=results.json")
    case = ET.parse(project.path / "junit.xml").getroot().find(".//testcase")
    assert case is not None
    assert properties(case)["inferperf.verdict"] == "FAIL"
    records = json.loads((project.path / "results.json").read_text())["records"]
    assert [record["status"] for record in records] == ["FAIL"]


@pytest.mark.parametrize("options", [(), ("--inferperf-ray=auto",)], ids=["plain", "ray"])
def test_performance_is_not_measured_under_xdist(project: Project, options: tuple[str, ...]) -> None:
    """Nor beside a cluster, of engines that a hook brings: they stay on this machine."""
    project.test(PERFORMANCE, FLOOR)
    result = project.pytester.runpytest_subprocess("-n2", *options)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["performance is not measured under xdist: neighbours on the same machine make the *"])
    assert project.engines() == []


def test_json_holds_results_and_verdicts(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-json=out/results.json")
    result.stdout.fnmatch_lines(["1 result written to out/results.json"])
    data = json.loads((project.path / "out/results.json").read_text())
    (record,) = data["records"]
    assert record["nodeid"] == "test_it.py::test_it[NVFP4-isl16-osl8-c2]"
    assert record["status"] == "PASS"
    assert len(record["result"]["performance"]["sessions"][0]["rounds"]) == 3
    assert data["environment"]["driver"] == "570.1"


def test_json_is_written_when_the_run_is_interrupted(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.pytester.makepyfile(test_zz="def test_stop():\n    raise KeyboardInterrupt\n")
    project.pytester.runpytest_subprocess("-p", "no:xdist", "--inferperf-json=results.json")
    assert len(json.loads((project.path / "results.json").read_text())["records"]) == 1


def test_json_that_cannot_be_written_turns_the_session_red(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    (project.path / "blocked").write_text("")
    result = project.run("--inferperf-json=blocked/results.json")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: *blocked*"])


def test_rounds_stand_in_the_benchmark_table_and_json(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--benchmark-json=bench.json")
    result.stdout.fnmatch_lines(["*benchmark: 1 tests*"])
    (bench,) = json.loads((project.path / "bench.json").read_text())["benchmarks"]
    assert bench["stats"]["rounds"] == 3
    assert bench["extra_info"]["inferperf.ttft_ms.p99"] == 100.0
    assert bench["extra_info"]["inferperf.simulated"] is True


@pytest.mark.parametrize("option", ["--benchmark-disable", "-pno:benchmark", "--benchmark-only"])
def test_every_round_is_measured_whatever_pytest_benchmark_does(project: Project, option: str) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.run(option, "--inferperf-json=results.json").assert_outcomes(passed=1)
    (record,) = json.loads((project.path / "results.json").read_text())["records"]
    assert len(record["result"]["performance"]["sessions"][0]["rounds"]) == 3


def test_benchmark_skip_is_respected(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.run("--benchmark-skip").assert_outcomes(skipped=1)


def test_machine_info_names_the_engine(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.run("--benchmark-json=bench.json")
    info = json.loads((project.path / "bench.json").read_text())["machine_info"]
    assert info["inferperf"]["driver"] == "570.1"


def test_summary_of_several_tests(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.test(TASK, "accuracy_floor(points=95)", body="inferperf.evaluate()", name="test_accuracy")
    result = project.run()
    result.stdout.fnmatch_lines(
        [
            "inferperf: 2 cases, 1 engine, 2 gates, baselines in baselines",
            "*= inferperf =*",
            "test_accuracy.py::test_accuracy[[]NVFP4-gsm8k[]]  (simulated)",
            "  FAIL  exact_match                  90.80 >= 95.00 points *mark",
            "test_it.py::test_it[[]NVFP4-isl16-osl8-c2[]]  (simulated)",
            "  ok    output_throughput_per_user  100.00 >= 90.00 tok/s/user *mark",
            "2 gates in 2 tests: 1 passed, 1 failed",
            "simulated quantization: accuracy is real, speed is not that of the format's hardware",
        ]
    )


def test_nothing_is_said_where_nothing_is_gated(project: Project) -> None:
    project.pytester.makepyfile("def test_it(): pass")
    result = project.run()
    result.stdout.no_fnmatch_line("*inferperf:*")
    result.stdout.no_fnmatch_line("*= inferperf =*")


def test_simulated_speed_is_named_in_a_failure(project: Project) -> None:
    project.test(PERFORMANCE, "throughput_floor(output_throughput_per_user=1000)")
    project.run().stdout.fnmatch_lines(["  note: simulated quantization: accuracy is real, speed is not that of *"])
