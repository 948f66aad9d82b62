"""What a load is, and what came of it: two values."""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    later_turns: tuple[int, ...] = ()
    """Of each conversation, how many of `num_requests` are its later turns, which come when those before them are answered;
    none where each is one turn."""

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
        if self.later_turns and (len(self.later_turns) != self.begun or min(self.later_turns) < 0):
            raise SettingsError(f"{len(self.later_turns)} conversations are not {self.num_requests} requests.")

    @property
    def begun(self) -> int:
        """Measured requests that are no later turns."""
        return self.num_requests - sum(self.later_turns)

    @property
    def most_parts(self) -> int:
        """How many processes can send a part of it: each needs a request that begins, and under closed loop a stream."""
        return min(self.begun, self.concurrency or self.begun)

    @property
    def each_has(self) -> str:
        """What each of them then has, in words, and why there can be no more."""
        what = "conversation" if self.later_turns else "request"
        why = f"{self.concurrency} are in flight" if 0 < self.concurrency < self.begun else f"there are {self.begun}"
        return f"each has a {what} to send: {why}"

    def part(self, index: int, of: int) -> LoadPlan:
        """Return the part of one of several processes: every nth request, with its later turns, and its share of the streams.

        Arrivals stay those of all: the conductor deals them.
        """
        later_turns = self.later_turns[index::of]
        return replace(
            self,
            num_requests=len(range(index, self.begun, of)) + sum(later_turns),
            later_turns=later_turns,
            concurrency=len(range(index, self.concurrency, of)),
        )


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
