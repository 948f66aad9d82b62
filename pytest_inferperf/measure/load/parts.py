"""What one process sent and got of a load, and how the parts of all of them become the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_inferperf.measure.load.accounts import in_window
from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.outputs import Output, drawn
from pytest_inferperf.measure.load.plan import Failure, LoadPlan, LoadRun
from pytest_inferperf.measure.load.records import FILLER, WARMUP, Records, Sample

__all__ = ["Part", "whole_run"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process's part of a load. Times are seconds on the clock that all processes of a machine share."""

    records: Records
    itl_ms: Sample
    chunk_gap_ms: Sample
    failures: dict[str, Failure]
    count_sources: dict[str, int]
    cached_tokens: int
    outputs: tuple[Output, ...]
    meter: ClockMeter
    issued: tuple[int, ...]
    """Requests of each kind."""

    flying: tuple[float, ...]
    """When the requests had been sent that were in flight at the end."""

    warmed: float | None
    """When its warm-up was over; None where it never was."""

    first_measured: float | None
    last: float
    """When its last measured request ended, or when it stopped short of that."""

    retries: int
    reconnects: int


def whole_run(plan: LoadPlan, parts: Sequence[Part], *, interrupted: bool) -> LoadRun:
    """Put the parts of a run together: its window begins when all have warmed up, and ends with the last of them."""
    stop = max(part.last for part in parts)
    warmed = [part.warmed for part in parts if part.warmed is not None]
    start = max(warmed) if len(warmed) == len(parts) else stop
    begins = [part.first_measured for part in parts if part.first_measured is not None]
    if start >= stop or (plan.arrivals is not None and plan.arrivals.has_end):
        # The measured requests were faster than the slowest of the warm-up, or there was none.
        start = min([stop, *begins])
    flying = [sent for part in parts for sent in part.flying]
    fillers = sum(part.issued[FILLER] for part in parts)
    # Until the last has ended, the others send fillers, and all of them some more: those never were.
    until = stop if len(parts) > 1 else float("inf")
    records, late = Records.joined([part.records for part in parts], until)
    if len(parts) > 1:
        everything = [*flying, *late]
        # One that had no connection yet was never sent.
        flying = [sent for sent in everything if 0 < sent < stop]
        fillers -= len(everything) - len(flying)
    held, requests, tokens = in_window(records, flying, start, stop)
    begun = min([start, *begins])
    failures: dict[str, Failure] = {}
    sources: dict[str, int] = {}
    for part in parts:
        for cause, failure in part.failures.items():
            known = failures.setdefault(cause, Failure(example=failure.example))
            known.count += failure.count
        for source, count in part.count_sources.items():
            sources[source] = sources.get(source, 0) + count
    return LoadRun(
        plan=plan,
        records=records,
        itl_ms=Sample.joined([part.itl_ms for part in parts]),
        chunk_gap_ms=Sample.joined([part.chunk_gap_ms for part in parts]),
        start=start,
        stop=stop,
        held=held,
        window_tokens=tokens,
        window_requests=requests,
        failures=failures,
        warmup=sum(part.issued[WARMUP] for part in parts),
        fillers=fillers,
        cut=len(flying),
        retries=sum(part.retries for part in parts),
        reconnects=sum(part.reconnects for part in parts),
        cached_tokens=sum(part.cached_tokens for part in parts),
        count_sources=sources,
        interrupted=interrupted,
        clock=ClockMeter.joined([part.meter for part in parts]).report(),
        clocks=tuple(part.meter.report() for part in parts),
        held_measured=in_window(records, flying, begun, stop)[0] if len(parts) > 1 else None,
        outputs=drawn([output for part in parts for output in part.outputs], plan.kept),
    )
