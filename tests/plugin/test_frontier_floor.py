"""`frontier_floor`: the points of a sweep judged as one gate, and the point that fell named."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from pytest_inferperf.baselines.result_file import read_result_file
from pytest_inferperf.model.gates import FrontierFloor
from tests.plugin.conftest import Project

SWEEP = 'inferperf(sweep(concurrency=[1, 2, 4]), model="tiny-llama", quant="NVFP4", isl=16, osl=8, rounds=2, warmup_rounds=0)'
GATE = 'frontier_floor("output_throughput", over="output_throughput_per_user", tolerance=0.2)'
ROW = "output_throughput over output_throughput_per_user"
BEFORE = {"1": 1.0, "2": 1.5, "4": 2.2}
"""Tokens take longer at a higher concurrency: one user's speed for the throughput of all."""


def write(project: Project, *marks: str, mark: str = SWEEP, body: str = "inferperf.measure()") -> None:
    project.test(mark, *marks, body=body)
    path = project.path / "test_it.py"
    path.write_text("from pytest_inferperf import sweep\n" + path.read_text())


@pytest.fixture
def recorded(project: Project) -> Project:
    """A project with a frontier on file, of six sessions."""
    project.engine(slower_at=BEFORE, tpot_ms=100.0)
    write(project, GATE)
    project.run("--inferperf-update=new", "--inferperf-set=sessions=6").assert_outcomes(failed=1)
    return project


def test_an_unchanged_engine_passes(recorded: Project) -> None:
    result = recorded.run("--inferperf-json=out.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"  ok  {ROW} *<= 20.00 %*", "1 gate in 1 test: 1 passed"])
    (record,) = read_result_file(recorded.path / "out.json").records
    (gate,), (row,) = record.gates, record.verdicts
    assert isinstance(gate, FrontierFloor)
    assert (gate.metric.name, gate.over.name, gate.tolerance, gate.points) == (*ROW.split(" over "), 0.2, 3)
    assert row.details["points"] == 3
    assert row.details["fallen"] == ""


@pytest.mark.parametrize("load", ["1", "2", "4"])
def test_a_point_that_falls_fails_the_gate_and_is_named(recorded: Project, load: str) -> None:
    recorded.engine(slower_at={**BEFORE, load: 2 * BEFORE[load]}, tpot_ms=100.0)
    result = recorded.run("--junit-xml=junit.xml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            f"{ROW} c{load} has fallen by * %: * tok/s at * tok/s/user before, at best * tok/s at * tok/s/user now (c*);"
            " 1 of 1 gate failed",
            f"  FAIL  {ROW} *<= 20.00 %*",
            f"  note: {ROW}: the worst point is c{load}: *",
        ]
    )
    case = ElementTree.parse(recorded.path / "junit.xml").getroot().find(".//testcase")
    assert case is not None
    failure = case.find("failure")
    assert failure is not None
    assert f"c{load} has fallen by" in failure.attrib["message"]
    properties = {item.attrib["name"]: item.attrib["value"] for item in case.iter("property")}
    assert properties[f"inferperf.verdict.{ROW}"] == "FAIL"
    assert properties[f"inferperf.fallen.{ROW}"] == f"c{load}"


def test_what_another_load_offers_now_has_not_fallen(recorded: Project) -> None:
    """Twice as fast at 4 as before: it gives each user what 2 gave, and more tokens to all."""
    recorded.engine(slower_at={**BEFORE, "2": 3.0, "4": 0.85}, tpot_ms=100.0)
    recorded.run().assert_outcomes(passed=1)


def test_points_without_a_baseline_are_named(recorded: Project) -> None:
    write(recorded, GATE, mark=SWEEP.replace("1, 2, 4", "1, 2, 8"))
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            f"{ROW} has no baseline (c8: baselines/performance/test-cpu-2x/tiny-llama.json: no such entry; key "
            "NVFP4-isl16-osl8-c8); 1 of 1 gate failed",
            "Next: pytest *test_it* --inferperf-update=new",
        ]
    )


def test_a_frontier_is_judged_beside_other_gates(recorded: Project) -> None:
    write(recorded, GATE, "latency_ceiling(tpot_ms_p50=160)")
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*1 of 4 gates failed", "  ok    c1 tpot_ms.p50*", "  FAIL  c4 tpot_ms.p50*", f"  ok    {ROW} *"]
    )


def test_it_is_judged_again_from_the_result_file(recorded: Project) -> None:
    recorded.engine(slower_at={**BEFORE, "2": 3.0}, tpot_ms=100.0)
    recorded.run("--inferperf-json=out.json")
    built = recorded.engines()
    again = recorded.run("--inferperf-replay=out.json")
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines([f"{ROW} c2 has fallen by *"])
    assert recorded.engines() == built


def test_another_run_stands_in_for_the_baselines(recorded: Project) -> None:
    recorded.run("--inferperf-json=old.json")
    for path in (recorded.path / "baselines").rglob("*.json"):
        path.unlink()
    recorded.run("--inferperf-against=old.json").assert_outcomes(passed=1)
    recorded.engine(slower_at={**BEFORE, "2": 3.0}, tpot_ms=100.0)
    result = recorded.run("--inferperf-against=old.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"{ROW} c2 has fallen by *", f"  FAIL  {ROW} *against old.json"])


def test_accepting_a_fall_moves_the_points(recorded: Project) -> None:
    (path,) = (recorded.path / "baselines").rglob("tiny-llama.json")
    before = json.loads(path.read_text())["entries"]
    assert sorted(before) == [f"NVFP4-isl16-osl8-c{count}" for count in (1, 2, 4)]
    recorded.engine(slower_at={**BEFORE, "2": 3.0}, tpot_ms=100.0)
    options = ("--inferperf-update=all", "--inferperf-reason=a slower kernel", "--inferperf-set=sessions=6")
    recorded.run(*options).assert_outcomes(failed=1)
    fallen = "NVFP4-isl16-osl8-c2"
    assert json.loads(path.read_text())["entries"][fallen] == before[fallen]
    recorded.run(*options, "--inferperf-accept-regression")
    assert json.loads(path.read_text())["entries"][fallen] != before[fallen]
    recorded.run().assert_outcomes(passed=1)


def test_failed_requests_leave_nothing_to_judge(recorded: Project) -> None:
    recorded.engine(slower_at=BEFORE, tpot_ms=100.0, failed=1)
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INVALID: the run is invalid: * requests failed*"])


def test_a_sweep_that_is_not_measured_fails(recorded: Project) -> None:
    write(recorded, GATE, body="pass")
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"{ROW} was not measured; 1 of 1 gate failed"])


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("frontier_floor()", "takes one metric, and over= the one that it is traded against, such as *"),
        ('frontier_floor("output_throughput")', "takes one metric, and over= *"),
        ('frontier_floor("output_throughput", "ttft_ms.p99", over="tpot_ms.p99")', "takes one metric, *"),
        (
            'frontier_floor("output_throughput", over="output_throughput")',
            "'output_throughput' is traded against itself*",
        ),
        ('frontier_floor("output_troughput", over="tpot_ms.p50")', "unknown metric 'output_troughput'."),
        ('frontier_floor("output_throughput", over=3)', "3 is an int; a positional argument names a metric."),
        (
            'frontier_floor("output_throughput", over="tpot_ms.p50", tolerance=5)',
            "tolerance=5.0 must lie between 0 and 1;*",
        ),
        ('frontier_floor("output_throughput", over="tpot_ms.p50", ratio=1)', "unknown keyword 'ratio'."),
    ],
)
def test_a_wrong_mark_is_a_collection_error(project: Project, gate: str, says: str) -> None:
    write(project, gate)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*test_it.py::test_it: frontier_floor: {says}"])


def test_it_needs_a_sweep(project: Project) -> None:
    write(project, GATE, mark=SWEEP.replace("sweep(concurrency=[1, 2, 4])", "").replace("(, ", "("))
    project.run().stdout.fnmatch_lines(
        ["*frontier_floor: needs several loads in one test; give the inferperf mark a sweep*"]
    )
