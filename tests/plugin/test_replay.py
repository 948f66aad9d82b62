"""`--inferperf-replay`: stored results take the road of measured ones, and no engine is built."""

from __future__ import annotations

import json

import pytest

from tests.plugin.conftest import PERFORMANCE, TASK, Project
from tests.plugin.test_sweep import write as write_sweep

FLOOR = "throughput_floor('output_throughput')"
LOSS = "accuracy_loss_ceiling(reference='BF16', points=1.0)"
REPLAY = "--inferperf-replay=r.json"
RECORD = ("--inferperf-update=new", "--inferperf-json=r.json")


@pytest.fixture
def measured(project: Project) -> Project:
    """A project with a baseline, and the results that it was made of."""
    # Times that the true clock does not move.
    project.engine(ttft_ms=10_000.0, tpot_ms=1000.0)
    project.test(PERFORMANCE, FLOOR)
    project.run(*RECORD, "--inferperf-set=sessions=5")
    (project.path / "engines.log").unlink()
    return project


def scaled(project: Project, factor: float) -> None:
    """Make every throughput in the result file another one."""
    path = project.path / "r.json"
    data = json.loads(path.read_text())
    for session in data["records"][0]["result"]["performance"]["sessions"]:
        for item in session["rounds"]:
            item["metrics"]["output_throughput"] *= factor
    path.write_text(json.dumps(data))


def test_an_unchanged_result_passes_and_builds_nothing(measured: Project) -> None:
    result = measured.run(REPLAY)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*ok*output_throughput*baselines/performance/*"])
    assert measured.engines() == []


def test_a_worse_result_fails(measured: Project) -> None:
    scaled(measured, 0.9)
    result = measured.run(REPLAY)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["output_throughput * is below its floor *"])


def test_a_new_tolerance_judges_old_results(measured: Project) -> None:
    scaled(measured, 0.9)
    measured.run(REPLAY, "-o", "inferperf_tolerance=0.25").assert_outcomes(passed=1)


def test_a_mark_that_was_edited_since_is_noted(measured: Project) -> None:
    """Options are no part of a case's identity, so the result is found; no figure in it knows of them."""
    edited = PERFORMANCE.replace("rounds=3", "rounds=4, engine_options={'use_cache': False}")
    measured.test(edited, FLOOR)
    result = measured.run(REPLAY)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines_random(
        [
            "*note: *replayed: measured with rounds 3, and the mark says 4 today*",
            "*replayed: measured with engine_options.use_cache not given, and the mark says False today*",
        ]
    )
    measured.test(PERFORMANCE, FLOOR)
    measured.run(REPLAY).stdout.no_fnmatch_line("*replayed: *")


def test_a_new_gate_judges_old_results(measured: Project) -> None:
    measured.test(PERFORMANCE, "latency_ceiling(ttft_ms_p50=9_000)")
    measured.run(REPLAY).assert_outcomes(failed=1)


def test_new_limits_make_old_results_invalid(measured: Project) -> None:
    path = measured.path / "r.json"
    data = json.loads(path.read_text())
    data["records"][0]["result"]["performance"]["sessions"][0]["telemetry"] = {"gpu0.throttled": 0.5}
    path.write_text(json.dumps(data))
    measured.run(REPLAY).assert_outcomes(passed=1)
    result = measured.run(REPLAY, "-o", "inferperf_max_throttled=0.1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INVALID: the run is invalid: *"])


def test_a_new_limit_of_the_agreement_makes_old_results_invalid(measured: Project) -> None:
    path = measured.path / "r.json"
    data = json.loads(path.read_text())
    (*_, last) = data["records"][0]["result"]["performance"]["sessions"][0]["rounds"]
    last["metrics"]["output_agreement"] = 0.5
    path.write_text(json.dumps(data))
    measured.run(REPLAY).assert_outcomes(passed=1)
    result = measured.run(REPLAY, "-o", "inferperf_min_agreement=0.9")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INVALID: *the answers under load begin as those at concurrency 1 for 50 % *"])


def test_every_point_of_a_sweep_is_judged(project: Project) -> None:
    """At concurrency 1 it is 5.9 requests per second, at 4 it is 23.5."""
    write_sweep(project, "throughput_floor(request_throughput=1)")
    project.run("--inferperf-json=r.json")
    project.run(REPLAY).assert_outcomes(passed=1)
    write_sweep(project, "throughput_floor(request_throughput=8)")
    result = project.run(REPLAY)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  FAIL  c1 request_throughput*", "  ok    c4 request_throughput*"])


def test_a_sweep_without_one_of_its_points_fails(project: Project) -> None:
    write_sweep(project, "throughput_floor(request_throughput=8)")
    project.run("--inferperf-json=r.json")
    path = project.path / "r.json"
    data = json.loads(path.read_text())
    del data["records"][0]["result"]["frontier"][0]
    path.write_text(json.dumps(data))
    result = project.run(REPLAY)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*has a result of this case, but other points of the sweep were measured*"])


def test_what_was_invalid_stays_invalid(measured: Project) -> None:
    path = measured.path / "r.json"
    data = json.loads(path.read_text())
    data["records"][0]["result"]["invalid"] = "the GPU was too hot"
    path.write_text(json.dumps(data))
    result = measured.run(REPLAY)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INVALID: the run is invalid: the GPU was too hot*"])


def test_a_case_without_a_result_fails_and_names_the_nearest(measured: Project) -> None:
    measured.test(PERFORMANCE.replace("osl=8", "osl=9"), FLOOR)
    result = measured.run(REPLAY)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "--inferperf-replay: r.json has no result of this case (model=tiny-llama, *osl=9*). "
            "The nearest is that of test_it.py::test_it?NVFP4-isl16-osl8-c2?: osl=8."
        ]
    )


@pytest.mark.parametrize(("right", "outcome"), [(900, "passed"), (850, "failed")])
def test_answers_are_judged_question_by_question(project: Project, right: int, outcome: str) -> None:
    project.test(TASK.replace("NVFP4", "BF16"), body="inferperf.evaluate()")
    project.run("--inferperf-update=new")
    project.engine(right={"BF16": 900, "NVFP4": right})
    project.test(TASK, LOSS, body="inferperf.evaluate()")
    project.run("--inferperf-json=r.json")
    (project.path / "engines.log").unlink()
    project.run(REPLAY).assert_outcomes(**{outcome: 1})
    assert project.engines() == []


def test_gpus_are_not_asked_for(measured: Project) -> None:
    measured.test(PERFORMANCE, FLOOR, "requires_gpu(sm=100, count=8)")
    measured.run(REPLAY, "--inferperf-require-gpu").assert_outcomes(passed=1)


def test_a_test_that_asks_the_engine_skips(measured: Project) -> None:
    measured.test(PERFORMANCE, fixture="inferperf_engine", body="inferperf_engine.encode(['a'])")
    result = measured.run(REPLAY, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *asks the engine itself, and --inferperf-replay builds none"])


def test_a_body_that_asks_the_engine_fails(measured: Project) -> None:
    measured.test(PERFORMANCE, FLOOR, body="inferperf.measure(); inferperf.engine.encode(['a'])")
    result = measured.run(REPLAY)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*--inferperf-replay builds no engine: *"])


def test_a_body_that_measures_nothing_fails(measured: Project) -> None:
    measured.test(PERFORMANCE, FLOOR, body="pass")
    measured.run(REPLAY).assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--inferperf-update=new", "inferperf baseline update r.json"),
        ("--inferperf-plan", "--inferperf-plan does not go with --inferperf-replay"),
        ("--inferperf-inject=latency:20ms", "--inferperf-inject does not go with --inferperf-replay"),
        ("--inferperf-against=quant=BF16", "--inferperf-against with an engine does not go with"),
    ],
)
def test_what_needs_an_engine_is_an_error(measured: Project, option: str, words: str) -> None:
    result = measured.run(REPLAY, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{words}*"])


def test_a_file_that_is_not_there_is_an_error(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-replay=no.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--inferperf-replay: *no.json: no such file. *"])


def test_a_sweep_is_replayed(project: Project) -> None:
    write_sweep(project, "latency_ceiling(ttft_ms_p50=150)")
    project.run("--inferperf-json=r.json").assert_outcomes(passed=1)
    project.run(REPLAY).assert_outcomes(passed=1)
    write_sweep(project, "latency_ceiling(ttft_ms_p50=50)")
    project.run(REPLAY).assert_outcomes(failed=1)


def test_new_limits_on_answers_make_old_results_invalid(measured: Project) -> None:
    path = measured.path / "r.json"
    data = json.loads(path.read_text())
    for session in data["records"][0]["result"]["performance"]["sessions"]:
        for item in session["rounds"]:
            item["metrics"]["output_agreement"] = 0.5
    path.write_text(json.dumps(data))
    measured.run(REPLAY, "-o", "inferperf_min_agreement=0.4").assert_outcomes(passed=1)
    measured.run(REPLAY, "-o", "inferperf_min_agreement=0.9").assert_outcomes(failed=1)


def test_an_experiment_does_not_stand_for_the_marks(project: Project) -> None:
    """Nor does a replay of it, written out again, lose the name of the override and become a baseline."""
    experiment = "--inferperf-set=engine_options.x=true"
    project.test(PERFORMANCE, "throughput_floor(output_throughput=0.001)")
    project.run("--inferperf-json=r.json", experiment).assert_outcomes(passed=1)
    result = project.run(REPLAY, "--inferperf-json=s.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*r.json was measured with --inferperf-set engine_options.x=True; *"])
    project.run(REPLAY, "--inferperf-json=s.json", experiment).assert_outcomes(passed=1)
    environment = json.loads((project.path / "s.json").read_text())["environment"]
    assert environment["--inferperf-set engine_options.x"] == "True"
