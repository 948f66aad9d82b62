"""What the clock of another host says on ours."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.load.clock import ClockLimits
from pytest_inferperf.measure.load.skew import HostClock, Offset, measure_offset, out_of_step


class Far:
    """A clock that is `ahead_s`, and goes at `rate`; each way there and back takes what the test says."""

    def __init__(
        self, *, ahead_s: float, rate: float = 1.0, there: Callable[[], float], back: Callable[[], float]
    ) -> None:
        self.now, self._ahead_s, self._rate, self._there, self._back = 50.0, ahead_s, rate, there, back

    def ours(self) -> float:
        return self.now

    def read(self) -> float:
        self.now += self._there()
        found = self._rate * self.now + self._ahead_s
        self.now += self._back()
        return found


@pytest.mark.parametrize(
    ("there_s", "back_s"),
    [(0.001, 0.001), (0.004, 0.001), (0.0, 0.003), (0.003, 0.0)],
    ids=["both ways alike", "slower there", "all of it back", "all of it there"],
)
@pytest.mark.parametrize("ahead_s", [0.0, 123_456.75, -9.5])
def test_the_true_offset_is_within_the_bound_whichever_way_is_slower(
    there_s: float, back_s: float, ahead_s: float
) -> None:
    far = Far(ahead_s=ahead_s, there=lambda: there_s, back=lambda: back_s)
    found = measure_offset(far.read, clock=far.ours)
    assert found.bound_s == pytest.approx((there_s + back_s) / 2)
    assert found.offset_s == pytest.approx(ahead_s, abs=found.bound_s + 1e-9)


def test_the_shortest_of_many_exchanges_counts() -> None:
    """Delays of a busy network have a long tail, and are mostly on one way at a time."""
    chance = random.Random(0)
    far = Far(ahead_s=7.0, there=lambda: 0.0002 + chance.expovariate(500), back=lambda: 0.0002 + chance.expovariate(50))
    once = measure_offset(far.read, exchanges=1, clock=far.ours)
    found = measure_offset(far.read, clock=far.ours)
    assert found.bound_s < once.bound_s / 3
    assert found.offset_s == pytest.approx(7.0, abs=found.bound_s)


def test_a_clock_that_goes_wrong_in_the_run_is_seen_afterwards() -> None:
    far = Far(ahead_s=7.0, rate=1.0001, there=lambda: 0.0005, back=lambda: 0.0005)
    before = measure_offset(far.read, clock=far.ours)
    far.now += 100
    found = HostClock.of("far", 1, before, measure_offset(far.read, clock=far.ours))
    # 100 ppm of 100 s are 10 ms.
    assert found.drift_ms == pytest.approx(10, rel=0.01)
    assert found.error_ms == pytest.approx(0.5 + 5, rel=0.01)


def clock(*, bound_ms: float = 0.2, drift_ms: float = 0.0) -> HostClock:
    """Return the clock of a host, asked twice with 10 s in between."""
    before = Offset(offset_s=5.0, bound_s=bound_ms / 2000, at_s=50.0)
    after = Offset(offset_s=5.0 + drift_ms / 1000, bound_s=bound_ms / 1000, at_s=60.0)
    return HostClock.of("node b", 1, before, after)


def cause(found: HostClock, *, window_s: float = 10.0, ttft_ms: float = 200.0, open_loop: bool = False) -> str:
    return out_of_step([clock(), found], window_s=window_s, ttft_ms=ttft_ms, open_loop=open_loop, limits=ClockLimits())


@pytest.mark.parametrize(
    "found", [clock(), clock(bound_ms=9.9), clock(drift_ms=-8)], ids=["well known", "far away", "drifts a little"]
)
def test_a_clock_that_is_known_well_enough(found: HostClock) -> None:
    assert not cause(found)


def test_a_host_so_far_away_that_its_clock_is_not_known() -> None:
    assert cause(clock(bound_ms=10.5)) == (
        "clock skew: moments of node b are known within 10.500 ms (half of a round trip 10.500, drift in the run +0.000), "
        "where 10.000 ms is allowed, 0.1 % of a window of 10.00 s. Measure for longer, from hosts nearby, or see to that "
        "host's clock."
    )
    assert not cause(clock(bound_ms=10.5), window_s=20)


def test_a_clock_that_was_set_in_the_run() -> None:
    assert "drift in the run -300.000" in cause(clock(drift_ms=-300))


def test_a_clock_that_jumped_makes_latencies_wrong_by_all_of_it_however_long_the_window() -> None:
    assert cause(clock(drift_ms=-15), window_s=1000) == (
        "clock skew: the clock of node b jumped in the run (drift -15.000 ms, of which 9.700 is more than a clock goes wrong "
        "by that runs), and latencies that it timed are wrong by as much. See to that host's clock, or to what stopped the "
        "machine, and run it again."
    )
    # A share of a TTFT that long.
    assert not cause(clock(drift_ms=-15), window_s=1000, ttft_ms=600)


@pytest.mark.parametrize("time_s", [math.nan, math.inf])
def test_what_is_no_time(time_s: float) -> None:
    with pytest.raises(EngineError, match=r"^a host that sends load says that its clock is at (nan|inf): no time\.$"):
        measure_offset(lambda: time_s)


def test_an_error_that_is_no_number_is_none_that_is_allowed() -> None:
    assert cause(clock(bound_ms=math.nan)).startswith("clock skew: ")
    assert cause(clock(drift_ms=math.nan)).startswith("clock skew: ")


def test_hosts_that_send_one_arrival_process_may_be_no_further_apart_than_a_send_may_be_late() -> None:
    assert not cause(clock(bound_ms=4.5))
    assert "what a send may be late at a mean TTFT of 200.0 ms" in cause(clock(bound_ms=4.5), open_loop=True)
    assert not cause(clock(bound_ms=3.5), open_loop=True)
    assert "where 0.500 ms is allowed" in cause(clock(bound_ms=0.6), open_loop=True, ttft_ms=3)


def test_no_host_is_in_step() -> None:
    assert not out_of_step([], window_s=1e-9, ttft_ms=1, open_loop=True, limits=ClockLimits())
