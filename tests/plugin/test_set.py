"""`--inferperf-set`, `--inferperf-backend`, `--inferperf-baselines` and the ini settings."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_inferperf import judging
from pytest_inferperf.model.verdicts import GateVerdict
from tests.plugin.conftest import PERFORMANCE, TASK, Project

SHOW = (
    "case = inferperf.case; "
    "print('SEEN', case.engine.quant, case.engine.backend, dict(case.engine.engine_options), case.workload)"
)


def test_overrides_every_mark(project: Project) -> None:
    project.test(PERFORMANCE, body=SHOW)
    result = project.run(
        "-s", "--inferperf-set=quant=FP8", "--inferperf-set=rounds=7", "--inferperf-set=engine_options.use_cache=false"
    )
    result.stdout.fnmatch_lines(["*SEEN FP8 auto {'use_cache': False} Workload(*rounds=7,*"])
    result.stdout.fnmatch_lines(["*test_it*"])


def test_workload_keyword_leaves_tasks_alone(project: Project) -> None:
    project.test(TASK, "accuracy_floor(points=1)", body="inferperf.evaluate()")
    project.run("--inferperf-set=rounds=7").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("rounds", "ERROR: --inferperf-set 'rounds': write KEYWORD=VALUE, such as rounds=3 or quant=FP8."),
        ("rounds=[1]", "ERROR: --inferperf-set 'rounds=[[]1[]]': takes one value, not a list or an object."),
    ],
)
def test_wrong_form(project: Project, option: str, expected: str) -> None:
    project.test(PERFORMANCE)
    result = project.run(f"--inferperf-set={option}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([expected])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("round=3", "*--inferperf-set: unknown keyword 'round'."),
        ("rounds=many", "*--inferperf-set: rounds='many' is a str; rounds takes an int, or a list of them."),
        ("quant=fp8", "*--inferperf-set: unknown quant 'fp8'."),
    ],
)
def test_wrong_value(project: Project, option: str, expected: str) -> None:
    project.test(PERFORMANCE)
    result = project.run(f"--inferperf-set={option}")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([expected])


@pytest.mark.parametrize(
    ("arguments", "mark", "backend"),
    [
        ((), "", "auto"),
        (("-o", "inferperf_backend=ini"), "", "ini"),
        (("-o", "inferperf_backend=ini", "--inferperf-backend=option"), "", "option"),
        (("--inferperf-backend=option",), ', backend="mark"', "mark"),
    ],
)
def test_backend_precedence(project: Project, arguments: tuple[str, ...], mark: str, backend: str) -> None:
    project.test(PERFORMANCE.replace(")", f"{mark})"), body=SHOW)
    project.run("-s", *arguments).stdout.fnmatch_lines([f"*SEEN NVFP4 {backend} *"])


def test_baselines_folder(project: Project) -> None:
    project.test(PERFORMANCE, 'throughput_floor("output_throughput_per_user")')
    project.run("--inferperf-update=new", "--inferperf-baselines=elsewhere")
    assert (project.path / "elsewhere/performance/test-cpu-2x/tiny-llama.json").exists()
    project.run("-o", "inferperf_baselines=elsewhere").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("ini", "expected"),
    [
        (
            "inferperf_on_inconclusive=ignore",
            "ERROR: inferperf_on_inconclusive = ignore in the ini file is not one of: *",
        ),
        ("inferperf_tolerance=5", "ERROR: inferperf_tolerance = 5 in the ini file must be between 0 and 1."),
        ("inferperf_alpha=0.5", "ERROR: inferperf_alpha = 0.5 in the ini file must be between 1e-12 and 0.5."),
        ("inferperf_alpha=0", "ERROR: inferperf_alpha = 0 in the ini file must be between 1e-12 and 0.5."),
        ("inferperf_alpha=1e-30", "ERROR: inferperf_alpha = 1e-30 in the ini file must be between 1e-12 and 0.5."),
        ("inferperf_alpha=-0.1", "ERROR: inferperf_alpha = -0.1 in the ini file must be between 1e-12 and 0.5."),
        ("inferperf_alpha=nan", "ERROR: inferperf_alpha = nan in the ini file must be between 1e-12 and 0.5."),
        (
            "inferperf_alpha=5%",
            "ERROR: inferperf_alpha in the ini file is not a number: could not convert string to float: '5%'.",
        ),
        (
            "inferperf_max_interference=20",
            "ERROR: inferperf_max_interference = 20 in the ini file must be from 0 to 1.",
        ),
        (
            "inferperf_max_interference=nan",
            "ERROR: inferperf_max_interference = nan in the ini file must be from 0 to 1.",
        ),
        ("inferperf_max_throttled=-1", "ERROR: inferperf_max_throttled = -1 in the ini file must be from 0 to 1."),
        ("inferperf_min_clock=1500", "ERROR: inferperf_min_clock = 1500 in the ini file must be from 0 to 1."),
        ("inferperf_min_power_limit=2", "ERROR: inferperf_min_power_limit = 2 in the ini file must be from 0 to 1."),
        (
            "inferperf_max_gpu_processes=-1",
            "ERROR: inferperf_max_gpu_processes = -1 in the ini file must be 0 or more.",
        ),
        (
            "inferperf_max_gpu_processes=none",
            "ERROR: inferperf_max_gpu_processes in the ini file is not a number: could not convert string to float: 'none'.",
        ),
        ("inferperf_call_timeout=0", "ERROR: inferperf_call_timeout = 0 in the ini file must be above 0."),
    ],
)
def test_wrong_ini(project: Project, ini: str, expected: str) -> None:
    project.test(PERFORMANCE)
    result = project.run("-o", ini)
    assert result.ret != 0
    text = "\n".join([*result.outlines, *result.errlines])
    assert expected.rstrip("*").removeprefix("ERROR: ") in text
    assert "Traceback" not in text


@pytest.mark.parametrize("value", [0.001, 0.499])
def test_alpha_reaches_the_judge(project: Project, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    seen: list[float] = []
    real = judging.judge_case

    def watched(*given: Any, alpha: float, **named: Any) -> tuple[GateVerdict, ...]:
        seen.append(alpha)
        return real(*given, alpha=alpha, **named)

    monkeypatch.setattr(judging, "judge_case", watched)
    project.test(PERFORMANCE, "throughput_floor(output_throughput_per_user=1)")
    project.run("-o", f"inferperf_alpha={value}").assert_outcomes(passed=1)
    assert set(seen) == {value}
