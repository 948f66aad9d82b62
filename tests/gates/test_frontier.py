"""Frontier gates: what is on file, what is missing, and what was measured decide; absence is never a pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_inferperf.baselines.entries import MetricBaseline, Missing, PerformanceEntry, Provenance
from pytest_inferperf.gates.forecast import OnFile
from pytest_inferperf.gates.frontier import FrontierPoint, judge_frontier
from pytest_inferperf.gates.frontier_forecast import forecast_frontier
from pytest_inferperf.model.case import Case, EngineSpec, Workload
from pytest_inferperf.model.gates import FrontierFloor
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.plan import Foresight
from pytest_inferperf.model.results import CaseResult, PerformanceResult, Session
from pytest_inferperf.model.verdicts import PROVEN_GAIN, GateVerdict, Status
from tests.values import one_round

X, Y = "output_throughput_per_gpu", "output_throughput_per_user"
GATE = FrontierFloor(metric=parse_metric(X), over=parse_metric(Y), tolerance=0.05, points=2)
CALM = (1.0, 1.002, 0.998, 1.001, 0.999, 1.0)
PLACES = {"c1": (100.0, 50.0), "c8": (400.0, 20.0)}


def entry(load: str, *, factors: tuple[float, ...] = CALM, published: bool = False) -> PerformanceEntry:
    x, y = PLACES[load]
    return PerformanceEntry(
        path="baselines/performance/x/y.json",
        key=f"BF16-isl1-osl1-{load}",
        metrics={
            name: MetricBaseline(value=value)
            if published
            else MetricBaseline(sessions=tuple((value * factor,) for factor in factors))
            for name, value in ((X, x), (Y, y))
        },
        warmup_rounds=1,
        provenance=Provenance(kind="published", source="a page") if published else Provenance(kind="measured"),
        context={"driver": "570.1"},
    )


def measured(load: str, factor: float = 1.0, *, sessions: int = 1, failed: int = 0, **metrics: float) -> CaseResult:
    x, y = PLACES[load]
    one = one_round({X: x * factor, Y: y * factor, **metrics}, num_requests=10, num_failed_requests=failed)
    return CaseResult(
        case=Case(
            engine=EngineSpec(model="m", served_model_name="m"),
            workload=Workload(isl=1, osl=1, concurrency=int(load[1:])),
        ),
        performance=PerformanceResult(sessions=(Session(rounds=(one,), warmup_rounds=1),) * sessions),
        context={"driver": "580.2"},
    )


def point(load: str, factor: float = 1.0, **kwargs: float) -> FrontierPoint:
    return FrontierPoint(load=load, result=measured(load, factor, **kwargs), entry=entry(load))  # type: ignore[arg-type]


def judge(*points: FrontierPoint, gate: FrontierFloor = GATE) -> GateVerdict:
    return judge_frontier(gate, points, [gate], default_tolerance=0.05)


def test_a_loss_of_one_point_fails_and_says_where_it_was_and_is() -> None:
    found = judge(point("c1"), point("c8", 0.9))
    assert found.status is Status.FAIL
    assert found.reason == (
        "c8 has fallen by 10.00 %: 400 tok/s/GPU at 20 tok/s/user before, at best 360 tok/s/GPU at 18 tok/s/user now (c8)"
    )
    assert found.measured == pytest.approx(10, abs=0.1)
    assert (found.limit, found.source) == (5.0, "baselines/performance/x/y.json")
    assert found.details["fallen"] == found.details["worst"] == "c8"
    assert found.details["loss_percent.c1"] == pytest.approx(0, abs=0.1)
    assert "context differs: driver 570.1 -> 580.2" in found.notes


def test_no_loss_passes() -> None:
    assert judge(point("c1"), point("c8")).status is Status.PASS


def test_a_gain_of_every_point_is_a_stale_baseline() -> None:
    found = judge(point("c1", 1.2), point("c8", 1.2))
    assert found.status is Status.PASS
    assert float(found.details[PROVEN_GAIN]) > 15
    assert any("the baseline is stale, tighten it" in note for note in found.notes)
    assert PROVEN_GAIN not in judge(point("c1", 1.2), point("c8")).details


@pytest.mark.parametrize(
    ("lacking", "says"),
    [
        (Missing(path="b.json", key="K", reason="no such entry"), "c8: b.json: no such entry; key K"),
        (None, "c8: none was looked up"),
        (
            replace(entry("c8"), metrics={X: entry("c8").metrics[X]}),
            f"c8: baselines/performance/x/y.json: the entry has no {Y}; key BF16-isl1-osl1-c8",
        ),
        (
            replace(entry("c8"), warmup_rounds=3),
            "c8: baselines/performance/x/y.json: recorded after 3 warm-up rounds, this run after 1; key BF16-isl1-osl1-c8",
        ),
    ],
)
def test_a_point_without_a_baseline_is_no_pass(lacking: PerformanceEntry | Missing | None, says: str) -> None:
    found = judge(point("c1"), replace(point("c8"), entry=lacking))
    assert (found.status, found.measured) == (Status.FAIL, None)
    assert found.reason == f"has no baseline ({says})"
    assert found.next_step == "pytest {nodeid} --inferperf-update=new"


def test_a_point_that_was_not_measured_is_no_pass() -> None:
    only = judge(point("c1"))
    assert (only.status, only.reason) == (Status.FAIL, "was measured at 1 of 2 points")
    unmeasured = replace(point("c8"), result=replace(measured("c8"), performance=None))
    assert judge(point("c1"), unmeasured).reason == f"c8: {X} was not measured in every session"
    fewer = judge(point("c1", sessions=2), point("c8"))
    assert (fewer.status, fewer.reason) == (Status.FAIL, "was not measured at every point in every session")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"failed": 1}, "the run is invalid: c8: 1 of 10 requests failed"),
        ({Y: 0.0}, "c8: measured 0.0, which is no tok/s/user"),
        ({X: float("nan")}, "c8: measured nan, which is no tok/s/GPU"),
    ],
)
def test_figures_that_cannot_be_trusted_are_invalid(bad: dict[str, float], says: str) -> None:
    found = judge(point("c1"), point("c8", **bad))
    assert (found.status, found.reason) == (Status.INVALID, says)


def test_few_sessions_are_judged_by_levels_and_say_so() -> None:
    few = [replace(point(load), entry=entry(load, factors=(1.0, 1.0))) for load in PLACES]
    assert judge(*few).status is Status.PASS
    fallen = replace(point("c1", 0.94), entry=entry("c1", factors=(1.0, 1.0)))
    found = judge(fallen, few[1])
    assert found.status is Status.FAIL
    assert found.reason.startswith("c1 has fallen by 6.00 %")
    assert found.notes[0].startswith("uncalibrated: a point has 2 stored sessions, 5 or more are needed")
    assert judge(replace(point("c1", 0.96), entry=fallen.entry), few[1]).status is Status.PASS


def test_a_published_point_is_a_limit() -> None:
    published = {load: entry(load, published=True) for load in PLACES}
    at = [replace(point(load), entry=published[load]) for load in PLACES]
    found = judge(*at)
    assert (found.status, found.limit) == (Status.PASS, 0.0)
    assert "published baseline: absolute limit" in found.notes
    assert judge(at[0], replace(point("c8", 0.99), entry=published["c8"])).status is Status.FAIL


def test_a_tolerance_that_cannot_be_resolved_is_refused() -> None:
    noisy = entry("c8", factors=(1.0, 1.1, 0.9, 1.05, 0.95, 1.0))
    found = judge(point("c1"), replace(point("c8"), entry=noisy))
    assert found.status is Status.FAIL
    assert found.reason.startswith(f"cannot be judged: a tolerance of 5 % of {X} at c8 cannot be resolved by 6 stored")
    assert "--inferperf-set=sessions=12" in found.next_step


def test_what_is_not_decided_is_inconclusive_and_asks_for_more() -> None:
    wide = [
        replace(point(load, factor), entry=entry(load, factors=(1.0, 1.02, 0.98, 1.02, 0.98, 1.0)))
        for load, factor in (("c1", 1.0), ("c8", 0.965))
    ]
    found = judge(*wide, gate=replace(GATE, tolerance=0.06))
    assert (found.status, found.next_look) == (Status.INCONCLUSIVE, 2)
    assert "a fall of 6 % is not ruled out at " in found.reason
    assert "would decide it" in found.reason


@pytest.mark.parametrize(
    ("entries", "state", "says"),
    [
        ({"c1": entry("c1"), "c8": entry("c8")}, Foresight.ABLE, "2 points, the least certain figure is c"),
        (
            {"c1": entry("c1"), "c8": Missing(path="b.json", key="K", reason="no such entry")},
            Foresight.MISSING,
            f"2 points, the least certain figure is c8 {X}: b.json: no such entry; key K",
        ),
        (
            {"c1": entry("c1", factors=(1.0,)), "c8": entry("c8")},
            Foresight.UNCALIBRATED,
            f"2 points, the least certain figure is c1 {X}: 1 session",
        ),
    ],
)
def test_what_it_can_find_is_known_before_the_run(
    entries: dict[str, PerformanceEntry | Missing], state: Foresight, says: str
) -> None:
    points = {load: OnFile(case=measured(load).case, performance=found) for load, found in entries.items()}
    found = forecast_frontier(GATE, points)
    assert (found.gate, found.state, found.aim) == (GATE.name, state, "tolerance 5 %")
    assert found.text.startswith(says)
