"""From what happened to figures, or to the reason why there are none."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from pytest_inferperf.errors import InvalidRun, SettingsError
from pytest_inferperf.measure.load.arrivals import Arrivals
from pytest_inferperf.measure.load.clock import ClockError, ClockReport
from pytest_inferperf.measure.load.generator import Failure, LoadPlan, LoadRun
from pytest_inferperf.measure.load.records import FILLER, MEASURED, WARMUP, Records, Sample
from pytest_inferperf.measure.load.summary import check_load, check_slo, summarise_load

CLOCK = ClockReport(
    lag=None, wait=ClockError(mean_ms=0.1, p99_ms=0.2, max_ms=0.3), wait_source="kernel", lateness=None, cpu_share=0.1
)


def made(*, failures: int = 0, **changes: Any) -> LoadRun:
    """Four measured requests of 5 tokens: TTFT 100, 200, 300, 400 ms; TPOT 10 ms; the warm-up was far slower."""
    records = Records()
    itl, gaps = Sample(), Sample()
    for kind, ttft in (
        (WARMUP, 9.0),
        (MEASURED, 0.1),
        (MEASURED, 0.2),
        (MEASURED, 0.3),
        (MEASURED, 0.4),
        (FILLER, 8.0),
    ):
        records.add(
            kind=kind,
            ok=True,
            intended=10.0,
            sent=10.0,
            first=10.0 + ttft,
            last=10.04 + ttft,
            done=10.04 + ttft,
            tokens=5,
            first_tokens=1,
            prompt_tokens=20,
        )
        if kind == MEASURED:
            itl.extend([10.0] * 4)
            gaps.extend([10.0] * 4)
    for _ in range(failures):
        records.add(kind=MEASURED, ok=False, intended=10.0, sent=10.0, done=11.0)
    run = LoadRun(
        plan=LoadPlan(num_requests=4 + failures, osl=5, concurrency=2),
        records=records,
        itl_ms=itl,
        chunk_gap_ms=gaps,
        start=10.0,
        stop=12.0,
        held=1.99,
        window_tokens=30.0,
        window_requests=6,
        failures={"http_500": Failure(count=failures, example="HTTP 500: boom")} if failures else {},
        warmup=1,
        fillers=1,
        cut=0,
        retries=0,
        reconnects=0,
        cached_tokens=0,
        count_sources={"usage": 4},
        interrupted=False,
        clock=CLOCK,
    )
    return replace(run, **changes)


def test_figures() -> None:
    found = summarise_load(made(), isl=3, slo={"ttft_ms": 250.0, "tpot_ms": 20.0}, devices=2)
    assert found.metrics == pytest.approx(
        {
            "output_throughput": 15.0,
            "output_throughput_per_gpu": 7.5,
            "total_throughput": 75.0,
            "request_throughput": 3.0,
            "output_throughput_per_user": 100.0,
            "goodput": 1.5,
            "ttft_ms.mean": 250.0,
            "ttft_ms.p50": 250.0,
            "ttft_ms.p90": 370.0,
            "ttft_ms.p95": 385.0,
            "ttft_ms.p99": 397.0,
            "e2e_latency_ms.mean": 290.0,
            "e2e_latency_ms.p50": 290.0,
            "e2e_latency_ms.p90": 410.0,
            "e2e_latency_ms.p95": 425.0,
            "e2e_latency_ms.p99": 437.0,
            **{f"{name}.{item}": 10.0 for name in ("tpot_ms", "itl_ms", "chunk_gap_ms") for item in STATISTICS},
        }
    )
    assert (found.input_tokens, found.output_tokens, found.num_requests, found.num_failed_requests) == (80, 20, 4, 0)


STATISTICS = ("mean", "p50", "p90", "p95", "p99")


@pytest.mark.parametrize(
    ("slo", "share"),
    [({"ttft_ms": 500.0}, 1.0), ({"e2e_latency_ms": 300.0}, 0.5), ({"tpot_ms": 5.0}, 0.0), ({"ttft_ms": 1.0}, 0.0)],
)
def test_goodput(slo: dict[str, float], share: float) -> None:
    assert summarise_load(made(), isl=3, slo=slo).metrics["goodput"] == pytest.approx(3.0 * share)
    assert "goodput" not in summarise_load(made(), isl=3).metrics


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"failures": 1}, "1 of 5 requests failed, where none may: 1 x http_500 (HTTP 500: boom)"),
        ({"held": 1.97}, "1.97 requests were in flight in the mean, where 2 were asked for and 1.98 are the least"),
        ({"interrupted": True}, "interrupted after 4 of 4 measured requests"),
        ({"cached_tokens": 40}, "40 of 80 prompt tokens came from the server's prefix cache"),
        ({"clock": replace(CLOCK, cpu_share=1.0)}, "client-bound: the load generator used 100 % of a core"),
        (
            {"clocks": (CLOCK, replace(CLOCK, cpu_share=1.0), CLOCK)},
            "process 2 of 3: client-bound: the load generator used 100 % of a core",
        ),
        (
            {"clock": replace(CLOCK, wait_source="bound", wait=ClockError(mean_ms=20.0, p99_ms=50.0, max_ms=60.0))},
            "client-bound: the load generator took the time of arrivals late by 20.00 ms",
        ),
    ],
)
def test_a_run_that_cannot_be_trusted_gives_no_figure(changes: dict[str, Any], cause: str) -> None:
    run = made(**changes)
    assert check_load(run).startswith(cause)
    with pytest.raises(InvalidRun, match=f"^{re.escape(cause)}"):
        summarise_load(run, isl=3)


def test_several_processes_may_use_more_than_a_core_together() -> None:
    assert check_load(made(clock=replace(CLOCK, cpu_share=1.8), clocks=(CLOCK, CLOCK))) == ""


def test_what_may_be_allowed() -> None:
    assert check_load(made()) == ""
    assert check_load(made(failures=1), max_failed_share=0.2) == ""
    assert check_load(made(held=1.5), min_held_share=0.75) == ""
    assert check_load(made(cached_tokens=40), max_cached_share=0.5) == ""


def test_prompts_that_were_changed_on_the_way() -> None:
    assert check_load(made(), isl=20) == ""
    assert check_load(made(), isl=21) == (
        "the server counted 20 to 20 prompt tokens for a request where 21 were sent: the prompts were changed on the way"
    )


def test_no_success() -> None:
    run = made(failures=3)
    for index in range(len(run.records)):
        run.records.ok[index] = 0
    assert check_load(run) == "no request had success: 3 x http_500 (HTTP 500: boom)"


def test_open_loop_has_no_concurrency_to_hold_and_counts_from_when_requests_were_due() -> None:
    run = made()
    for index in range(len(run.records)):
        run.records.intended[index] -= 1.0
    assert summarise_load(run, isl=3).metrics["ttft_ms.p50"] == pytest.approx(1250.0)


def test_slos_that_are_none() -> None:
    with pytest.raises(
        SettingsError, match=r"^SLO 'ttft' is unknown\. Did you mean 'ttft_ms'\? SLOs: e2e_latency_ms, "
    ):
        check_slo({"ttft": 3.0})
    with pytest.raises(SettingsError, match=r"^SLO ttft_ms 0 ms: must be above 0\.$"):
        check_slo({"ttft_ms": 0.0})


def open_loop(*lateness_s: float) -> LoadRun:
    """A request due every 10 ms, each sent so late."""
    records = Records()
    for number, late in enumerate(lateness_s):
        due = 10.0 + 0.01 * number
        first = due + 0.5
        records.add(
            kind=MEASURED,
            ok=True,
            intended=due,
            sent=due + late,
            first=first,
            last=first,
            done=first,
            tokens=5,
            first_tokens=1,
            prompt_tokens=20,
        )
    plan = LoadPlan(num_requests=len(lateness_s), osl=5, arrivals=Arrivals(rate=100.0, kind="constant"))
    return replace(made(), plan=plan, records=records)


def test_rate_is_held_where_one_send_was_late() -> None:
    assert check_load(open_loop(*[0.0] * 50, 0.05, *[0.0] * 50)) == ""


def test_rate_is_not_held_where_sends_get_ever_later() -> None:
    """100 requests over 1 s, the last sent nearly half a second after its time."""
    cause = check_load(open_loop(*[0.005 * number for number in range(101)]))
    assert cause.startswith("the last requests went out 478 ms after they were due, in a run of 1.00 s: 67.68 requests")
    assert "where 100 were asked for" in cause
