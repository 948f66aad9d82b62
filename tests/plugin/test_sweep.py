"""`sweep(concurrency=[…])`: one case with a point for each load, and a row for each gate of each point."""

from __future__ import annotations

import json

import pytest

from pytest_inferperf.baselines.result_file import read_result_file
from tests.plugin.conftest import PERFORMANCE, Project

SWEEP = (
    'inferperf(sweep(concurrency=[1, 2, 4]), model="tiny-llama", quant="NVFP4", isl=16, osl=8, rounds=2, sessions=1)'
)


def write(project: Project, *marks: str, mark: str = SWEEP, body: str = "inferperf.measure()") -> None:
    project.test(mark, *marks, body=body)
    path = project.path / "test_it.py"
    path.write_text("from pytest_inferperf import sweep\n" + path.read_text())


def test_one_launch_measures_every_point(project: Project) -> None:
    write(
        project,
        body=(
            "run = inferperf.measure()\n"
            "    assert [point.workload.concurrency for point in run.points] == [1, 2, 4]\n"
            '    assert all(point["ttft_ms.p50"] == 100 for point in run.points)\n'
            "    assert run.num_failed_requests == 0\n"
        ),
    )
    result = project.run("-v", "--inferperf-json=out.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*::test_it[[]NVFP4-isl16-osl8-c1-2-4[]]*"])
    assert project.engines() == ["build NVFP4", "close NVFP4"]
    (record,) = read_result_file(project.path / "out.json").records
    assert record.result.performance is None
    assert record.result.case.identity()["concurrency"] == "1,2,4"
    assert record.result.frontier is not None
    assert [point.performance["ttft_ms.p50"] for point in record.result.frontier.points] == pytest.approx([100] * 3)


def test_each_point_is_judged(project: Project) -> None:
    """Requests of 0.17 s: 5.9 a second at concurrency 1, 11.8 at 2, 23.5 at 4; fewer on a busy machine."""
    write(project, "throughput_floor(request_throughput=8)")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "c1 request_throughput * req/s is below its floor 8; 1 of 3 gates failed",
            "  FAIL  c1 request_throughput*",
            "  ok    c4 request_throughput*",
        ]
    )


def test_each_point_has_a_baseline_that_a_test_of_that_load_shares(project: Project) -> None:
    gate = 'latency_ceiling("ttft_ms.p99", tolerance=0.2)'
    write(project, gate)
    project.run("--inferperf-update=new").assert_outcomes(failed=1)
    (path,) = (project.path / "baselines").rglob("tiny-llama.json")
    assert sorted(json.loads(path.read_text())["entries"]) == [f"NVFP4-isl16-osl8-c{count}" for count in (1, 2, 4)]
    project.run().assert_outcomes(passed=1)
    project.test(PERFORMANCE, gate)
    project.run().assert_outcomes(passed=1)
    project.engine(ttft_ms=150.0)
    write(project, gate)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"  FAIL  c{count} ttft_ms.p99 *" for count in (1, 2, 4)])


def test_another_run_stands_in_for_the_baselines(project: Project) -> None:
    write(project, 'latency_ceiling("ttft_ms.p99", tolerance=0.2)')
    project.run("--inferperf-json=old.json")
    project.run("--inferperf-against=old.json").assert_outcomes(passed=1)
    project.engine(ttft_ms=150.0)
    project.run("--inferperf-against=old.json").assert_outcomes(failed=1)


def test_failed_requests_of_one_point_make_the_run_invalid(project: Project) -> None:
    """One request of each round fails: all of concurrency 1."""
    project.engine(failed=1)
    write(project, "throughput_floor(request_throughput=1)")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID*requests failed*"])


def test_sweep_that_is_not_measured_fails(project: Project) -> None:
    write(project, "throughput_floor(request_throughput=1)", body="pass")
    project.run().assert_outcomes(failed=1)


def test_the_plan_knows_every_point(project: Project) -> None:
    """A row for each gate of each point; a session measures all of them."""
    project.engine(round_s=0.05)
    write(
        project,
        'latency_ceiling("ttft_ms.p99", tolerance=0.2)',
        'frontier_floor("output_throughput", over="output_throughput_per_user")',
        mark=SWEEP.replace("1, 2, 4", "1, 2"),
    )
    key = "NVFP4-isl16-osl8"
    result = project.run("--inferperf-plan")
    result.stdout.fnmatch_lines(
        [
            "  *::test_it[[]NVFP4-isl16-osl8-c1-2[]]",
            f"    MISSING  c1 ttft_ms.p99 * no entry for any hardware; key {key}-c1",
            f"    MISSING  c2 ttft_ms.p99 * no entry for any hardware; key {key}-c2",
            "    MISSING  output_throughput over output_throughput_per_user  tolerance 5 %   2 points, the least certain "
            f"figure is c1 output_throughput: baselines/performance: no entry for any hardware; key {key}-c1",
            "3 gates have no baseline",
        ]
    )
    project.run("--inferperf-update=new", "--inferperf-set=sessions=5", "--inferperf-json=past.json")
    planned = project.run("--inferperf-plan", "--inferperf-past=past.json")
    planned.stdout.fnmatch_lines(
        [
            "    ok * c1 ttft_ms.p99 * 5 sessions*",
            "    ok * c2 ttft_ms.p99 * 5 sessions*",
            "    * output_throughput over output_throughput_per_user * 2 points, the least certain figure is c*",
        ]
    )
    planned.stdout.no_fnmatch_line("*time unknown*")


def test_command_line_takes_the_place_of_a_sweep(project: Project) -> None:
    write(project, "throughput_floor(request_throughput=1)")
    result = project.run("-v", "--inferperf-set=concurrency=2")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*::test_it[[]NVFP4-isl16-osl8-c2[]]*"])


@pytest.mark.parametrize(
    ("mark", "gate", "says"),
    [
        ("sweep()", "", "a sweep goes along one keyword, concurrency or request_rate, such as sweep(concurrency=*"),
        ("sweep(isl=[1, 2])", "", "sweep(isl=…): What can be swept: concurrency, request_rate.*"),
        ("sweep(concurrency=[1])", "", "sweep(concurrency=[[]1[]]): give at least two values, each once."),
        ("sweep(concurrency=[0, 1])", "", "concurrency=0 is below its minimum 1."),
        ("sweep(concurrency=[1, 8]), num_requests=4", "", "num_requests=4 is below concurrency=8: *"),
        ("sweep(concurrency=[1, 8]), concurrency=2", "", "concurrency is swept and given too, 2; keep one."),
        ("sweep(concurrency=[1, 8])", 'speedup_floor(over="BF16")', "two engines are compared at one load, *"),
    ],
)
def test_wrong_sweep_is_a_collection_error(project: Project, mark: str, gate: str, says: str) -> None:
    whole = f'inferperf({mark.partition("), ")[0].rstrip(")")}), model="tiny-llama", quant="FP8", isl=1, osl=1'
    rest = mark.partition("), ")[2]
    write(project, *filter(None, [gate]), mark=f"{whole}{', ' + rest if rest else ''})")
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*test_it.py::test_it: *{says}"])
