"""What the clock of another host says on ours, and whether that is known well enough.

Every host times by its monotonic clock, and those of two hosts have nothing in common: one must be put on the other before
the moments of two hosts stand in one run. A reading of a clock that was asked for lies between the question and the answer,
so the difference is known within half the time that this took: the shortest of many exchanges says it best, whatever
delayed the others and in whichever direction. Latencies are differences on one clock, and need none of this.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.load.clock import ClockLimits

__all__ = ["HostClock", "Offset", "measure_offset", "out_of_step"]

_EXCHANGES = 50

_WINDOW_SHARE = 0.001
"""Largest error of a moment as a share of the window. Rates count what lies between two moments, so they are wrong by up to
twice as much, 0.2 %: a fifth of the 1 % that a load may fall short of what was asked for."""

_SLEW = 500e-6
"""How much faster or slower a clock may go that is being put right: what NTP does at most."""


@dataclass(frozen=True, kw_only=True)
class Offset:
    """How far a clock is ahead of ours at one time."""

    offset_s: float
    bound_s: float
    """How far off that can be: half of the shortest exchange."""

    at_s: float = 0.0
    """When it was found, on our clock."""


@dataclass(frozen=True, kw_only=True)
class HostClock:
    """One host that sent a part of a load, and how well its clock was known."""

    host: str
    processes: int
    offset_s: float
    """How far its clock was ahead of ours, in the middle of the run."""

    bound_ms: float
    """How far off that can be: half of the shortest exchange, before the run or after it, whichever is longer."""

    drift_ms: float
    """How much further ahead it was after the run than before it."""

    jump_ms: float = 0.0
    """What of the drift no clock that only goes too fast or too slow has: it was set, or its machine stood still."""

    @property
    def error_ms(self) -> float:
        """How far a moment of it can lie from where it is put: wherever in the run its clock went off."""
        return self.bound_ms + abs(self.drift_ms) / 2

    @classmethod
    def of(cls, host: str, processes: int, before: Offset, after: Offset) -> HostClock:
        """Put together what was found before a run and after it."""
        drift_s = after.offset_s - before.offset_s
        steady_s = _SLEW * (after.at_s - before.at_s) + before.bound_s + after.bound_s
        return cls(
            host=host,
            processes=processes,
            offset_s=(before.offset_s + after.offset_s) / 2,
            bound_ms=1000 * max(before.bound_s, after.bound_s),
            drift_ms=1000 * drift_s,
            jump_ms=1000 * max(0.0, abs(drift_s) - steady_s),
        )


def measure_offset(
    read: Callable[[], float], *, exchanges: int = _EXCHANGES, clock: Callable[[], float] = time.perf_counter
) -> Offset:
    """Ask for the time of another clock again and again, and return how far it is ahead of `clock`.

    Raises `EngineError` for an answer that is no time.
    """
    found: Offset | None = None
    for _ in range(exchanges):
        before = clock()
        theirs = read()
        after = clock()
        if not math.isfinite(theirs):
            raise EngineError(f"a host that sends load says that its clock is at {theirs}: no time.")
        bound_s = (after - before) / 2
        if found is None or bound_s < found.bound_s:
            found = Offset(offset_s=theirs - (before + after) / 2, bound_s=bound_s, at_s=after)
    assert found is not None
    return found


def out_of_step(
    hosts: Sequence[HostClock], *, window_s: float, ttft_ms: float, open_loop: bool, limits: ClockLimits
) -> str:
    """Say that the clock of a host is not known well enough for a run with this window and mean TTFT; "" where all are.

    Under open loop the hosts send one arrival process together, and may not be further apart than one process may be late.
    A clock that jumped makes latencies wrong too, by all of the jump, and those may be as wrong as a client may be late.
    """
    allowed_ms, why = 1000 * _WINDOW_SHARE * window_s, f"{100 * _WINDOW_SHARE:g} % of a window of {window_s:.2f} s"
    late_ms = max(limits.error_floor_ms, limits.error_share * ttft_ms)
    if open_loop and late_ms < allowed_ms:
        allowed_ms, why = late_ms, f"what a send may be late at a mean TTFT of {ttft_ms:.1f} ms"
    for host in hosts:
        if not host.error_ms <= allowed_ms:
            return (
                f"clock skew: moments of {host.host} are known within {host.error_ms:.3f} ms (half of a round trip "
                f"{host.bound_ms:.3f}, drift in the run {host.drift_ms:+.3f}), where {allowed_ms:.3f} ms is allowed, {why}. "
                "Measure for longer, from hosts nearby, or see to that host's clock."
            )
        if not host.jump_ms <= late_ms:
            return (
                f"clock skew: the clock of {host.host} jumped in the run (drift {host.drift_ms:+.3f} ms, of which "
                f"{host.jump_ms:.3f} is more than a clock goes wrong by that runs), and latencies that it timed are wrong by as "
                "much. See to that host's clock, or to what stopped the machine, and run it again."
            )
    return ""
