"""`--inferperf-against`: another engine, or another run, in the place of the baseline files."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from pytest_inferperf.baselines.result_file import read_result_file
from tests.plugin.conftest import PERFORMANCE, TASK, Project

USER = "output_throughput_per_user"
FLOOR = f'throughput_floor("{USER}")'
CEILING = 'accuracy_loss_ceiling(reference="BF16", points=2)'
EVALUATE = "inferperf.evaluate()"


# Another engine.


@pytest.mark.parametrize(("tpot_ms", "outcome"), [(10, "passed"), (11, "failed")])
def test_a_floor_is_judged_against_the_other_engine(project: Project, tpot_ms: float, outcome: str) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.engine(tpot_ms=tpot_ms, by={"BF16": {"tpot_ms": 10}})
    result = project.run("--inferperf-against=quant=BF16", "--inferperf-json=r.json")
    result.assert_outcomes(**{outcome: 1})
    label, ratio = ("ok", "1.000") if outcome == "passed" else ("FAIL", "0.9091")
    result.stdout.fnmatch_lines(
        [
            "inferperf: 1 case, 1 engine, 1 gate, baselines in baselines, against quant=BF16",
            f"  {label}  {USER} vs quant=BF16  {ratio} >= 0.9500 x    against quant=BF16",
        ]
    )
    result.stdout.no_fnmatch_line("*To accept*")
    file = read_result_file(project.path / "r.json")
    assert file.environment["inferperf_against"] == "quant=BF16"
    assert file.records[0].result.comparisons[0].reference.spec.quant == "BF16"
    assert project.engines() == ["build NVFP4", "build BF16", "close BF16", "close NVFP4"]


def test_a_gate_keeps_its_own_tolerance(project: Project) -> None:
    project.test(PERFORMANCE, f'throughput_floor("{USER}", tolerance=0.2)')
    project.engine(tpot_ms=11, by={"BF16": {"tpot_ms": 10}})
    result = project.run("--inferperf-against=quant=BF16")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"  ok  {USER} vs quant=BF16  0.9091 >= 0.8000 x *"])


def test_absolute_limits_and_floors_stay(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR, f"throughput_floor({USER}=200)", 'speedup_floor("ttft_ms.p50", over="FP8")')
    result = project.run("--inferperf-against=quant=BF16")
    result.assert_outcomes(failed=1)
    text = "\n".join(result.outlines)
    for row in (f"FAIL  {USER} ", f"ok    {USER} vs quant=BF16", "ok    ttft_ms.p50 vs FP8"):
        assert row in text


def test_engine_options(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.engine(tpot_ms=11, by={"use_cache=false": {"tpot_ms": 10}})
    result = project.run("--inferperf-against=engine_options.use_cache=false")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"{USER} vs engine_options.use_cache=false 0.9091 x is below its floor 0.95 *"])


def test_reload(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.run("--inferperf-against=quant=BF16,reload=true").assert_outcomes(passed=1)
    assert project.engines().count("relaunch NVFP4") == project.engines().count("build BF16") == 3


def test_the_same_engine_is_an_a_a_comparison(project: Project) -> None:
    project.test(PERFORMANCE.replace("NVFP4", "BF16"), FLOOR)
    result = project.run("--inferperf-against=quant=BF16")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  note: the reference is the same engine: an A/A comparison shows the noise alone"])


@pytest.mark.parametrize(("right", "outcome"), [(895, "passed"), (850, "failed")])
def test_a_ceiling_is_judged_against_the_other_engines_answers(project: Project, right: int, outcome: str) -> None:
    project.test(TASK, CEILING, body=EVALUATE)
    project.engine(right={"BF16": 950, "FP8": 900, "NVFP4": right})
    result = project.run("--inferperf-against=quant=FP8", "--inferperf-json=r.json")
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines(["  * exact_match loss vs quant=FP8 * <= 2.000 points * against quant=FP8"])
    (compared,) = read_result_file(project.path / "r.json").records[0].result.comparisons
    assert compared.accuracy is not None
    assert compared.accuracy.score == 0.9
    assert project.engines() == ["build NVFP4", "build FP8", "close FP8", "close NVFP4"]


def test_the_reference_answers_a_task_once_in_a_run(project: Project) -> None:
    project.test(TASK.replace('"NVFP4"', '["FP8", "NVFP4", "INT4_AWQ"]'), CEILING, body=EVALUATE)
    project.run("--inferperf-against=quant=BF16").assert_outcomes(passed=3)
    assert project.engines().count("build BF16") == 1


def test_the_reference_is_asked_everything_and_the_candidate_until_it_is_decided(project: Project) -> None:
    project.test(TASK, 'accuracy_loss_ceiling(reference="BF16", points=5)', body=EVALUATE)
    result = project.run("--inferperf-against=quant=BF16", "--inferperf-json=r.json")
    result.assert_outcomes(passed=1)
    (record,) = read_result_file(project.path / "r.json").records
    assert record.result.accuracy is not None
    assert record.result.comparisons[0].accuracy is not None
    assert record.result.accuracy.is_partial
    assert len(record.result.comparisons[0].accuracy.outcomes) == 1000


def test_an_accuracy_floor_alone_needs_no_reference(project: Project) -> None:
    project.test(TASK, "accuracy_floor(points=50)", body=EVALUATE)
    project.run("--inferperf-against=quant=BF16").assert_outcomes(passed=1)
    assert project.engines() == ["build NVFP4", "close NVFP4"]


def test_answers_with_reload(project: Project) -> None:
    project.test(TASK, CEILING, body=EVALUATE)
    project.run("--inferperf-against=quant=BF16,reload=true").assert_outcomes(passed=1)
    assert project.engines() == [
        "build NVFP4",
        "close NVFP4",
        "build BF16",
        "close BF16",
        "relaunch NVFP4",
        "close NVFP4",
    ]


def test_an_invalid_reference(project: Project) -> None:
    project.test(TASK, CEILING, body=EVALUATE)
    project.engine(by={"BF16": {"quant_algo": "FP8"}})
    result = project.run("--inferperf-against=quant=BF16")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INVALID: the run is invalid: the reference quant=BF16: the engine runs FP8 where *"])


def test_keywords_that_do_not_fit_a_case_are_a_collection_error(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-against=kv_cache_dtype=fp8,quant=BF16")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["test_it.py::test_it: --inferperf-against kv_cache_dtype=fp8,quant=BF16: kv_cache_dtype='fp8' needs a quant*"]
    )


def test_another_interpreter_needs_a_shipped_backend(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run(f"--inferperf-against=python={sys.executable}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*python={sys.executable} runs a shipped backend under another interpreter, and *"])


# Another run.


def recorded(project: Project, *marks: str, body: str = "inferperf.measure()", **script: Any) -> None:
    """Write old.json with what the scripted engine does."""
    project.test(*marks, body=body)
    project.engine(**script)
    project.run("--inferperf-json=old.json")


@pytest.mark.parametrize(("tpot_ms", "outcome"), [(10.1, "passed"), (11, "failed")])
def test_a_floor_is_judged_against_the_other_run(project: Project, tpot_ms: float, outcome: str) -> None:
    recorded(project, PERFORMANCE, FLOOR, tpot_ms=10)
    project.engine(tpot_ms=tpot_ms)
    result = project.run("--inferperf-against=old.json")
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines(
        [
            "inferperf: 1 case, 1 engine, 1 gate, baselines in baselines, against old.json",
            f"  *  {USER}  * >= 95.00 tok/s/user  baseline 100.00 -5 %  against old.json",
        ]
    )
    result.stdout.no_fnmatch_line("*To accept*")


def test_a_faster_run_offers_no_update_of_a_file_that_was_not_read(project: Project) -> None:
    recorded(project, PERFORMANCE, FLOOR, tpot_ms=10)
    project.engine(tpot_ms=5)
    result = project.run("--inferperf-against=old.json")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*tighten*")


@pytest.mark.parametrize(("right", "outcome"), [(895, "passed"), (850, "failed")])
def test_a_ceiling_is_judged_against_the_other_run(project: Project, right: int, outcome: str) -> None:
    """The same case of the other run is the reference, whichever precision the mark names."""
    recorded(project, TASK, CEILING, body=EVALUATE, right={"BF16": 950, "NVFP4": 900})
    project.engine(right={"BF16": 950, "NVFP4": right})
    result = project.run("--inferperf-against=old.json")
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines(["  * exact_match loss vs old.json * <= 2.000 points * against old.json"])


def test_other_questions_cannot_be_paired(project: Project) -> None:
    recorded(project, TASK, CEILING, body=EVALUATE)
    project.engine(digest="d2")
    result = project.run("--inferperf-against=old.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*cannot be paired: against old.json answers 1000 documents *"])


def test_a_case_that_the_other_run_lacks(project: Project) -> None:
    recorded(project, PERFORMANCE, FLOOR)
    project.test(PERFORMANCE.replace("isl=16", "isl=32"), FLOOR)
    result = project.run("--inferperf-against=old.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            f"{USER} has no baseline (against old.json: no result of this case; key NVFP4-isl32-osl8-c2); 1 of 1 *",
            "Next: record it where the reference runs: pytest 'test_it.py::test_it[[]NVFP4-isl32-osl8-c2[]]' "
            "--inferperf-json=old.json",
        ]
    )


def test_other_hardware_is_another_case(project: Project) -> None:
    recorded(project, PERFORMANCE, FLOOR, hardware="Old CPU")
    project.engine()
    result = project.run("--inferperf-against=old.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*its result of this case is from 2 x Old CPU, not 2 x Test CPU; *"])


@pytest.mark.parametrize(
    ("script", "body", "reason"),
    [
        ({"failed": 1}, "inferperf.measure()", "the run is invalid: 3 of 6 requests failed"),
        ({}, "inferperf.measure(); 1 / 0", "the run is invalid: the test body failed: ZeroDivisionError: *"),
        ({}, "pass", ""),
    ],
)
def test_what_is_no_reference(project: Project, script: dict[str, object], body: str, reason: str) -> None:
    recorded(project, PERFORMANCE, FLOOR, body=body, **script)
    project.engine()
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-against=old.json")
    result.assert_outcomes(failed=1)
    why = f"its result of this case is no reference: {reason}" if reason else "its performance was not measured"
    result.stdout.fnmatch_lines([f"{USER} has no baseline (against old.json: {why}; key *"])


def test_an_evaluation_that_ended_early_is_no_reference(project: Project) -> None:
    project.test(TASK, "accuracy_floor(points=50)", body=EVALUATE)
    project.run("--inferperf-json=old.json").assert_outcomes(passed=1)
    project.test(TASK, CEILING, body=EVALUATE)
    result = project.run("--inferperf-against=old.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*its result of this case is no reference: the evaluation stopped after 250 of 1000 questions, *"]
    )


def test_of_two_tests_of_a_case_the_same_test_counts(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.test(PERFORMANCE, FLOOR, name="test_other")
    project.run("--inferperf-json=old.json")
    path = project.path / "old.json"
    data = json.loads(path.read_text())
    for record in data["records"]:
        if "test_other" in record["nodeid"]:
            for item in record["result"]["performance"]["sessions"][0]["rounds"]:
                item["metrics"][USER] = 1000.0
    path.write_text(json.dumps(data))
    project.run("--inferperf-against=old.json").assert_outcomes(passed=1, failed=1)


# What is refused.

FORMS = "quant=BF16,engine_options.NAME=VALUE"
WRONG = {
    "old.json": f"'old.json': no such file. Give the path of a result file (*), or how the reference engine differs: {FORMS}.",
    "": "'': no such file. *",
    "qant=BF16": ": unknown keyword 'qant'.",
    "isl=3": ": unknown keyword 'isl'.",
    "engine_options=3": ": unknown keyword 'engine_options'.",
    "quant=bf16": ": unknown quant 'bf16'.",
    "tp=two": ": tp='two' is a str; tp takes an int.",
    "tp=0": ": tp=0 is below its minimum 1.",
    "engine_options.api_key=x": ": engine option 'api_key' looks like a secret; *",
    "quant=FP8,quant=BF16": "'quant=FP8,quant=BF16': says quant twice; keep one.",
    "quant=": f"'quant=': 'quant=' is not KEYWORD=VALUE. *{FORMS}.",
    "quant=FP8,": f"'quant=FP8,': '' is not KEYWORD=VALUE. *{FORMS}.",
    "reload=true": f"'reload=true': names no engine keyword, so both engines would be one. *{FORMS}.",
    "quant=FP8,reload=yes": ": reload=yes: write reload=true or reload=false.",
    "python=nowhere/python": ": python=nowhere/python: no such program. Give the interpreter of the other environment.",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_text_is_a_usage_error(project: Project, text: str) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run(f"--inferperf-against={text}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    separator = "" if WRONG[text].startswith(":") else " "
    result.stderr.fnmatch_lines([f"ERROR: --inferperf-against{separator}{WRONG[text]}"])
    result.stderr.no_fnmatch_line("*Traceback*")
    assert project.engines() == []


def test_valid_keywords_are_listed(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-against=qant=BF16")
    result.stderr.fnmatch_lines(
        [
            "Did you mean 'quant'? Keywords: api_key_env, backend, calib_dataset, calib_size, engine_options.NAME, ep, "
            "hardware, kv_cache_dtype, model, pp, python, qat_dataset, qat_learning_rate, qat_steps, quant, recipe, reload, serve, "
            "served_model_name, tp, url. Or the path of a result file."
        ]
    )


def test_a_file_that_is_no_result(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    (project.path / "old.json").write_text("{}")
    result = project.run("--inferperf-against=old.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --inferperf-against: *old.json: *"])


def test_it_does_not_go_with_an_update(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-against=quant=BF16", "--inferperf-update=new")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --inferperf-update does not go with --inferperf-against: *"])


def test_accuracy_is_compared_under_xdist(project: Project) -> None:
    recorded(project, TASK, CEILING, body=EVALUATE, right={"BF16": 900})
    project.engine(right={"BF16": 900, "NVFP4": 850})
    for against in ("old.json", "quant=BF16"):
        result = project.pytester.runpytest_subprocess("-n", "1", f"--inferperf-against={against}")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"  FAIL  exact_match loss vs {against} *  against {against}"])


def test_performance_is_refused_under_xdist(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.pytester.runpytest_subprocess("-n", "1", "--inferperf-against=quant=BF16")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*performance is not measured under xdist*"])


def test_part_of_the_answers_is_no_reference_and_the_next_step_asks_for_all(project: Project) -> None:
    project.test(TASK, "accuracy_floor(points=50)", body="inferperf.evaluate()")
    project.run("--inferperf-json=old.json").assert_outcomes(passed=1)
    project.test(TASK, 'accuracy_loss_ceiling(reference="BF16", points=1)', body="inferperf.evaluate()")
    result = project.run("--inferperf-against=old.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*its result of this case is no reference: the evaluation stopped after 250 of 1000 questions*",
            "Next: * --inferperf-json=old.json --inferperf-set=early_stop=false",
        ]
    )
    project.run("--inferperf-json=old.json", "--inferperf-set=early_stop=false")
    project.run("--inferperf-against=old.json").assert_outcomes(passed=1)
