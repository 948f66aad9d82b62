"""`throughput_floor`: a real regression fails, no regression passes, absence fails."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import PERFORMANCE, TASK, Project

FLOOR = 'throughput_floor("output_throughput_per_user")'


@pytest.fixture
def recorded(project: Project) -> Project:
    """A project with a baseline of 100 tok/s/user."""
    project.test(PERFORMANCE, FLOOR)
    project.engine(tpot_ms=10)
    project.run("--inferperf-update=new")
    return project


def test_missing_baseline_fails_and_says_what_to_type(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "output_throughput_per_user has no baseline (baselines/performance/test-cpu-2x/tiny-llama.json: *; "
            "key NVFP4-isl16-osl8-c2); 1 of 1 gate failed",
            "  FAIL  output_throughput_per_user  100.00 >= - tok/s/user  *",
            "Next: pytest 'test_it.py::test_it[[]NVFP4-isl16-osl8-c2[]]' --inferperf-update=new",
        ]
    )


def test_the_run_that_records_is_never_green(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.run("--inferperf-update=new").assert_outcomes(failed=1)
    assert (project.path / "baselines/performance/test-cpu-2x/tiny-llama.json").exists()


def test_unchanged_passes(recorded: Project) -> None:
    result = recorded.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "  ok  output_throughput_per_user  100.00 >= 95.00 tok/s/user  baseline 100.00 -5 %  "
            "baselines/performance/test-cpu-2x/tiny-llama.json",
            "1 gate in 1 test: 1 passed",
        ]
    )


def test_regression_fails(recorded: Project) -> None:
    recorded.engine(tpot_ms=11)
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "output_throughput_per_user 90.9091 tok/s/user is below its floor 95 (-9.1 % vs baseline 100); "
            "1 of 1 gate failed",
            "  FAIL  output_throughput_per_user  90.91 >= 95.00 tok/s/user  baseline 100.00 -5 %  baselines/*",
            "  note: output_throughput_per_user: loss 9.09 %, between 9.06 % and 9.12 % (1 session against 10 stored)",
            "To accept: pytest 'test_it.py::test_it[[]NVFP4-isl16-osl8-c2[]]' --inferperf-update=all --inferperf-reason=*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_slower_wall_clock_fails_output_throughput(project: Project) -> None:
    """The engine's own token times cannot hide a slow round: throughput is judged on the wall clock."""
    project.test(PERFORMANCE, 'throughput_floor("output_throughput", tolerance=0.5)')
    project.engine(round_s=0.04)
    project.run("--inferperf-update=new")
    project.run().assert_outcomes(passed=1)
    project.engine(round_s=0.4)
    project.run().assert_outcomes(failed=1)


def test_mark_tolerance_wins(recorded: Project) -> None:
    recorded.engine(tpot_ms=11)
    recorded.test(PERFORMANCE, 'throughput_floor("output_throughput_per_user", tolerance=0.2)')
    recorded.run().assert_outcomes(passed=1)


def test_ini_tolerance(recorded: Project) -> None:
    recorded.engine(tpot_ms=11)
    recorded.run("-o", "inferperf_tolerance=0.2").assert_outcomes(passed=1)


def test_improvement_passes_and_says_that_the_baseline_is_stale(recorded: Project) -> None:
    recorded.engine(tpot_ms=5)
    result = recorded.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "  note: output_throughput_per_user: better by at least * %: the baseline is stale, tighten it: --inferperf-update=tighten, *"
        ]
    )


@pytest.mark.parametrize(("limit", "outcome"), [("99", "passed"), ("101", "failed")])
def test_absolute_limit_needs_no_baseline(project: Project, limit: str, outcome: str) -> None:
    project.test(PERFORMANCE, f"throughput_floor(output_throughput_per_user={limit})")
    project.run().assert_outcomes(**{outcome: 1})


def test_every_gate_is_shown_not_only_the_first_failure(project: Project) -> None:
    project.test(
        PERFORMANCE,
        "throughput_floor(output_throughput_per_user=200)",
        "latency_ceiling(ttft_ms_p99=50, tpot_ms_p50=10.5)",
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    text = "\n".join(result.outlines)
    assert "2 of 3 gates failed" in text
    for row in ("FAIL  output_throughput_per_user", "FAIL  ttft_ms.p99", "ok    tpot_ms.p50"):
        assert row in text


def test_gate_without_its_measurement_fails(project: Project) -> None:
    project.test(PERFORMANCE, "throughput_floor(output_throughput=1)", body="pass")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "output_throughput was not measured; 1 of 1 gate failed",
            "Next: call inferperf.measure() in the test body",
        ]
    )


def test_metric_without_a_sample_fails(project: Project) -> None:
    """TPOT does not exist at an OSL of 1: the gate must not pass for want of data."""
    project.test('inferperf(model="tiny-llama", isl=4, osl=1)', "latency_ceiling(tpot_ms_p50=1000)")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["tpot_ms.p50 was not measured: the workload has no sample of it; *"])


INVALID: dict[str, tuple[dict[str, object], str]] = {
    "failed requests": ({"failed": 1}, "INVALID: the run is invalid: 3 of 6 requests failed; no gate was judged"),
    "short outputs": (
        {"short_by": 1},
        "INVALID: the run is invalid: request 0 returned 7 tokens where the workload asks for exactly 8 (osl).; *",
    ),
    "another quantization": (
        {"quant_algo": "FP8"},
        "INVALID: the run is invalid: the engine runs FP8 where the case asks for NVFP4 (NVFP4); *",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_run_is_neither_pass_nor_regression(project: Project, name: str) -> None:
    script, expected = INVALID[name]
    project.test(PERFORMANCE, "throughput_floor(output_throughput=0.001)")
    project.engine(**script)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([expected, "  INVALID  output_throughput  *"])


def test_expected_regression_is_an_xfail(recorded: Project) -> None:
    recorded.test(PERFORMANCE, FLOOR, 'xfail(strict=True, reason="issue 7")')
    recorded.run().assert_outcomes(failed=1)  # strict: it passes unexpectedly
    recorded.engine(tpot_ms=20)
    recorded.run().assert_outcomes(xfailed=1)


def test_body_failure_is_shown_with_the_gates_and_nothing_is_recorded(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR, body="inferperf.measure(); assert 1 == 2")
    result = project.run("--inferperf-update=new")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*assert 1 == 2*", "*inferperf gates*", "output_throughput_per_user has no baseline *"]
    )
    assert not list((project.path / "baselines").rglob("*.json"))


WRONG = {
    "unknown metric": (
        'throughput_floor("output_throughput_per_gpus")',
        [
            "*throughput_floor: unknown metric 'output_throughput_per_gpus'.",
            "Did you mean 'output_throughput_per_gpu'? Metrics with a floor: acceptance_length, goodput, output_agreement, "
            "output_throughput, output_throughput_per_gpu, output_throughput_per_user, request_throughput, total_throughput.",
        ],
    ),
    "floor on a latency": (
        'throughput_floor("ttft_ms.p99")',
        ["*throughput_floor: 'ttft_ms.p99' is better when lower; use latency_ceiling."],
    ),
    "statistic on a rate": (
        'throughput_floor("output_throughput.p99")',
        ["*throughput_floor: 'output_throughput' is one figure per round and takes no statistic; write *"],
    ),
    "no metric": ("throughput_floor()", ["*throughput_floor: names no metric. Metrics with a floor: *"]),
    "number as metric": (
        "throughput_floor(18000)",
        ["*throughput_floor: 18000 is an int; a positional argument names a *"],
    ),
    "text as limit": (
        'throughput_floor(output_throughput="fast")',
        ["*throughput_floor: output_throughput='fast' is a str; it takes a number."],
    ),
    "nan": (
        'throughput_floor(output_throughput=float("nan"))',
        ["*throughput_floor: output_throughput=nan is not a finite number."],
    ),
    "zero cannot fail": (
        "throughput_floor(output_throughput=0)",
        ["*throughput_floor: output_throughput=0 must be above 0: a limit of 0 cannot be judged."],
    ),
    "tolerance of nothing": (
        "throughput_floor(output_throughput=1, tolerance=0.1)",
        ["*throughput_floor: tolerance=0.1 widens a baseline, and absolute limits have none. Name a metric whose *"],
    ),
    "misspelt keyword": (
        'throughput_floor("output_throughput", tolerence=0.1)',
        ["*throughput_floor: unknown metric or keyword 'tolerence'.", "Did you mean 'tolerance'? *"],
    ),
    "tolerance": (
        'throughput_floor("output_throughput", tolerance=5)',
        ["*throughput_floor: tolerance=5.0 must lie between 0 and 1; 0.05 is 5 %."],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_mark(project: Project, name: str) -> None:
    mark, expected = WRONG[name]
    project.test(PERFORMANCE, mark)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(expected)
    assert project.engines() == []


def test_baseline_and_absolute_limit_on_one_metric(recorded: Project) -> None:
    """Both are judged, and JUnit keeps both."""
    recorded.test(PERFORMANCE, FLOOR, "throughput_floor(output_throughput_per_user=200)")
    result = recorded.run("--junitxml=junit.xml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*; 1 of 2 gates failed", "  ok    *>=  95.00 *", "  FAIL  *>= 200.00 *mark"])
    text = (recorded.path / "junit.xml").read_text()
    assert 'name="inferperf.verdict.output_throughput_per_user" value="PASS"' in text
    assert 'name="inferperf.verdict.output_throughput_per_user.mark" value="FAIL"' in text


def test_innermost_mark_wins_for_the_same_gate(recorded: Project) -> None:
    recorded.engine(tpot_ms=11)
    tight = 'throughput_floor("output_throughput_per_user", tolerance=0.01)'
    wide = 'throughput_floor("output_throughput_per_user", tolerance=0.5)'
    recorded.test(PERFORMANCE, tight, wide)
    recorded.run().assert_outcomes(passed=1)
    recorded.test(PERFORMANCE, wide, tight)
    recorded.run().assert_outcomes(failed=1)


def test_floor_on_a_task(project: Project) -> None:
    project.test(TASK, FLOOR)
    result = project.run()
    result.stdout.fnmatch_lines(
        ["*throughput_floor: needs a workload to measure; give the inferperf mark isl= and osl=*"]
    )
