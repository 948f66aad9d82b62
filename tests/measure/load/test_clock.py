"""The clock's own error: measured, and judged."""

from __future__ import annotations

import time

import pytest

from pytest_inferperf.measure.load.clock import ClockError, ClockLimits, ClockMeter, ClockReport, client_bound

SMALL = ClockError(mean_ms=0.1, p99_ms=0.4, max_ms=2.0)
LARGE = ClockError(mean_ms=9.0, p99_ms=30.0, max_ms=40.0)


def report(
    *,
    lag: ClockError | None = SMALL,
    wait: ClockError | None = SMALL,
    wait_source: str = "kernel",
    lateness: ClockError | None = None,
    cpu_share: float = 0.1,
    idle_share: float = 0.0,
) -> ClockReport:
    return ClockReport(
        lag=lag, wait=wait, wait_source=wait_source, lateness=lateness, cpu_share=cpu_share, idle_share=idle_share
    )


def test_a_good_clock() -> None:
    assert client_bound(report(), ttft_ms=1.0, limits=ClockLimits()) == ""
    assert client_bound(report(wait=None, lag=None), ttft_ms=1.0, limits=ClockLimits()) == ""


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (
            report(wait=LARGE, wait_source="bound"),
            "took the time of arrivals late by 9.00 ms in the mean (p99 30.00), where 4.00 ms",
        ),
        (report(lateness=LARGE), "sent after the planned time by 9.00 ms"),
        (report(lag=LARGE, wait_source="bound"), "ran late by 9.00 ms"),
        (report(cpu_share=0.99), "used 99 % of a core"),
    ],
)
def test_a_bad_clock(bad: ClockReport, cause: str) -> None:
    found = client_bound(bad, ttft_ms=200.0, limits=ClockLimits())
    assert found.startswith("client-bound: ")
    assert cause in found
    if bad.cpu_share < 0.9:
        assert client_bound(bad, ttft_ms=500.0, limits=ClockLimits()) == ""


def test_where_the_kernel_timed_the_arrivals_a_late_process_is_excused() -> None:
    assert client_bound(report(lag=LARGE, wait=LARGE), ttft_ms=200.0, limits=ClockLimits()) == ""


def test_a_core_that_is_filled_with_what_could_wait_is_no_bottleneck() -> None:
    """Answers are read whenever nothing else is to be done: a process that is far from its limits uses all its time so."""
    assert client_bound(report(cpu_share=1.0, idle_share=0.4), ttft_ms=200.0, limits=ClockLimits()) == ""
    assert "used 96 %" in client_bound(report(cpu_share=1.0, idle_share=0.04), ttft_ms=200.0, limits=ClockLimits())


def test_several_clocks_as_one() -> None:
    meters = []
    for late_s in (0.001, 0.003):
        meter = ClockMeter()
        meter.start()
        meter.late(late_s)
        meter.waited([1000 * late_s])
        meter.idle(0.001)
        meter.stop()
        meters.append(meter)
    found, each = ClockMeter.joined(meters).report(), [meter.report() for meter in meters]
    assert found.lateness == found.wait
    assert found.wait is not None
    assert (found.wait.mean_ms, found.wait.p99_ms, found.wait.max_ms) == pytest.approx((2.0, 2.98, 3.0))
    assert found.cpu_share == pytest.approx(sum(item.cpu_share for item in each))
    assert found.idle_share == pytest.approx(sum(item.idle_share for item in each))
    assert found.wait_source == "kernel"
    meters[1].bound(0.002)
    assert ClockMeter.joined(meters).report().wait_source == "bound"


def test_lag_is_what_a_deadline_was_missed_by() -> None:
    meter = ClockMeter()
    meter.start()
    first = meter.next_beat
    meter.beat(first - 0.001)
    meter.beat(first + 0.005)
    meter.beat(meter.next_beat + 0.007)
    lag = meter.report().lag
    assert lag is not None
    assert lag.mean_ms == pytest.approx(6.0)
    assert lag.max_ms == pytest.approx(7.0, abs=0.01)


def test_waits_and_where_they_are_known_from() -> None:
    meter = ClockMeter()
    meter.start()
    meter.waited([4.0, 0.0])
    found = meter.report()
    assert found.wait is not None
    assert found.wait.mean_ms == pytest.approx(2.0)
    assert found.wait_source == "kernel"
    meter.bound(0.005)
    assert meter.report().wait_source == "bound"


def test_the_share_of_the_core() -> None:
    meter = ClockMeter()
    meter.start()
    time.sleep(0.05)
    meter.stop()
    idle = meter.report().cpu_share
    meter.start()
    until = time.thread_time() + 0.05
    while time.thread_time() < until:
        pass
    meter.stop()
    assert 0 <= idle < meter.report().cpu_share <= 1.05


def test_lateness_is_never_negative() -> None:
    meter = ClockMeter()
    meter.start()
    meter.late(-0.001)
    meter.late(0.003)
    found = meter.report().lateness
    assert found is not None
    assert found.mean_ms == pytest.approx(1.5)
