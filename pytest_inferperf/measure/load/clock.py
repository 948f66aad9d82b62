"""How wrong the generator's own clock is, measured while it runs.

Four ways for a client to lie, and their measures: its process does not run when it should (`lag`: how late a deadline of
its own is met, every 10 ms); data waits in the kernel while it is busy (`wait`: from the kernel's own receive time to the
timestamp, for a sample of arrivals; without kernel times, the time since the last look at the sockets, an upper bound);
it sends later than planned (`lateness`, open loop); it uses up its core (`cpu_share`).
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from dataclasses import dataclass

from pytest_inferperf.measure.load.records import Sample

__all__ = ["ClockError", "ClockLimits", "ClockMeter", "ClockReport", "client_bound"]

_BEAT_S = 0.01
_SAMPLE_EVERY = 16
_TIMESTAMPNS = 35
"""SO_TIMESTAMPNS on Linux, which the socket module does not name."""


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
    """Arrivals: how long data waited for its timestamp."""

    wait_source: str
    """`kernel` where the kernel's receive times were read, else `bound`."""

    lateness: ClockError | None
    """Sends after their planned time, under open loop."""

    cpu_share: float
    """Share of one core that the client used in the measured time, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class ClockLimits:
    """From where on the client, not the server, is what was measured."""

    error_share: float = 0.02
    """Largest mean lag, wait or lateness as a share of the mean TTFT."""

    error_floor_ms: float = 0.5
    """A mean error up to this is allowed whatever the TTFT."""

    cpu_share: float = 0.95


class ClockMeter:
    """Collects the clock's error. The generator tells it when it woke and what arrived."""

    def __init__(self) -> None:
        self._lag, self._wait, self._lateness = Sample(), Sample(), Sample()
        self._next_beat = time.perf_counter() + _BEAT_S
        self._arrivals = 0
        self._kernel = False
        self._cpu = self._start = 0.0

    @property
    def next_beat(self) -> float:
        """When the generator must look at the clock again."""
        return self._next_beat

    def start(self) -> None:
        """Begin the measured time, on the thread that runs the generator."""
        self._cpu, self._start = time.thread_time(), time.perf_counter()
        self._lag, self._wait, self._lateness = Sample(), Sample(), Sample()

    def beat(self, now: float) -> None:
        """Take the time at which the generator woke."""
        if now >= self._next_beat:
            self._lag.add(1000 * (now - self._next_beat))
            self._next_beat = now + _BEAT_S

    def late(self, seconds: float) -> None:
        """Take how long after its planned time a request was sent."""
        self._lateness.add(1000 * max(0.0, seconds))

    def sampled(self) -> bool:
        """Say whether the wait of this arrival is to be measured: one in 16."""
        self._arrivals += 1
        return not self._arrivals % _SAMPLE_EVERY

    def receive(self, sock: socket.socket, size: int, now: float, since: float) -> bytes:
        """Receive from a plain socket, and note how long the data had waited at `now`.

        `since` is when the sockets were looked at before. Raises what `socket.recv` raises.
        """
        if not sys.platform.startswith("linux"):
            self.bound(now, since)
            return sock.recv(size)
        data, found, _, _ = sock.recvmsg(size, 64)
        for level, kind, value in found:
            if level == socket.SOL_SOCKET and kind == _TIMESTAMPNS and len(value) == 16:
                seconds, nanoseconds = struct.unpack("qq", value)
                came = time.time() - seconds - nanoseconds / 1e9
                waited = came - (time.perf_counter() - now)
                # A wall clock that was set meanwhile says nothing.
                if -0.1 < waited < 60:
                    self._kernel = True
                    self._wait.add(1000 * max(0.0, waited))
                return data
        self.bound(now, since)
        return data

    def bound(self, now: float, since: float) -> None:
        """Note that an arrival cannot have waited longer than since the sockets were looked at before."""
        self._wait.add(1000 * (now - since))

    @staticmethod
    def prepare(sock: socket.socket) -> None:
        """Ask the kernel to keep receive times for a socket, where it can."""
        if sys.platform.startswith("linux"):
            try:
                sock.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
            except OSError:
                # A kernel or sandbox without them: the bound is used instead.
                return

    def report(self) -> ClockReport:
        """Return what was found since `start`."""
        wall = time.perf_counter() - self._start
        return ClockReport(
            lag=_error(self._lag),
            wait=_error(self._wait),
            wait_source="kernel" if self._kernel else "bound",
            lateness=_error(self._lateness),
            cpu_share=(time.thread_time() - self._cpu) / wall if wall > 0 else 0.0,
        )


def _error(sample: Sample) -> ClockError | None:
    if not len(sample):
        return None
    p99, largest = sample.percentiles(99, 100)
    return ClockError(mean_ms=sample.mean, p99_ms=p99, max_ms=largest)


def client_bound(report: ClockReport, *, ttft_ms: float, limits: ClockLimits) -> str:
    """Say why the client was the bottleneck of a run with this mean TTFT; "" where it was not."""
    if report.cpu_share > limits.cpu_share:
        return (
            f"client-bound: the load generator used {100 * report.cpu_share:.0f} % of a core, so the figures may be its "
            "own. Lower the load, or measure from a faster machine."
        )
    limit = max(limits.error_floor_ms, limits.error_share * ttft_ms)
    causes = (
        # The kernel's times say how late arrivals were seen; without them, how late the process ran stands in.
        (None if report.wait_source == "kernel" else report.lag, "ran late"),
        (report.wait, "took the time of arrivals late"),
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
