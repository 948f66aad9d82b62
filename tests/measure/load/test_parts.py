"""The parts of several processes become one run, and nothing is counted that was never sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.hosts import _here
from pytest_inferperf.measure.load.parts import Part, whole_run
from pytest_inferperf.measure.load.plan import LoadPlan
from pytest_inferperf.measure.load.records import FILLER, MEASURED, Records, Sample


def part(*rows: tuple[int, float, float]) -> Part:
    """Return a part of requests of so many kinds, sent and done then."""
    records = Records()
    for kind, sent, done in rows:
        records.add(kind=kind, ok=True, intended=sent, sent=sent, done=done, first=done, last=done, tokens=8)
    figures: dict[str, Any] = {"failures": {}, "count_sources": {}, "cached_tokens": 0, "outputs": (), "flying": ()}
    return Part(
        records=records,
        itl_ms=Sample(),
        chunk_gap_ms=Sample(),
        meter=ClockMeter(),
        issued=tuple(sum(kind == one for one, _, _ in rows) for kind in range(3)),
        warmed=10.0,
        first_measured=10.0,
        last=max(done for kind, _, done in rows if kind == MEASURED),
        retries=0,
        reconnects=0,
        **figures,
    )


def test_what_never_had_a_connection_was_not_in_flight() -> None:
    """A server that ends with the load refuses the requests that would come next; they are no streams that it held."""
    plan = LoadPlan(num_requests=2, osl=8, concurrency=2)
    rows = [(MEASURED, 10.0, 20.0)]
    clean = whole_run(plan, [part(*rows), part(*rows)], interrupted=False)
    refused = [(FILLER, 0.0, 20.1)] * 5
    run = whole_run(plan, [part(*rows, *refused), part(*rows)], interrupted=False)
    assert (run.held, run.window_requests, run.window_tokens) == (
        clean.held,
        clean.window_requests,
        clean.window_tokens,
    )
    assert clean.held == 2.0


def test_what_was_in_flight_at_the_end_is_a_stream_that_was_held() -> None:
    plan = LoadPlan(num_requests=2, osl=8, concurrency=2)
    rows = [(MEASURED, 10.0, 15.0), (FILLER, 15.0, 25.0)]
    run = whole_run(plan, [part(*rows), part((MEASURED, 10.0, 20.0))], interrupted=False)
    assert (run.held, run.cut) == (2.0, 1)


def test_what_was_never_sent_has_no_moment_on_another_clock_either() -> None:
    there = replace(part((MEASURED, 10.0, 20.0), (FILLER, 0.0, 20.1)), flying=(0.0, 19.0))
    here = _here(there, -1000.0)
    assert here.flying == (0.0, 1019.0)
    assert list(here.records.sent) == [1010.0, 0.0]
