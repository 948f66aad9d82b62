"""`speedup_floor`: measured against a reference engine in the same run; a regression fails, none passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_inferperf.baselines.result_file import read_result_file
from tests.plugin.conftest import PERFORMANCE, TASK, Project

USER = "output_throughput_per_user"
FLOOR = f'speedup_floor("{USER}", over="BF16", ratio=1.5)'


def twice_as_fast(project: Project, **script: Any) -> None:
    """BF16 at 50 tok/s/user, NVFP4 at 100, unless `script` says otherwise."""
    project.engine(**{"tpot_ms": 10, "by": {"BF16": {"tpot_ms": 20}}, **script})


def test_fast_enough_passes(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    twice_as_fast(project)
    result = project.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            f"  ok  {USER} vs BF16  2.000 >= 1.425 x    against BF16",
            f"  note: {USER} vs BF16: 2.000 times as good, between * and * in 3 blocks; floor 1.5 less 5 %",
            "1 gate in 1 test: 1 passed",
        ]
    )


def test_regression_fails(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    twice_as_fast(project, tpot_ms=15)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            f"{USER} vs BF16 1.333 x is below its floor 1.425 (between 1.33* and 1.33* in 3 blocks; 1.5 less 5 %); "
            "1 of 1 gate failed",
            f"  FAIL  {USER} vs BF16  1.333 >= 1.425 x    against BF16",
        ]
    )
    result.stdout.no_fnmatch_line("*To accept*")
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(("tpot_ms", "outcome"), [(10, "passed"), (10.2, "passed"), (11, "failed"), (5, "passed")])
def test_without_a_ratio_it_must_not_be_slower_than_the_reference(
    project: Project, tpot_ms: float, outcome: str
) -> None:
    project.test(PERFORMANCE, f'speedup_floor("{USER}", over="BF16")')
    project.engine(tpot_ms=tpot_ms, by={"BF16": {"tpot_ms": 10}})
    project.run().assert_outcomes(**{outcome: 1})


def test_the_wall_clock_is_judged_by_default(project: Project) -> None:
    project.test(PERFORMANCE, 'speedup_floor(over="BF16", ratio=2, tolerance=0.3)')
    project.engine(round_s=0.01, by={"BF16": {"round_s": 0.03}})
    result = project.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  ok  output_throughput vs BF16 *"])
    project.engine(round_s=0.03, by={"BF16": {"round_s": 0.01}})
    project.run().assert_outcomes(failed=1)


@pytest.mark.parametrize(("ttft_ms", "outcome"), [(100, "passed"), (160, "failed")])
def test_latency_is_better_when_lower(project: Project, ttft_ms: float, outcome: str) -> None:
    """1.5 times as good is the reference divided by 1.5: 133 ms of 200."""
    project.test(PERFORMANCE, 'speedup_floor("ttft_ms.p99", over="BF16", ratio=1.5)')
    project.engine(ttft_ms=ttft_ms, by={"BF16": {"ttft_ms": 200}})
    result = project.run()
    result.assert_outcomes(**{outcome: 1})
    shown = "2.000" if outcome == "passed" else "1.250"
    result.stdout.fnmatch_lines([f"  *  ttft_ms.p99 vs BF16  {shown} >= 1.429 x    against BF16"])


def test_several_metrics_share_their_blocks(project: Project) -> None:
    project.test(PERFORMANCE, f'speedup_floor("{USER}", "ttft_ms.p50", over="BF16", ratio=1.5)')
    twice_as_fast(project)
    result = project.run()
    result.assert_outcomes(failed=1)
    text = "\n".join(result.outlines)
    assert "1 of 2 gates failed" in text
    assert f"ok    {USER} vs BF16" in text
    assert "FAIL  ttft_ms.p50 vs BF16" in text
    assert project.engines() == ["build NVFP4", "build BF16", "close BF16", "close NVFP4"]


def test_engine_options_as_the_reference(project: Project) -> None:
    project.test(PERFORMANCE, f'speedup_floor("{USER}", over={{"engine_options": {{"use_cache": False}}}}, ratio=1.5)')
    project.engine(by={"use_cache=false": {"tpot_ms": 20}})
    result = project.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"  ok  {USER} vs engine_options.use_cache=false  2.000 *"])
    assert "build NVFP4 use_cache=false" in project.engines()


def test_noise_is_inconclusive_after_ten_blocks(project: Project) -> None:
    project.test(PERFORMANCE, f'speedup_floor("{USER}", over="BF16")')
    project.engine(noise=0.2, by={"BF16": {"tpot_ms": 9}})
    result = project.run("--inferperf-json=r.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            f"INCONCLUSIVE: {USER} vs BF16 * x, between * and * in 10 blocks, is not proven above its floor 0.95 "
            "(1 less 5 %); * more blocks would decide it. No more are measured: such blocks resolve a tolerance of * %; "
            "larger rounds (num_requests) less; 1 of 1 gate did not pass",
            f"  OPEN  {USER} vs BF16 *",
        ]
    )
    (record,) = read_result_file(project.path / "r.json").records
    assert len(record.result.comparisons[0].blocks) == 10
    assert record.verdicts[0].next_look is None


def test_inconclusive_may_warn(project: Project) -> None:
    project.test(PERFORMANCE, f'speedup_floor("{USER}", over="BF16")')
    project.engine(noise=0.2, by={"BF16": {"tpot_ms": 9}})
    result = project.run("-W", "default", "-o", "inferperf_on_inconclusive=warn")
    result.assert_outcomes(passed=1, warnings=1)


def test_blocks_are_added_only_while_the_verdict_is_open(project: Project) -> None:
    project.test(PERFORMANCE, f'speedup_floor("{USER}", over="BF16", tolerance=0.1)')
    project.engine(noise=0.1)
    project.run("--inferperf-json=r.json").assert_outcomes(passed=1)
    (record,) = read_result_file(project.path / "r.json").records
    assert len(record.result.comparisons[0].blocks) in (5, 7)


def test_result_file_and_junit(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    twice_as_fast(project)
    project.run("--inferperf-json=r.json", "--junitxml=j.xml").assert_outcomes(passed=1)
    (record,) = read_result_file(project.path / "r.json").records
    (compared,) = record.result.comparisons
    assert record.result.performance is None
    assert (compared.reference.label, compared.reference.spec.quant, compared.engine.quant_algo) == (
        "BF16",
        "BF16",
        None,
    )
    assert [len(block.reference) + len(block.candidate) for block in compared.blocks] == [4, 4, 4]
    assert record.gates[0].reference == compared.reference  # type: ignore[union-attr]
    details = record.verdicts[0].details
    assert details["ratio"] == pytest.approx(2)
    assert float(details["ratio_lower"]) < 2 < float(details["ratio_upper"])
    text = (project.path / "j.xml").read_text()
    for name in ("inferperf.blocks.BF16", f"inferperf.ratio.{USER} vs BF16", f"inferperf.ratio_lower.{USER} vs BF16"):
        assert f'name="{name}"' in text


def test_the_body_gets_the_candidates_figures(project: Project) -> None:
    body = f"run = inferperf.measure(); print('SEEN', round(run['{USER}']), len(run.sessions[0].rounds))"
    project.test(PERFORMANCE, FLOOR, body=body)
    twice_as_fast(project)
    project.run("-s").stdout.fnmatch_lines(["*SEEN 100 6*"])


def test_beside_other_gates_a_session_is_measured_too(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR, f"throughput_floor({USER}=99)")
    twice_as_fast(project)
    result = project.run("--inferperf-json=r.json")
    result.assert_outcomes(passed=1)
    (record,) = read_result_file(project.path / "r.json").records
    assert record.result.performance is not None
    assert len(record.result.performance.sessions[0].rounds) == 3
    assert len(record.result.comparisons) == 1


def test_nothing_of_a_comparison_becomes_a_baseline(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    twice_as_fast(project)
    result = project.run("--inferperf-update=new")
    result.stdout.fnmatch_lines(["not recorded: *: only compared with another engine, which records nothing"])
    assert not (project.path / "baselines").exists()


def test_reload_launches_both_engines_for_every_block(project: Project) -> None:
    project.test(PERFORMANCE, f'speedup_floor("{USER}", over="BF16", ratio=1.5, reload=True)')
    twice_as_fast(project)
    result = project.run("--inferperf-json=r.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  note: * in 3 blocks, each a launch of both engines; floor 1.5 less 5 %"])
    reference = ["build BF16", "close BF16"]
    assert project.engines() == [
        *("build NVFP4", "close NVFP4", *reference, "relaunch NVFP4"),
        *("relaunch NVFP4", "close NVFP4", *reference),
        *(*reference, "relaunch NVFP4"),
        "close NVFP4",
    ]
    assert read_result_file(project.path / "r.json").records[0].result.comparisons[0].reference.reload


def test_reload_with_an_engine_that_cannot(project: Project) -> None:
    project.test(PERFORMANCE, f'speedup_floor("{USER}", over="BF16", reload=True)')
    twice_as_fast(project, can_relaunch=False)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["reload=True launches the candidate anew, and ScriptedEngine cannot be *"])


def test_a_reference_that_does_not_open(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    twice_as_fast(project, by={"BF16": {"build_error": "out of memory"}})
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "the reference engine BF16 did not open beside the candidate: out of memory",
            "Where two engines do not fit at once, * reload=True*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    assert project.engines() == ["build NVFP4", "close NVFP4"]


INVALID: dict[str, tuple[dict[str, object], str]] = {
    "failed requests": ({"failed": 1}, "INVALID: the run is invalid: 2 of 8 requests failed; no gate was judged"),
    "short outputs": ({"short_by": 1}, "INVALID: the run is invalid: request 0 returned 7 tokens *"),
    "another quantization": (
        {"quant_algo": "FP8"},
        "INVALID: the run is invalid: the reference BF16: the engine runs FP8 where the case asks for BF16 *",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_reference(project: Project, name: str) -> None:
    script, expected = INVALID[name]
    project.test(PERFORMANCE, FLOOR)
    twice_as_fast(project, by={"BF16": script})
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([expected])
    assert project.engines()[-2:] == ["close BF16", "close NVFP4"]


def test_a_crash_in_the_blocks_closes_both(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    twice_as_fast(project, by={"BF16": {"generate_error": "the reference died"}})
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the reference died"])
    assert project.engines() == ["build NVFP4", "build BF16", "close BF16", "close NVFP4"]


def test_not_measured_fails(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR, body="pass")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [f"{USER} vs BF16 was not measured; 1 of 1 gate failed", "Next: call inferperf.measure*"]
    )


def test_metric_without_a_sample_fails(project: Project) -> None:
    project.test(
        'inferperf(model="tiny-llama", quant="NVFP4", isl=4, osl=1)', 'speedup_floor("tpot_ms.p50", over="BF16")'
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["tpot_ms.p50 vs BF16 was not measured: the workload has no sample of it; *"])


def test_a_known_slowness_may_be_an_xfail_and_an_invalid_run_not(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR, "xfail(strict=True, reason='known')")
    twice_as_fast(project, tpot_ms=15)
    project.run().assert_outcomes(xfailed=1)
    twice_as_fast(project, by={"BF16": {"failed": 1}})
    project.run().assert_outcomes(failed=1)


WRONG = {
    '"output_throughputs", over="BF16"': "unknown metric 'output_throughputs'.",
    '"ttft_ms", over="BF16"': "a statistic is missing in 'ttft_ms'. *",
    '3, over="BF16"': "3 is an int; a positional argument names a metric.",
    "": 'over is missing; name the engine to compare with, such as over="BF16".',
    'over="bf16"': "unknown over 'bf16'.",
    'over="FP8+kv_fp4"': "unknown over 'FP8+kv_fp4'.",
    "over=3": 'over=3; it takes a precision, such as over="BF16", or engine keywords *',
    "over={}": 'over={}; it takes a precision, such as over="BF16", or engine keywords *',
    'over={"quants": "BF16"}': "over has an unknown engine keyword 'quants'.",
    'over={"isl": 3}': "over has an unknown engine keyword 'isl'.",
    'over={"tp": "two"}': "over=[{]'tp': 'two'[}]: tp='two' is a str; tp takes an int.",
    'over={"kv_cache_dtype": "fp8", "quant": "BF16"}': "over=*: kv_cache_dtype='fp8' needs a quantized checkpoint, *",
    'over="NVFP4"': "over='NVFP4' is the engine of the case itself: both would regress together, so the gate could not *",
    'over={"engine_options": {}}': "over=*is the engine of the case itself: *",
    'over={"served_model_name": "other"}': "over=*is the engine of the case itself: *",
    'over="BF16", ratio=0': "ratio=0 must be above 0; 1.5 is one and a half times as good.",
    'over="BF16", ratio="fast"': "ratio='fast' is a str; it takes a number.",
    'over="BF16", tolerance=5': "tolerance=5.0 must lie between 0 and 1; 0.05 is 5 %.",
    'over="BF16", reload=1': "reload=1 is an int; it takes True or False.",
    'over="BF16", rate=2': "unknown keyword 'rate'.",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_marks_are_collection_errors(project: Project, arguments: str) -> None:
    project.test(PERFORMANCE, f"speedup_floor({arguments})")
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"test_it.py::test_it: speedup_floor: {WRONG[arguments]}"])
    assert project.engines() == []


def test_a_task_has_no_speed(project: Project) -> None:
    project.test(TASK, FLOOR)
    project.run().stdout.fnmatch_lines(["*speedup_floor: needs a workload to measure; *"])


def test_what_belongs_to_the_old_quantization_does_not_outlive_it(project: Project) -> None:
    (project.path / "texts.jsonl").write_text("")
    mark = PERFORMANCE.replace(
        'quant="NVFP4"', 'quant="NVFP4", kv_cache_dtype="fp8", recipe="MY_CFG", calib_dataset="texts.jsonl"'
    )
    project.test(mark, FLOOR, f'speedup_floor("{USER}", over="FP8+kv_fp8")', f'speedup_floor("{USER}", over="NVFP4")')
    project.run("--inferperf-json=r.json")
    compared = read_result_file(project.path / "r.json").records[0].result.comparisons
    specs = {item.reference.label: item.reference.spec for item in compared}
    assert (specs["BF16"].recipe, specs["BF16"].kv_cache_dtype, specs["BF16"].calib_dataset) == ("", "auto", "")
    assert (specs["FP8+kv_fp8"].recipe, specs["FP8+kv_fp8"].kv_cache_dtype) == ("", "fp8")
    assert specs["FP8+kv_fp8"].calib_dataset.endswith("texts.jsonl")
    assert (specs["NVFP4"].recipe, specs["NVFP4"].kv_cache_dtype) == ("MY_CFG", "auto")


def test_identity_in_the_file_is_plain_data(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    twice_as_fast(project)
    project.run("--inferperf-json=r.json")
    (record,) = json.loads((project.path / "r.json").read_text())["records"]
    (gate,) = record["gates"]
    assert (gate["type"], gate["ratio"], gate["tolerance"], gate["reference"]["label"]) == (
        "speedup_floor",
        1.5,
        None,
        "BF16",
    )
