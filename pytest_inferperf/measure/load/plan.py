"""What a load is, and what came of it: two values."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.measure.load.arrivals import Arrivals, TraceTimes
from pytest_inferperf.measure.load.clock import ClockReport
from pytest_inferperf.measure.load.outputs import Output
from pytest_inferperf.measure.load.records import Records, Sample
from pytest_inferperf.measure.load.skew import HostClock

__all__ = ["Failure", "LoadPlan", "LoadRun"]


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What is sent. Raises `SettingsError` for a value out of range, and unless exactly one kind of loop is given."""

    num_requests: int
    """Requests that are measured; warm-up and fillers come on top."""

    osl: int
    """Output tokens every request asks for, and must get."""

    follow_ups: int = 0
    """Of `num_requests`, the later turns of conversations, which come when the turns before them are answered."""

    concurrency: int = 0
    """Closed loop: requests in flight."""

    arrivals: Arrivals | TraceTimes | None = None
    """Open loop: when requests are due."""

    timeout_s: float = 600.0
    """From the send of a request to the end of its answer."""

    retries: int = 0
    """How often a request that is answered with 429 or 503 is sent again."""

    kept: int = 0
    """Answers to measured requests that are kept, drawn by chance: all have the same one."""

    def __post_init__(self) -> None:
        if (self.concurrency > 0) == (self.arrivals is not None):
            raise SettingsError("give either a concurrency (closed loop) or a request rate (open loop).")
        for name, low in (("num_requests", 1), ("osl", 1), ("concurrency", 0), ("retries", 0), ("kept", 0)):
            if getattr(self, name) < low:
                raise SettingsError(f"{name} {getattr(self, name)}: must be at least {low}.")
        if not self.timeout_s > 0:
            raise SettingsError(f"timeout {self.timeout_s:g} s: must be above 0.")


@dataclass(kw_only=True)
class Failure:
    """Measured requests that failed for one cause."""

    count: int = 0
    example: str = ""
    """The detail of the first."""


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    """What happened, before anything is made of it. Times are seconds on one clock."""

    plan: LoadPlan
    records: Records
    itl_ms: Sample
    """Over tokens of measured requests: a chunk of k tokens counts as k gaps of its gap / k."""

    chunk_gap_ms: Sample
    """Between successive chunks of measured requests."""

    start: float
    """Of the window."""

    stop: float
    held: float
    """Requests in flight, mean over the window."""

    window_tokens: float
    """Output tokens of the requests of the window, counted as they are."""

    window_requests: float
    """Requests with success, warm-up and fillers included: each counts with the share of its time that lies in the window.

    At the start of the window many requests have just begun, at its end they are anywhere; counting those that end in it
    would lose half a request per stream.
    """

    failures: dict[str, Failure]
    """Of measured requests, by cause."""

    warmup: int
    """Warm-up requests, not measured."""

    fillers: int
    """Requests sent after the measured ones, not measured."""

    cut: int
    """Requests that were cut off at the end."""

    retries: int
    reconnects: int
    """Connections that the server closed and that were opened again."""

    cached_tokens: int
    """Prompt tokens of measured requests that the server says came from a cache."""

    count_sources: dict[str, int]
    """How the tokens of measured requests were counted: `usage`, `token_ids`, `tokenizer`, `chunks`."""

    interrupted: bool
    clock: ClockReport
    clocks: tuple[ClockReport, ...] = ()
    """Of each process that sent a part of the load."""

    outputs: tuple[Output, ...] = ()
    """The answers that were kept."""

    held_measured: float | None = None
    """Requests in flight, mean from when the first measured one was due to the end of the window: less than `held` where a
    process began late, while others had less competition than was asked for. None for a single process."""

    hosts: tuple[HostClock, ...] = ()
    """The other machines that sent it, in the order of `clocks`, each with as many of them as it has processes; none where
    this one did."""
