"""The ini setting `inferperf_gpu_hour_price`."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import PERFORMANCE, Project

GATE = "latency_ceiling(cost_per_million_tokens={limit})"
SCRIPT = {"hardware": "NVIDIA B200", "kind": "gpu", "ttft_ms": 10_000.0, "tpot_ms": 1000.0}
HOUR = ("-o", "inferperf_gpu_hour_price=4")


@pytest.fixture
def on_gpus(project: Project) -> Project:
    """Two GPUs: 16 tokens in 17 s of scripted time, and a little true time, at 8 an hour: 2361 a million."""
    project.engine(**SCRIPT)
    return project


def test_cost_below_its_ceiling_passes(on_gpus: Project) -> None:
    on_gpus.test(PERFORMANCE, GATE.format(limit=2600))
    on_gpus.run(*HOUR).assert_outcomes(passed=1)


def test_cost_above_its_ceiling_fails(on_gpus: Project) -> None:
    on_gpus.test(PERFORMANCE, GATE.format(limit=2300))
    result = on_gpus.run(*HOUR)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["cost_per_million_tokens 2* per 1M tokens is above its ceiling 2300; *"])


def test_a_slower_engine_costs_more(on_gpus: Project) -> None:
    on_gpus.engine(**{**SCRIPT, "tpot_ms": 2000.0})
    on_gpus.test(PERFORMANCE, GATE.format(limit=2600))
    on_gpus.run(*HOUR).assert_outcomes(failed=1)


def test_without_a_price_the_gate_fails(on_gpus: Project) -> None:
    on_gpus.test(PERFORMANCE, GATE.format(limit=1e9))
    result = on_gpus.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*cost_per_million_tokens was not measured: it needs *inferperf_gpu_hour_price in the ini*"]
    )


def test_a_cpu_has_no_price(project: Project) -> None:
    project.test(PERFORMANCE, GATE.format(limit=1e9))
    project.run(*HOUR).assert_outcomes(failed=1)


def test_the_price_is_recorded(on_gpus: Project) -> None:
    on_gpus.test(PERFORMANCE, GATE.format(limit=2600))
    on_gpus.run(*HOUR, "--inferperf-json=r.json").assert_outcomes(passed=1)
    assert '"gpu_hour_price": "4"' in (on_gpus.path / "r.json").read_text()


@pytest.mark.parametrize("value", ["-1", "inf", "nan"])
def test_what_is_no_price_is_an_error(project: Project, value: str) -> None:
    project.test(PERFORMANCE, GATE.format(limit=2600))
    result = project.run("-o", f"inferperf_gpu_hour_price={value}", "--inferperf-json=r.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*inferperf_gpu_hour_price = {value} in the ini file must be 0 (no price) or more."])
