"""Performance gates: direction, limits, absence, and the edges of tolerance."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from pytest_inferperf.baselines.entries import MetricBaseline, Missing, PerformanceEntry, Provenance
from pytest_inferperf.gates.looks import SESSIONS
from pytest_inferperf.gates.performance import judge_performance
from pytest_inferperf.gates.power import log_margin, t_quantile
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.metrics import METRICS, parse_metric
from pytest_inferperf.model.results import PerformanceResult, Session
from pytest_inferperf.model.verdicts import GateVerdict, Status
from tests.values import one_round

EVERY_METRIC = [
    "goodput[ttft_ms<=500]" if row.name == "goodput" else f"{row.name}.p99" if row.has_statistics else row.name
    for row in METRICS.values()
]


def result(metric: str, *sessions: list[float]) -> PerformanceResult:
    return PerformanceResult(
        sessions=tuple(
            Session(
                rounds=tuple(one_round({metric: value}) for value in values),
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


# Calibrated: 5 or more stored sessions.

QUIET = tuple((100.0 + shift,) for shift in (-1.0, -0.6, -0.3, -0.1, 0.0, 0.0, 0.1, 0.3, 0.6, 1.0))
"""Ten stored sessions with a standard deviation of .57 %."""

NOISY = tuple((100.0 + shift,) for shift in (-3.0, -2.0, -1.0, -0.4, 0.0, 0.0, 0.4, 1.0, 2.0, 3.0))
"""Ten stored sessions with a standard deviation of 1.8 %."""

WILD = tuple((100.0 + shift,) for shift in (-30.0, -15.0, -5.0, 0.0, 0.0, 0.0, 5.0, 15.0, 30.0, 45.0))


def against(
    stored: tuple[tuple[float, ...], ...], *sessions: list[float], metric: str = "output_throughput", **gate: float
) -> GateVerdict:
    asked = PerformanceGate(metric=parse_metric(metric), **gate)
    return judge_performance(asked, result(metric, *sessions), entry(metric, MetricBaseline(sessions=stored)), 0.05)


def test_unchanged_engine_passes_at_the_first_look() -> None:
    verdict = against(QUIET, [100.2])
    assert (verdict.status, verdict.next_look, verdict.reason, verdict.next_step) == (Status.PASS, None, "", "")
    assert (verdict.measured, verdict.limit, verdict.baseline) == (100.2, 95.0, 100.0)
    assert verdict.notes == (
        "output_throughput: loss -0.20 %, between -1.92 % and 1.48 % (1 session against 10 stored)",
    )
    assert verdict.details == pytest.approx(
        {
            "sessions": 1,
            "baseline_sessions": 10,
            "loss_percent": -0.202,
            "lower_percent": -1.916,
            "upper_percent": 1.484,
            "sd_percent": 0.5696,
            "level": 0.0097,
            "needed": 0,
            "resolvable_percent": 0.6367,
        },
        rel=0.005,
    )


@pytest.mark.parametrize("metric", EVERY_METRIC)
def test_every_metric_is_the_right_way_up_against_sessions(metric: str) -> None:
    worse, better = (80.0, 125.0) if parse_metric(metric).metric.higher_is_better else (125.0, 80.0)
    assert against(QUIET, [worse], metric=metric).status is Status.FAIL
    assert against(QUIET, [100.0], metric=metric).status is Status.PASS
    assert against(QUIET, [better], metric=metric).status is Status.PASS


def test_regression_fails_and_says_by_how_much() -> None:
    verdict = against(QUIET, [90.0])
    assert verdict.status is Status.FAIL
    assert verdict.reason == "90 tok/s is below its floor 95 (-10.0 % vs baseline 100)"
    assert verdict.notes[0].startswith("output_throughput: loss 10.00 %, between 8.")


@pytest.mark.parametrize(
    ("sessions", "next_look"),
    [([97.0], 2), ([97.0] * 2, 3), ([97.0] * 3, 5), ([97.0] * 4, 5), ([97.0, 97.0, 97.0, 94.0, 100.0], None)],
)
def test_undecided_asks_for_the_next_look_until_the_cap(sessions: list[float], next_look: int | None) -> None:
    verdict = against(NOISY, *([value] for value in sessions), tolerance=0.05)
    assert (verdict.status, verdict.next_look) == (Status.INCONCLUSIVE, next_look)
    assert verdict.limit == 95.0
    assert "97 tok/s is within its floor 95, but a loss of 5 % is not ruled out: loss" in verdict.reason
    assert re.search(r"; \d+ more sessions? would decide it(, and no look is left)?$", verdict.reason)
    assert ("no look is left" in verdict.reason) is (next_look is None)
    assert ("record " in verdict.next_step and "sessions: pytest {nodeid}" in verdict.next_step) is (next_look is None)


def test_undecided_beyond_its_limit_explains_itself() -> None:
    verdict = against(NOISY, [94.0])
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason.startswith(
        "94 tok/s is below its floor 95, but that may be noise: loss 5.99 %, between 0.88 % and 10.83 %; 4 more "
    )


def test_the_number_of_sessions_that_would_decide_it_decides_it() -> None:
    """What INCONCLUSIVE promises is kept: at that many sessions the interval is narrower than the two margins."""
    verdict = against(NOISY, [97.0])
    needed = verdict.details["needed"]
    assert isinstance(needed, int)
    assert f"{needed} more sessions would decide it" in verdict.reason
    sd = float(verdict.details["sd_percent"]) / 100
    gap = log_margin(0.05, higher_is_better=True) - log_margin(0.01, higher_is_better=True)
    total = 1 + needed
    width = t_quantile(SESSIONS.levels[-1], 10 + total - 2) * sd * math.sqrt(1 / 10 + 1 / total)
    assert 2 * width < gap


def test_fail_within_the_limit_is_a_proven_loss_and_says_so() -> None:
    verdict = against(QUIET, [96.5], tolerance=0.04)
    assert (verdict.status, verdict.limit) == (Status.FAIL, 96.0)
    assert verdict.reason == (
        "96.5 tok/s is within its floor 96, but a loss beyond the free 0.8 % is proven: 3.50 %, at least 1.85 %, "
        "vs baseline 100"
    )


def test_pass_beyond_the_limit_says_why() -> None:
    """The first decision stands: what is measured after it moves the row, not the verdict."""
    verdict = against(QUIET, [100.0], [90.0], [90.0])
    assert (verdict.status, verdict.measured) == (Status.PASS, 90.0)
    assert verdict.notes[0].endswith("(1 session against 10 stored)")
    assert verdict.notes[1] == (
        "output_throughput: 90 tok/s is below its floor 95, but a loss of 5 % is ruled out: at most 1.68 %"
    )


def test_gain_is_noted_only_when_it_is_proven() -> None:
    assert "tighten" in against(QUIET, [110.0]).notes[-1]
    assert all("tighten" not in note for note in against(QUIET, [106.0]).notes)  # 6 %, and no less than 4 %
    assert all("tighten" not in note for note in against(WILD, [110.0], tolerance=0.6).notes)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_stored_sessions_leave_the_plain_tolerance_and_say_so(count: int) -> None:
    stored = tuple((100.0,) for _ in range(count))
    held, lost = against(stored, [95.0]), against(stored, [94.9])
    assert (held.status, lost.status) == (Status.PASS, Status.FAIL)
    for verdict in (held, lost):
        assert verdict.next_look is None
        assert verdict.notes[0] == (
            f"uncalibrated: {count} stored session{'s' if count > 1 else ''}, 5 or more are needed to know the false "
            'alarm rate; record with --inferperf-update=all --inferperf-reason="…"'
        )
        assert "level" not in verdict.details
        assert all(math.isfinite(value) for value in verdict.details.values() if not isinstance(value, str))


def test_no_stored_session_is_a_missing_baseline() -> None:
    verdict = against((), [100.0])
    assert verdict.status is Status.FAIL
    assert verdict.reason.startswith("has no baseline (")


def test_equal_figures_are_judged_with_the_least_spread_there_is() -> None:
    equal = tuple((100.0,) for _ in range(10))
    assert against(equal, [100.0]).status is Status.PASS
    assert against(equal, [94.0]).status is Status.FAIL
    assert against(equal, [100.0]).details["sd_percent"] == pytest.approx(0.01)
    assert against(equal, [100.0], tolerance=1e-5).reason.startswith("cannot be judged: a tolerance of 0.001 % cannot ")


@pytest.mark.parametrize("tolerance", [0.0, 0.001])
def test_tolerance_below_the_noise_fails_and_names_the_smallest(tolerance: float) -> None:
    verdict = against(NOISY, [100.0], tolerance=tolerance)
    assert verdict.status is Status.FAIL
    smallest = re.fullmatch(
        rf"cannot be judged: a tolerance of {100 * tolerance:g} % cannot be resolved by 10 stored sessions that vary by "
        r"1\.8 %: the smallest is (\S+) %",
        verdict.reason,
    )
    assert smallest is not None
    assert (
        "give the gate tolerance=0.0198, or record more sessions, or on a quieter machine: pytest {nodeid}"
        in verdict.next_step
    )
    accepted = against(NOISY, [100.0], tolerance=float(smallest[1]) / 100)
    assert "cannot be judged" not in accepted.reason


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("stored", [QUIET, QUIET[:1]])
def test_an_impossible_round_in_any_session_is_invalid(value: float, stored: tuple[tuple[float, ...], ...]) -> None:
    """The medians would hide it."""
    verdict = against(stored, [100.0, 100.0, 100.0], [100.0, value, 100.0])
    assert verdict.status is Status.INVALID
    assert verdict.reason == f"measured {value} in session 2, which is no tok/s"


def test_impossible_stored_figures_are_invalid_too() -> None:
    verdict = against((*QUIET, (math.nan,)), [100.0])
    assert verdict.status is Status.INVALID
    assert verdict.reason == ("cannot be judged: stored session 11 measured nan: a figure has to be finite and above 0")


def test_a_session_without_the_metric_fails() -> None:
    verdict = against(QUIET, [100.0], [], [100.0])
    assert (verdict.status, verdict.reason) == (Status.FAIL, "was not measured in session 2 of 3")


def test_alpha_reaches_the_levels() -> None:
    gate = PerformanceGate(metric=parse_metric("output_throughput"))
    stored = entry("output_throughput", MetricBaseline(sessions=NOISY))
    strict, loose = (
        judge_performance(gate, result("output_throughput", [99.5]), stored, 0.05, alpha=alpha) for alpha in (0.01, 0.2)
    )
    assert strict.details["level"] < loose.details["level"]  # type: ignore[operator]
    assert (strict.status, loose.status) == (Status.INCONCLUSIVE, Status.PASS)


@pytest.mark.parametrize(("rounds", "status"), [(2, Status.PASS), (1, Status.FAIL), (3, Status.FAIL)])
@pytest.mark.parametrize("identity", [{"dataset": "chats-12345678"}, {"isl": 4}])
def test_other_records_of_a_data_set_are_no_baseline(identity: dict[str, Any], rounds: int, status: Status) -> None:
    """Each round reads its own: fewer rounds of shorter answers would hide a loss."""
    stored = MetricBaseline(sessions=((100.0, 100.0),))
    on_file = replace(entry("output_throughput", stored), identity=identity)
    gate = PerformanceGate(metric=parse_metric("output_throughput"))
    verdict = judge_performance(gate, result("output_throughput", [100.0] * rounds), on_file, 0.05)
    assert verdict.status is (status if "dataset" in identity else Status.PASS)
    assert ("other records of the data set" in verdict.reason) is (verdict.status is Status.FAIL)
