"""How far a load run is, read from its counters while it goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_inferperf.measure.load.accounts import Accounts
    from pytest_inferperf.measure.load.slots import Slot

__all__ = ["LoadState", "joint_state", "load_state"]

_LATEST = 1000
"""Of so many answers, the latest, the first tokens are looked at: a cost that does not grow with the run."""


@dataclass(frozen=True, kw_only=True)
class LoadState:
    """Counters of a run under way. NaN where there is none yet."""

    done: int
    """Measured requests that have ended."""

    requests: int
    in_flight: int
    tokens_per_s: float
    """Output tokens of the answers read so far, over the time that they took together."""

    ttft_p50_ms: float
    ttft_p99_ms: float
    errors: int
    left_s: float
    """At the pace so far, until the last measured request has ended."""

    def __str__(self) -> str:
        parts = [f"{self.done}/{self.requests} requests", f"{self.in_flight} in flight"]
        if not math.isnan(self.tokens_per_s):
            parts.append(f"{self.tokens_per_s:.0f} tok/s")
        if not math.isnan(self.ttft_p50_ms):
            parts.append(f"TTFT p50 {self.ttft_p50_ms:.0f} p99 {self.ttft_p99_ms:.0f} ms")
        parts.append(f"{self.errors} error{'' if self.errors == 1 else 's'}")
        if not math.isnan(self.left_s):
            parts.append(f"{_duration(self.left_s)} left")
        return ", ".join(parts)


def load_state(
    accounts: Accounts,
    slots: Sequence[Slot],
    *,
    done: int,
    requests: int,
    begin: float,
    first_measured: float | None,
    now: float,
) -> LoadState:
    """Read the counters of a run from another thread than the one that writes them. Changes nothing, waits for nothing.

    `begin`, `first_measured` (when the first measured request was due) and `now` are on the generator's clock.
    """
    records = accounts.records
    # Its column is written last: all others have as many rows, or one more.
    rows = len(records.asked_prompt)
    latest = slice(max(0, rows - _LATEST), rows)
    columns = zip(records.ok[latest], records.intended[latest], records.first[latest], strict=True)
    ttft_ms = sorted(1000 * (first - intended) for ok, intended, first in columns if ok)
    elapsed = max(records.done[latest], default=begin) - begin
    pace = done / (now - first_measured) if done and first_measured is not None and now > first_measured else 0.0
    return LoadState(
        done=done,
        requests=requests,
        in_flight=sum(slot.request is not None for slot in list(slots)),
        tokens_per_s=accounts.tokens / elapsed if elapsed > 0 else math.nan,
        ttft_p50_ms=_percentile(ttft_ms, 0.5),
        ttft_p99_ms=_percentile(ttft_ms, 0.99),
        errors=sum(failure.count for failure in list(accounts.failures.values())),
        left_s=(requests - done) / pace if pace else math.nan,
    )


def joint_state(states: Sequence[LoadState], requests: int) -> LoadState:
    """Put the states of several processes together: of their p50 the mean, of their p99 and time left the largest."""

    def known(name: str) -> list[float]:
        return [value for value in (getattr(state, name) for state in states) if not math.isnan(value)]

    return LoadState(
        done=sum(state.done for state in states),
        requests=requests,
        in_flight=sum(state.in_flight for state in states),
        tokens_per_s=math.fsum(known("tokens_per_s")) if known("tokens_per_s") else math.nan,
        ttft_p50_ms=fmean(known("ttft_p50_ms")) if known("ttft_p50_ms") else math.nan,
        ttft_p99_ms=max(known("ttft_p99_ms"), default=math.nan),
        errors=sum(state.errors for state in states),
        left_s=max(known("left_s"), default=math.nan),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
