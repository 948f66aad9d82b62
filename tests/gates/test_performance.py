"""Performance gates: direction, limits, absence, and the edges of tolerance."""

from __future__ import annotations

import math

import pytest

from pytest_inferperf.baselines.entries import MetricBaseline, Missing, PerformanceEntry, Provenance
from pytest_inferperf.gates.performance import judge_performance
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.metrics import METRICS, parse_metric
from pytest_inferperf.model.results import PerformanceResult, Round, Session
from pytest_inferperf.model.verdicts import Status

EVERY_METRIC = [f"{row.name}.p99" if row.has_statistics else row.name for row in METRICS.values()]


def result(metric: str, *sessions: list[float]) -> PerformanceResult:
    return PerformanceResult(
        sessions=tuple(
            Session(
                rounds=tuple(
                    Round(
                        duration_s=1.0,
                        num_requests=1,
                        num_failed_requests=0,
                        input_tokens=1,
                        output_tokens=1,
                        metrics={metric: value},
                    )
                    for value in values
                ),
                warmup_rounds=1,
            )
            for values in sessions
        )
    )


def entry(metric: str, stored: MetricBaseline) -> PerformanceEntry:
    return PerformanceEntry(
        path="baselines/performance/x/y.json",
        key="BF16-isl1-osl1-c1",
        metrics={metric: stored},
        warmup_rounds=1,
        provenance=Provenance(kind="measured"),
    )


def judge(metric: str, value: float, stored: MetricBaseline, **gate: float) -> Status:
    asked = PerformanceGate(metric=parse_metric(metric), **gate)
    return judge_performance(asked, result(metric, [value]), entry(metric, stored), 0.05).status


@pytest.mark.parametrize("metric", EVERY_METRIC)
def test_every_metric_fails_when_worse_and_passes_when_not(metric: str) -> None:
    """The table's direction reaches the verdict: no gate is upside down."""
    stored = MetricBaseline(sessions=((100.0,),))
    worse, better = (94.0, 200.0) if parse_metric(metric).metric.higher_is_better else (106.0, 50.0)
    assert judge(metric, worse, stored) is Status.FAIL
    assert judge(metric, 100.0, stored) is Status.PASS
    assert judge(metric, better, stored) is Status.PASS


@pytest.mark.parametrize(
    ("gate", "stored", "value", "status"),
    [
        ({}, 0.2, 81.0, Status.PASS),
        ({}, 0.2, 79.0, Status.FAIL),
        ({"tolerance": 0.1}, 0.2, 89.0, Status.FAIL),
        ({"tolerance": 0.1}, 0.2, 91.0, Status.PASS),
        ({}, None, 94.9, Status.FAIL),
        ({}, None, 95.1, Status.PASS),
    ],
)
def test_tolerance_comes_from_mark_then_entry_then_default(
    gate: dict[str, float], stored: float | None, value: float, status: Status
) -> None:
    baseline = MetricBaseline(sessions=((100.0,),), tolerance=stored)
    assert judge("output_throughput", value, baseline, **gate) is status


def test_medians_on_both_sides() -> None:
    """One slow round, or one slow session, is not a regression; half of them is."""
    stored = MetricBaseline(sessions=((100.0, 100.0, 1.0), (100.0, 101.0, 99.0), (1.0, 1.0, 1.0)))
    gate = PerformanceGate(metric=parse_metric("output_throughput"))
    calm = result("output_throughput", [100.0, 99.0, 5.0])
    slow = result("output_throughput", [100.0, 90.0, 90.0])
    assert judge_performance(gate, calm, entry("output_throughput", stored), 0.05).baseline == 100.0
    assert judge_performance(gate, calm, entry("output_throughput", stored), 0.05).status is Status.PASS
    assert judge_performance(gate, slow, entry("output_throughput", stored), 0.05).status is Status.FAIL


def test_published_value_is_an_absolute_limit() -> None:
    stored = MetricBaseline(value=30_000.0, tolerance=0.5)
    assert judge("output_throughput", 29_999.0, stored) is Status.FAIL
    assert judge("output_throughput", 30_000.0, stored) is Status.PASS


@pytest.mark.parametrize(
    "missing",
    [
        None,
        Missing(path="baselines/performance/x/y.json", key="k", reason="no such file"),
        entry("ttft_ms.p99", MetricBaseline(sessions=((1.0,),))),
    ],
)
def test_absent_baseline_fails(missing: PerformanceEntry | Missing | None) -> None:
    gate = PerformanceGate(metric=parse_metric("output_throughput"))
    verdict = judge_performance(gate, result("output_throughput", [1e9]), missing, 0.05)
    assert verdict.status is Status.FAIL
    assert "has no baseline" in verdict.reason
    assert verdict.next_step == "pytest {nodeid} --inferperf-update=new"


def test_absent_measurement_fails() -> None:
    gate = PerformanceGate(metric=parse_metric("output_throughput"), limit=1.0)
    verdict = judge_performance(gate, result("ttft_ms.p99", [1.0]), None, 0.05)
    assert (verdict.status, verdict.reason) == (Status.FAIL, "was not measured: the workload has no sample of it")


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("metric", ["output_throughput", "ttft_ms.p99"])
def test_impossible_figures_are_invalid(metric: str, value: float) -> None:
    """A latency of 0.0 would pass any ceiling; NaN compares false with everything."""
    assert judge(metric, value, MetricBaseline(sessions=((100.0,),))) is Status.INVALID


def test_improvement_beyond_tolerance_is_noted() -> None:
    gate = PerformanceGate(metric=parse_metric("ttft_ms.p99"))
    stored = entry("ttft_ms.p99", MetricBaseline(sessions=((100.0,),)))
    assert "tighten" in judge_performance(gate, result("ttft_ms.p99", [80.0]), stored, 0.05).notes[1]
    assert len(judge_performance(gate, result("ttft_ms.p99", [97.0]), stored, 0.05).notes) == 1
