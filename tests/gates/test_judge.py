"""The judge over all gates of a case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_inferperf.gates.judge import Baselines, judge
from pytest_inferperf.model.case import Case, EngineSpec, Workload
from pytest_inferperf.model.gates import AccuracyFloor, Gate, PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import CaseResult, PerformanceResult, Session
from pytest_inferperf.model.verdicts import GateVerdict, Status, worst
from tests.values import one_round

CASE = Case(engine=EngineSpec(model="m", served_model_name="m"), workload=Workload(isl=1, osl=1))
GATES: tuple[Gate, ...] = (
    PerformanceGate(metric=parse_metric("output_throughput"), limit=1.0),
    AccuracyFloor(points=50.0),
)


def measured(failed: int = 0) -> CaseResult:
    one = one_round(
        {"output_throughput": 4.0}, num_requests=4, num_failed_requests=failed, input_tokens=4, output_tokens=4
    )
    return CaseResult(case=CASE, performance=PerformanceResult(sessions=(Session(rounds=(one,), warmup_rounds=0),)))


def test_one_verdict_per_gate_in_order() -> None:
    verdicts = judge(GATES, measured(), Baselines())
    assert [(item.gate, item.status) for item in verdicts] == [
        ("output_throughput", Status.PASS),
        ("accuracy", Status.FAIL),
    ]
    assert verdicts[1].reason == "was not measured"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (measured(failed=1), "the run is invalid: 1 of 4 requests failed"),
        (replace(measured(), invalid="the GPU was throttled"), "the run is invalid: the GPU was throttled"),
    ],
)
def test_invalid_run_is_judged_by_none_of_its_figures(result: CaseResult, reason: str) -> None:
    verdicts = judge(GATES, result, Baselines())
    assert {item.status for item in verdicts} == {Status.INVALID}
    assert {item.reason for item in verdicts} == {reason}
    assert {item.measured for item in verdicts} == {None}


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([Status.PASS, Status.PASS], Status.PASS),
        ([Status.PASS, Status.INCONCLUSIVE], Status.INCONCLUSIVE),
        ([Status.INCONCLUSIVE, Status.FAIL], Status.FAIL),
        ([Status.FAIL, Status.INVALID, Status.PASS], Status.INVALID),
    ],
)
def test_worst(statuses: list[Status], expected: Status) -> None:
    assert worst([GateVerdict(gate="g", status=status) for status in statuses]) is expected


def test_no_gates_have_no_verdict() -> None:
    with pytest.raises(ValueError, match="no gates were judged"):
        worst([])
