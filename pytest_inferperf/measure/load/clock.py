"""How wrong the generator's own clock is, measured while it runs.

Arrivals are timed by the kernel, so a process that looks at its sockets late does not call them late. Without kernel
times (another system, some sandboxes) the time at which it looked stands in, and is wrong by up to `wait`. What a client
can still get wrong is measured: its process does not run when it should (`lag`: how late a deadline of its own is met,
every 50 ms), it sends later than planned (`lateness`, open loop), it uses up its core (`cpu_share`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_inferperf.measure.load.records import Sample

__all__ = ["ClockError", "ClockLimits", "ClockMeter", "ClockReport", "client_bound"]

_BEAT_S = 0.05


@dataclass(frozen=True, kw_only=True)
class ClockError:
    """One sample of the clock's own error, milliseconds."""

    mean_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, kw_only=True)
class ClockReport:
    """The clock's own error over a run. An error without a sample is None."""

    lag: ClockError | None
    """Deadlines of the client's own: how late it ran."""

    wait: ClockError | None
    """Arrivals: how long data waited for the client to look at it."""

    wait_source: str
    """`kernel` where the kernel's receive times were read and so no timestamp is wrong by the wait, else `bound`."""

    lateness: ClockError | None
    """Sends after their planned time, under open loop."""

    cpu_share: float
    """Share of one core that the client used in the measured time, 0 to 1 for each of its processes."""

    idle_share: float = 0.0
    """What of it went into reading answers when nothing else was to be done: that could have waited."""


@dataclass(frozen=True, kw_only=True)
class ClockLimits:
    """From where on the client, not the server, is what was measured."""

    error_share: float = 0.02
    """Largest mean error as a share of the mean TTFT."""

    error_floor_ms: float = 0.5
    """A mean error up to this is allowed whatever the TTFT."""

    cpu_share: float = 0.95


class ClockMeter:
    """Collects the clock's error. The generator tells it when it woke and what arrived."""

    def __init__(self) -> None:
        self._lag, self._wait, self._lateness = Sample(), Sample(), Sample()
        self._next_beat = time.perf_counter() + _BEAT_S
        self._kernel = self._bounded = False
        self._cpu = self._start = self._idle_s = 0.0
        self._cpu_share = self._idle_share = 0.0

    @property
    def next_beat(self) -> float:
        """When the generator must look at the clock again."""
        return self._next_beat

    def start(self) -> None:
        """Begin the measured time, on the thread that runs the generator."""
        self._cpu, self._start, self._idle_s = time.thread_time(), time.perf_counter(), 0.0
        self._lag, self._wait, self._lateness = Sample(), Sample(), Sample()

    def beat(self, now: float) -> None:
        """Take the time at which the generator woke."""
        if now >= self._next_beat:
            self._lag.add(1000 * (now - self._next_beat))
            self._next_beat = now + _BEAT_S

    def late(self, seconds: float) -> None:
        """Take how long after its planned time a request was sent."""
        self._lateness.add(1000 * max(0.0, seconds))

    def waited(self, waits_ms: Sequence[float]) -> None:
        """Take how long arrivals had waited in the kernel when the generator looked at them, each at least 0."""
        self._wait.extend(waits_ms)
        self._kernel = True

    def bound(self, seconds: float) -> None:
        """Take the longest that an arrival without a kernel time can have waited."""
        self._wait.add(1000 * seconds)
        self._bounded = True

    def idle(self, seconds: float) -> None:
        """Take how long an answer was read that could have waited."""
        self._idle_s += seconds

    def stop(self) -> None:
        """End the measured time, on the thread that runs the generator."""
        wall = time.perf_counter() - self._start
        if wall > 0:
            self._cpu_share = (time.thread_time() - self._cpu) / wall
            self._idle_share = min(self._cpu_share, self._idle_s / wall)

    @property
    def path_share(self) -> float:
        """Share of the core that was used since `start` for what could not wait."""
        wall = time.perf_counter() - self._start
        return (time.thread_time() - self._cpu - self._idle_s) / wall if wall > 0 else 0.0

    def report(self) -> ClockReport:
        """Return what was found from `start` to `stop`."""
        return ClockReport(
            lag=_error(self._lag),
            wait=_error(self._wait),
            wait_source="kernel" if self._kernel and not self._bounded else "bound",
            lateness=_error(self._lateness),
            cpu_share=self._cpu_share,
            idle_share=self._idle_share,
        )

    def state(self) -> dict[str, Any]:
        """Return what was found from `start` to `stop`, for `of_state`."""
        return {
            "lag": self._lag,
            "wait": self._wait,
            "lateness": self._lateness,
            "kernel": self._kernel,
            "bounded": self._bounded,
            "cpu_share": self._cpu_share,
            "idle_share": self._idle_share,
        }

    @classmethod
    def of_state(
        cls,
        *,
        lag: Sample,
        wait: Sample,
        lateness: Sample,
        kernel: bool,
        bounded: bool,
        cpu_share: float,
        idle_share: float,
    ) -> ClockMeter:
        """Inverse of `state`, in another process."""
        found = cls()
        found._lag, found._wait, found._lateness = lag, wait, lateness
        found._kernel, found._bounded = kernel, bounded
        found._cpu_share, found._idle_share = cpu_share, idle_share
        return found

    @classmethod
    def joined(cls, meters: Sequence[ClockMeter]) -> ClockMeter:
        """Return the errors of several processes as one, and the sum of their CPU shares; of a single one, itself."""
        if len(meters) == 1:
            return meters[0]
        found = cls()
        for name in ("_lag", "_wait", "_lateness"):
            setattr(found, name, Sample.joined([getattr(meter, name) for meter in meters]))
        found._kernel = any(meter._kernel for meter in meters)
        found._bounded = any(meter._bounded for meter in meters)
        found._cpu_share = sum(meter._cpu_share for meter in meters)
        found._idle_share = sum(meter._idle_share for meter in meters)
        return found


def _error(sample: Sample) -> ClockError | None:
    if not len(sample):
        return None
    p99, largest = sample.percentiles(99, 100)
    return ClockError(mean_ms=sample.mean, p99_ms=p99, max_ms=largest)


def client_bound(report: ClockReport, *, ttft_ms: float, limits: ClockLimits) -> str:
    """Say why the client was the bottleneck of a run with this mean TTFT; "" where it was not."""
    share = report.cpu_share - report.idle_share
    if share > limits.cpu_share:
        return (
            f"client-bound: the load generator used {100 * share:.0f} % of a core, so the figures may be its "
            "own. Lower the load, or measure from a faster machine."
        )
    limit = max(limits.error_floor_ms, limits.error_share * ttft_ms)
    # Where the kernel timed the arrivals, looking at them late does no harm.
    timed = report.wait_source == "kernel"
    causes = (
        (None if timed else report.lag, "ran late"),
        (None if timed else report.wait, "took the time of arrivals late"),
        (report.lateness, "sent after the planned time"),
    )
    for error, what in causes:
        if error is not None and error.mean_ms > limit:
            return (
                f"client-bound: the load generator {what} by {error.mean_ms:.2f} ms in the mean (p99 "
                f"{error.p99_ms:.2f}), where {limit:.2f} ms is allowed at a mean TTFT of {ttft_ms:.1f} ms. Leave it a "
                "core of its own, or lower the load."
            )
    return ""
