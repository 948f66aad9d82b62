"""`--inferperf-plan`, `--inferperf-past` and `--inferperf-power`: nothing is built, and everything is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines import hardware
from pytest_inferperf.engines.hardware import Gpu
from tests.plugin.conftest import PERFORMANCE, TASK, Project

ROOT = Path(__file__).parents[2]
FLOOR = 'throughput_floor("output_throughput_per_user")'
LOSS = 'accuracy_loss_ceiling(reference="BF16", points=2.0)'
NODE = "test_it.py::test_it[[]NVFP4-isl16-osl8-c2[]]"
FILE = "baselines/performance/test-cpu-2x/tiny-llama.json"
Store = Callable[..., Path]


@pytest.fixture
def stored(project: Project) -> Store:
    """Give the performance baseline of the scripted engine these session levels, in tok/s/user."""

    def store(*levels: float, tolerance: float | None = None) -> Path:
        project.test(PERFORMANCE, FLOOR)
        project.run("--inferperf-update=new")
        path = project.path / FILE
        data: dict[str, Any] = json.loads(path.read_text())
        (entry,) = data["entries"].values()
        metric = entry["metrics"]["output_throughput_per_user"]
        metric["sessions"] = [[level] * 3 for level in levels]
        if tolerance is not None:
            metric["tolerance"] = tolerance
        path.write_text(json.dumps(data))
        (project.path / "engines.log").unlink()
        return path

    return store


def test_a_project_without_baselines(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR, "latency_ceiling(ttft_ms_p99=500)")
    result = project.run("--inferperf-plan")
    assert result.ret == pytest.ExitCode.OK
    assert project.engines() == []
    assert not (project.path / "baselines").exists()
    result.stdout.fnmatch_lines(
        [
            "inferperf: 1 case, 1 engine, 2 gates, baselines in baselines",
            "",
            "engine NVFP4 tiny-llama",
            "  checkpoint  left to pytest_inferperf_make_engine (a hook of the project or a plugin)",
            "  GPUs        none needed; NVFP4 is native from SM 100 on",
            f"  {NODE}",
            "    MISSING  output_throughput_per_user  tolerance 5 %  baselines/performance: no entry for any hardware; "
            "key NVFP4-isl16-osl8-c2",
            "    ok       ttft_ms.p99                 limit 500 ms   absolute limit: no baseline",
            "",
            "1 case, 1 engine, 2 gates: time unknown, no past result (--inferperf-past=RESULTS.json names one)",
            "1 gate has no baseline",
            "",
            "Next: pytest 'test_it.py::test_it[[]NVFP4-isl16-osl8-c2[]]' --inferperf-update=new",
            "",
            "*no tests ran in*",
        ],
        consecutive=True,
    )


def test_calibrated_baseline(project: Project, stored: Store) -> None:
    stored(99.0, 99.5, 100.0, 100.5, 101.0, 99.0, 99.5, 100.0, 100.5, 101.0)
    result = project.run("--inferperf-plan")
    result.stdout.fnmatch_lines(
        [
            "    ok  output_throughput_per_user  tolerance 5 %  10 sessions on 2 x Test CPU, sd 0.75 %: finds * % with "
            "90 % power in up to 5 sessions; an unchanged engine passes after 1.*; could hold * %",
            "1 case, 1 engine, 1 gate: *",
        ]
    )
    result.stdout.no_fnmatch_line("Next:*")
    assert project.engines() == []


def test_the_judge_of_the_plan_is_that_of_the_run(project: Project, stored: Store) -> None:
    """A tolerance that the stored sessions cannot resolve is an error row, and is counted; the plan exits 0."""
    stored(90.0, 95.0, 100.0, 105.0, 110.0, 100.0, tolerance=0.02)
    result = project.run("--inferperf-plan")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "    ERROR  output_throughput_per_user  tolerance 2 %  6 sessions on 2 x Test CPU, sd *: a tolerance of 2 % "
            "cannot be resolved by 6 stored sessions that vary by * %: the smallest is * %",
            "1 gate cannot decide at its tolerance",
        ]
    )


def test_uncalibrated_baseline(project: Project, stored: Store) -> None:
    stored(100.0)
    result = project.run("--inferperf-plan")
    result.stdout.fnmatch_lines(
        ["    plain  *  1 session on 2 x Test CPU of the 5 it takes: *", "1 gate is uncalibrated"]
    )


def test_a_broken_baseline_file(project: Project, stored: Store) -> None:
    stored(100.0).write_text("{")
    expected = f"    ERROR  output_throughput_per_user  tolerance 5 %  {FILE}: line 1*not JSON*"
    project.run("--inferperf-plan").stdout.fnmatch_lines([expected])
    # A past run says on which hardware it will be looked up.
    project.run("--inferperf-json=r.json")
    project.run("--inferperf-plan", "--inferperf-past=r.json").stdout.fnmatch_lines([expected])


# Accuracy.


def test_flips_on_file_and_assumed(project: Project) -> None:
    project.engine(right={"BF16": 900, "NVFP4": 880})
    for quant in ("BF16", "NVFP4"):
        project.test(TASK.replace("NVFP4", quant), LOSS, body="inferperf.evaluate()")
        project.run("--inferperf-update=new")
    (project.path / "engines.log").unlink()
    result = project.run("--inferperf-plan")
    result.stdout.fnmatch_lines(
        [
            "    *  exact_match loss vs BF16  tolerance 2 points  1000 questions, 2 % flips on file: finds * points with "
            "90 % power; *"
        ]
    )
    project.test(TASK.replace("NVFP4", "FP8"), LOSS, body="inferperf.evaluate()")
    result = project.run("--inferperf-plan")
    result.stdout.fnmatch_lines(["    *  1000 questions, 5 % flips assumed: finds *"])
    assert project.engines() == []


def test_a_metric_known_only_to_the_task(project: Project) -> None:
    """Two metrics of a task are on file: the mark, or a past run, says which one is meant."""
    project.test(TASK.replace("NVFP4", "BF16"), LOSS, body="inferperf.evaluate()")
    project.run("--inferperf-update=new", "--inferperf-json=r.json")
    path = project.path / "baselines/accuracy/tiny-llama.json"
    data = json.loads(path.read_text())
    entry = json.loads(json.dumps(data["tasks"]["gsm8k-exact_match"]))
    entry["identity"]["metric"] = "acc"
    data["tasks"]["gsm8k-acc"] = entry
    path.write_text(json.dumps(data))
    unknown = project.run("--inferperf-plan")
    unknown.stdout.fnmatch_lines(
        [
            "    ?  accuracy loss vs BF16  tolerance 2 points  baselines/accuracy/tiny-llama.json scores gsm8k by acc, "
            "exact_match; which one judges is known once the task is loaded (metric= in the mark says it before)",
            "1 gate is known only in the run",
        ]
    )
    project.run("--inferperf-plan", "--inferperf-past=r.json").stdout.fnmatch_lines(["*exact_match loss vs BF16*"])
    project.test(TASK, LOSS.replace(")", ', metric="acc")'), body="inferperf.evaluate()")
    project.run("--inferperf-plan").stdout.fnmatch_lines(["*  acc loss vs BF16  *"])


def test_no_accuracy_baseline(project: Project) -> None:
    project.test(TASK, LOSS, body="inferperf.evaluate()")
    result = project.run("--inferperf-plan")
    result.stdout.fnmatch_lines(
        [
            "    MISSING  accuracy loss vs BF16  tolerance 2 points  baselines/accuracy/tiny-llama.json: no such file; "
            "key gsm8k-METRIC",
            "Next: evaluate the same task with quant='BF16' and --inferperf-update=new",
        ]
    )


# Other engines, and other runs.


def test_a_speedup_and_its_reference_engine(project: Project) -> None:
    """Before the first run nothing is known of its blocks; after it they say what the gate can find, and how long."""
    project.engine(tpot_ms=5, by={"BF16": {"tpot_ms": 10}}, noise=0.004)
    project.test(PERFORMANCE, 'speedup_floor("output_throughput_per_user", over="BF16", ratio=1.5, reload=True)')
    before = project.run("--inferperf-plan")
    before.stdout.fnmatch_lines(
        [
            "engine NVFP4 tiny-llama",
            "  reference   BF16 tiny-llama; loaded in turns with it, never both at once",
            "              checkpoint left to pytest_inferperf_make_engine (a hook of the project or a plugin)",
            f"  {NODE}",
            "    ?  output_throughput_per_user vs BF16  1.5 x, tolerance 5 %  interleaved in up to 10 blocks: how far they "
            "vary is known after the first run",
            "1 case, 1 engine, 1 reference engine, 1 gate: *",
        ]
    )
    assert project.engines() == []
    project.run("--inferperf-json=r.json").assert_outcomes(passed=1)
    (project.path / "engines.log").unlink()
    after = project.run("--inferperf-plan", "--inferperf-past=r.json")
    after.stdout.fnmatch_lines(
        [
            "              load about 1 s",
            f"  {NODE}  about 3 s, * if every look is needed",
            "    ok  * interleaved in up to 10 blocks, 3 on file, sd 0.* %: finds * % with 90 % power; 2* x, as on file, "
            "passes after 3.0*",
        ]
    )
    assert project.engines() == []


def test_against_an_engine(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR, "throughput_floor(output_throughput_per_user=20)", name="test_a")
    project.test(TASK, LOSS, body="inferperf.evaluate()", name="test_b")
    against = ("--inferperf-against=quant=BF16", "--inferperf-json=r.json")
    result = project.run("--inferperf-plan", *against)
    result.stdout.fnmatch_lines(
        [
            "against quant=BF16: runs, and answers, in this run; no baseline is read",
            "  reference   BF16 tiny-llama, called quant=BF16; loaded beside it, both held at once",
            "    ?   output_throughput_per_user vs quant=BF16  tolerance 5 %  *interleaved in up to 10 blocks: *",
            "    ok  output_throughput_per_user                limit 20 tok/s/user *",
            "    ?   accuracy loss vs quant=BF16 * quant=BF16 answers in the run; *",
        ]
    )
    result.stdout.no_fnmatch_line("*MISSING*")
    project.engine(right={"BF16": 900, "NVFP4": 890})
    project.run(*against)
    (project.path / "engines.log").unlink()
    after = project.run("--inferperf-plan", *against)
    after.stdout.fnmatch_lines(
        [
            "    *  output_throughput_per_user vs quant=BF16  *, 3 on file, sd *",
            "    *  exact_match loss vs quant=BF16  *1000 questions, * flips * points with 90 % power*",
        ]
    )
    assert project.engines() == []


def test_against_stored_answers_of_the_engine(project: Project) -> None:
    """Answers on file stand for those that the reference will give: nothing is missing."""
    project.test(TASK.replace("NVFP4", "BF16"), LOSS, body="inferperf.evaluate()")
    project.run("--inferperf-update=new")
    project.test(TASK, LOSS, body="inferperf.evaluate()")
    result = project.run("--inferperf-plan", "--inferperf-against=quant=BF16")
    result.stdout.fnmatch_lines(
        ["    *  exact_match loss vs quant=BF16  *  1000 questions, 5 % flips assumed: finds *"]
    )


def test_against_a_run(project: Project) -> None:
    """Its sessions are the baseline, and its times the past; what it lacks asks for such a run."""
    project.engine(round_s=0.2, noise=0.005)
    project.test(
        PERFORMANCE.replace("rounds=3", "rounds=1, sessions=6"), "throughput_floor(output_throughput_per_user=1)"
    )
    project.run("--inferperf-json=old.json").assert_outcomes(passed=1)
    project.test(PERFORMANCE.replace("rounds=3", "rounds=1"), FLOOR)
    result = project.run("--inferperf-plan", "--inferperf-against=old.json")
    result.stdout.fnmatch_lines(
        [
            "against old.json: its sessions and answers stand in for the baselines",
            f"  {NODE}  about 1 s, 2 s if every look is needed",
            "    ok  output_throughput_per_user  tolerance 5 %  6 sessions on 2 x Test CPU, sd 0.* %: finds *",
            "1 case, 1 engine, 1 gate: about 1 s, by old.json",
        ]
    )
    project.test(PERFORMANCE.replace("osl=8", "osl=4"), FLOOR)
    other = project.run("--inferperf-plan", "--inferperf-against=old.json")
    other.stdout.fnmatch_lines(
        [
            "    MISSING  *  against old.json: no result of this case; key NVFP4-isl16-osl4-c2",
            "Next: record it where the reference runs: pytest * --inferperf-json=old.json",
        ]
    )


def test_sessions_of_the_mark(project: Project) -> None:
    project.test(PERFORMANCE.replace("rounds=3", "sessions=3"), FLOOR)
    project.run("--inferperf-plan").stdout.fnmatch_lines(["  test_it.py::test_it[[]*]  3 sessions or more"])


def test_a_plan_expects_what_the_run_then_takes(project: Project) -> None:
    """Blocks, sessions and questions of an unchanged engine, and the share of its time."""
    project.engine(right={"BF16": 900, "NVFP4": 895})
    loss = LOSS.replace("2.0", "8.0")
    for quant in ("BF16", "NVFP4"):
        project.test(TASK.replace("NVFP4", quant), loss, body="inferperf.evaluate()")
        project.run("--inferperf-update=new")
    plan = project.run("--inferperf-plan")
    plan.stdout.fnmatch_lines(["    ok  exact_match loss vs BF16  *; an unchanged engine passes after 250"])
    project.run().assert_outcomes(passed=1)
    assert project.asked() == "250"


def test_a_a_flips_on_file(project: Project) -> None:
    """BF16 against its own recording: what it flipped when it was asked twice, 2 of 250, instead of a guess."""
    project.engine(aa_flips=2)
    project.test(TASK.replace("NVFP4", "BF16"), LOSS, body="inferperf.evaluate()")
    project.run("--inferperf-update=new")
    result = project.run("--inferperf-plan")
    result.stdout.fnmatch_lines(["    *  exact_match loss vs BF16  *1000 questions, 0.8 % A/A flips on file: finds *"])


# Machines.


def test_gpus_needed_and_found(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Gpu] = []
    monkeypatch.setattr(hardware, "find_gpus", lambda: tuple(found))
    project.test(PERFORMANCE.replace(")", ", tp=2)"), "requires_gpu(sm=100, memory_gib=150)", FLOOR)
    result = project.run("--inferperf-plan")
    result.stdout.fnmatch_lines(
        [
            "  GPUs        2 GPUs of SM 100 or later with 150 GiB; found no NVIDIA GPU",
            "  load        not opened: no test runs on this machine",
            f"  {NODE}  does not run here: needs 1 GPU of SM 100 or later with 150 GiB; found no NVIDIA GPU",
            "1 case of them cannot run on this machine",
        ]
    )
    required = project.run("--inferperf-plan", "--inferperf-require-gpu")
    required.stdout.fnmatch_lines(["*does not run here: *(--inferperf-require-gpu forbids to skip)"])
    found.extend([Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0)] * 2)
    there = project.run("--inferperf-plan")
    there.stdout.fnmatch_lines(["  GPUs        * found 2 x NVIDIA B200 (SM 100, 178 GiB)", f"  {NODE}"])


def test_engines_in_the_order_of_the_run(project: Project) -> None:
    case = PERFORMANCE.replace('"NVFP4"', '["NVFP4", "FP8"]')
    project.test(case, FLOOR, name="test_a")
    project.test(case, FLOOR, name="test_b")
    project.test('inferperf(model="tiny-llama", quant="FP8")', body="pass", fixture="inferperf_engine", name="test_c")
    (project.path / "test_d.py").write_text("def test_plain(): raise AssertionError\n")
    result = project.run("--inferperf-plan")
    shown = [line for line in result.outlines if line.startswith(("engine", "  test"))]
    heads = [index for index, line in enumerate(shown) if line.startswith("engine")]
    assert [shown[index] for index in heads] == ["engine NVFP4 tiny-llama", "engine FP8 tiny-llama"]
    assert heads == [0, 3]
    # The releases of pytest differ in the order of what shares an engine.
    listed = project.run("--collect-only", "-q").outlines
    order = [line for line in listed if line.startswith("test_") and "test_plain" not in line]
    assert [line.split()[0] for line in shown if "::" in line] == order
    assert "  test_c.py::test_c[FP8]  (asserts of its own, no gates)" in shown
    chosen = project.run("--inferperf-plan", "-k", "test_a and FP8")
    chosen.stdout.fnmatch_lines(["1 case, 1 engine, 1 gate: *"])


# Past results.


def test_expected_time(project: Project) -> None:
    """One round of warm-up and three of 0.2 s, and the load that the engine says."""
    project.engine(round_s=0.4)
    project.test(PERFORMANCE, FLOOR)
    project.run("--inferperf-json=r.json")
    result = project.run("--inferperf-plan", "--inferperf-past=r.json")
    result.stdout.fnmatch_lines(
        [
            "  load        about 1 s",
            f"  {NODE}  about 2 s, 8 s if every look is needed",
            f"1 case, 1 engine, 1 gate: about 2 s, by {project.path / 'r.json'}",
        ]
    )
    # What an earlier run wrote to the same file is taken unasked, and kept.
    before = (project.path / "r.json").read_bytes()
    again = project.run("--inferperf-plan", "--inferperf-json=r.json", "--inferperf-set=rounds=9")
    again.stdout.fnmatch_lines([f"  {NODE}  about 4 s, *"])
    assert (project.path / "r.json").read_bytes() == before
    ini = project.run("--inferperf-plan", "-o", "inferperf_past=r.json")
    ini.stdout.fnmatch_lines(["  load        about 1 s"])


def test_a_plan_writes_no_results(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.run("--inferperf-plan", "--inferperf-json=r.json")
    assert not (project.path / "r.json").exists()


@pytest.mark.parametrize("name", ["nowhere.json", "nowhere"])
def test_past_results_that_are_not_there(project: Project, name: str) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-plan", f"--inferperf-past={name}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            f"ERROR: --inferperf-past={name}: no such file or folder: {project.path / name}. "
            "Name a file that --inferperf-json wrote, or a folder of them."
        ]
    )
    ini = project.run("--inferperf-plan", "-o", f"inferperf_past={name}")
    assert ini.ret == pytest.ExitCode.USAGE_ERROR
    ini.stderr.fnmatch_lines([f"ERROR: inferperf_past = {name} in the ini file: no such file or folder: *"])


def test_past_results_that_are_broken(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    (project.path / "runs").mkdir()
    (project.path / "runs" / "bad.json").write_text('{"records": [')
    result = project.run("--inferperf-plan", "--inferperf-past=runs")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *bad.json: line 1*not JSON*"])


# Options.


@pytest.mark.parametrize("power", ["0", "1", "-0.1", "90", "nan", "high"])
def test_wrong_power(project: Project, power: str) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-plan", f"--inferperf-power={power}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: --inferperf-power={power} must be a number between 0 and 1, such as 0.9 for 90 %."]
    )


def test_wrong_power_in_the_ini_file(project: Project) -> None:
    result = project.run("--inferperf-plan", "-o", "inferperf_power=1.5")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: inferperf_power = 1.5 in the ini file must be between 0 and 1."])


def test_power(project: Project, stored: Store) -> None:
    stored(98.0, 99.0, 100.0, 101.0, 102.0)
    option = project.run("--inferperf-plan", "--inferperf-power=0.8", "-o", "inferperf_power=0.7")
    option.stdout.fnmatch_lines(["*with 80 % power*"])
    project.run("--inferperf-plan", "-o", "inferperf_power=0.7").stdout.fnmatch_lines(["*with 70 % power*"])


def test_a_plan_records_nothing(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.run("--inferperf-plan", "--inferperf-update=new")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --inferperf-update does not go with --inferperf-plan: *"])


def test_errors_of_collection_end_the_run_as_ever(project: Project) -> None:
    project.test(PERFORMANCE, 'throughput_floor("nonsense")')
    result = project.run("--inferperf-plan")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*unknown metric 'nonsense'*"])
    result.stdout.no_fnmatch_line("engine *")


def test_a_plan_runs_nothing_beside_an_error_of_collection(project: Project) -> None:
    project.test(PERFORMANCE, "throughput_floor(output_throughput_per_user=1)")
    project.pytester.makepyfile(test_bad="import no_such_module")
    result = project.run("--inferperf-plan", "--continue-on-collection-errors")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["1 case, 1 engine, 1 gate: *"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert project.engines() == []


def test_nothing_of_ours(project: Project) -> None:
    (project.path / "test_plain.py").write_text("def test_it(): raise AssertionError\n")
    result = project.run("--inferperf-plan")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["nothing to plan: no test with an inferperf mark was collected"])


def test_xdist_starts_no_workers(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    result = project.pytester.runpytest_subprocess("--inferperf-plan", "-p", "xdist", "-n", "2", "-p", "no:benchmark")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["engine NVFP4 tiny-llama", "1 case, 1 engine, 1 gate: *"])
    result.stdout.no_fnmatch_line("*2 workers*")
    assert project.engines() == []


# The real suite.


def test_the_embedded_suite_is_planned_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys, pytest\n"
        "rc = pytest.main(['suites/embedded', '--inferperf-plan', '-p', 'no:cacheprovider', '-p', 'no:xdist', "
        f"'--inferperf-cache-dir={tmp_path / 'cache'}'])\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'modelopt', 'lm_eval'} & set(sys.modules)))\n"
        "raise SystemExit(rc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        # This run is no xdist worker, whoever started it.
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HEAVY []" in done.stdout
    assert "to be built from" in done.stdout
    assert "exact_match loss vs BF16" in done.stdout
    assert not (tmp_path / "cache").exists()
