"""Speedup rows: figures worked by hand, in both directions of a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pytest_inferperf.gates.judge import Baselines, judge
from pytest_inferperf.gates.speedup import judge_speedup
from pytest_inferperf.model.case import Case, EngineSpec, ReferenceEngine, Workload
from pytest_inferperf.model.gates import SpeedupFloor
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import Abba, CaseResult, Comparison, Round
from pytest_inferperf.model.verdicts import GateVerdict, Status
from tests.values import engine_info, one_round

SPEC = EngineSpec(model="m", served_model_name="m", quant="NVFP4")
REFERENCE = ReferenceEngine(label="BF16", spec=replace(SPEC, quant="BF16"))
CASE = Case(engine=SPEC, workload=Workload(isl=1, osl=1))
INFO = engine_info(max_model_len=100, versions={"torch": "2.9", "only-here": "1"})


def round_of(name: str, value: float, failed: int = 0) -> Round:
    return one_round({} if math.isnan(value) else {name: value}, num_failed_requests=failed)


def comparison(
    name: str, candidate: Sequence[float], reference: float = 100.0, *, of: ReferenceEngine = REFERENCE
) -> Comparison:
    blocks = tuple(
        Abba(
            reference=(round_of(name, reference), round_of(name, reference)),
            candidate=(round_of(name, value), round_of(name, value)),
        )
        for value in candidate
    )
    return Comparison(reference=of, engine=INFO, blocks=blocks, warmup_rounds=1)


def verdict(
    name: str, candidate: Sequence[float], *, ratio: float = 1.0, tolerance: float | None = None
) -> GateVerdict:
    gate = SpeedupFloor(metric=parse_metric(name), reference=REFERENCE, ratio=ratio, tolerance=tolerance)
    return judge_speedup(gate, comparison(name, candidate), CaseResult(case=CASE), default_tolerance=0.05)


@pytest.mark.parametrize(
    ("name", "candidate", "ratio", "measured", "limit"),
    [
        ("output_throughput", 150.0, 1.5, 1.5, 1.425),
        ("output_throughput", 120.0, 1.5, 1.2, 1.425),
        ("tpot_ms.p50", 50.0, 1.5, 2.0, 1.5 / 1.05),
        ("tpot_ms.p50", 80.0, 1.5, 1.25, 1.5 / 1.05),
    ],
)
def test_the_row_says_how_many_times_as_good(
    name: str, candidate: float, ratio: float, measured: float, limit: float
) -> None:
    found = verdict(name, [candidate] * 3, ratio=ratio)
    assert found.status is (Status.PASS if measured > limit else Status.FAIL)
    assert found.measured == pytest.approx(measured)
    assert found.limit == pytest.approx(limit)
    assert (found.unit, found.higher_is_better, found.source) == ("x", True, "against BF16")
    lower, upper = float(found.details["ratio_lower"]), float(found.details["ratio_upper"])
    assert lower < measured < upper
    # PASS is a lower bound above the limit.
    assert (lower > limit) is (found.status is Status.PASS)


@pytest.mark.parametrize(("name", "worse"), [("output_throughput", 88.0), ("tpot_ms.p50", 112.0)])
def test_a_regression_fails_in_either_direction(name: str, worse: float) -> None:
    assert verdict(name, [worse] * 3).status is Status.FAIL
    assert verdict(name, [100.0] * 3).status is Status.PASS


def test_a_loss_in_the_tolerance_that_is_proven_says_what_is_not() -> None:
    found = verdict("output_throughput", [95.5, 96.0, 97.0])
    assert found.status is Status.FAIL
    assert found.reason == (
        "0.9616 x, between 0.9367 and 0.9873 in 3 blocks, is not proven above its floor 0.95 (1 less 5 %)"
    )


def test_an_open_gate_says_where_it_looks_next() -> None:
    first = verdict("output_throughput", [90.0])
    assert (first.status, first.measured, first.next_look) == (Status.INCONCLUSIVE, None, 3)
    assert first.reason == "was measured in 1 block; the first look is at 3"
    third = verdict("output_throughput", [80.0, 100.0, 120.0])
    assert (third.status, third.next_look) == (Status.INCONCLUSIVE, 5)


def test_the_mark_decides_the_tolerance() -> None:
    assert verdict("output_throughput", [92.0] * 3).status is Status.FAIL
    assert verdict("output_throughput", [92.0] * 3, tolerance=0.1).status is Status.PASS


def test_no_sample_fails() -> None:
    found = verdict("tpot_ms.p50", [math.nan] * 3)
    assert (found.status, found.reason) == (Status.FAIL, "was not measured: the workload has no sample of it")


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_a_figure_that_is_none_is_invalid(value: float) -> None:
    assert verdict("output_throughput", [value] * 3).status is Status.INVALID


GATE = SpeedupFloor(metric=parse_metric("output_throughput"), reference=REFERENCE)


def test_alpha_reaches_the_looks() -> None:
    blocks = comparison("output_throughput", [100.0, 101.0, 97.0])
    result = CaseResult(case=CASE, comparisons=(blocks,))
    strict, loose = (judge([GATE], result, Baselines(alpha=alpha))[0].details for alpha in (0.001, 0.4))
    assert float(strict["ratio_lower"]) < float(loose["ratio_lower"])


def test_the_comparison_with_the_gates_own_reference_is_judged() -> None:
    other = comparison("output_throughput", [1.0] * 3, of=replace(REFERENCE, label="FP8"))
    own = comparison("output_throughput", [100.0] * 3)
    (found,) = judge([GATE], CaseResult(case=CASE, comparisons=(other, own)), Baselines())
    assert found.status is Status.PASS
    (missing,) = judge([GATE], CaseResult(case=CASE, comparisons=(other,)), Baselines())
    assert (missing.status, missing.reason) == (Status.FAIL, "was not measured")


def test_failed_requests_of_a_reference_make_the_run_invalid() -> None:
    bad = Abba(reference=(round_of("output_throughput", 1.0, failed=1),), candidate=(round_of("output_throughput", 1),))
    compared = replace(comparison("output_throughput", [100.0] * 3), blocks=(bad,))
    (found,) = judge([GATE], CaseResult(case=CASE, comparisons=(compared,)), Baselines())
    assert (found.status, found.reason) == (Status.INVALID, "the run is invalid: 1 of 2 requests failed")


def test_notes_say_what_differs_between_the_two_environments() -> None:
    newer = replace(INFO, versions={"torch": "2.10"})
    result = CaseResult(case=CASE, engine=newer)
    found = judge_speedup(GATE, comparison("output_throughput", [100.0] * 3), result, default_tolerance=0.05)
    assert found.notes[1:] == ("context differs: torch 2.9 -> 2.10",)


def test_notes_say_that_the_engine_is_compared_with_itself() -> None:
    same = replace(REFERENCE, spec=SPEC)
    for python, notes in (
        ("", ("the reference is the same engine: an A/A comparison shows the noise alone",)),
        ("/venv/bin/python", ()),
    ):
        blocks = comparison("output_throughput", [100.0] * 3, of=replace(same, python=python))
        found = judge_speedup(GATE, blocks, CaseResult(case=CASE, engine=INFO), default_tolerance=0.05)
        assert found.notes[1:] == notes
