"""The parts of several processes become one run, and nothing is counted that was never sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_inferperf.measure.load.arrivals import Arrivals, TraceTimes
from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.hosts import _here
from pytest_inferperf.measure.load.parts import Part, whole_run
from pytest_inferperf.measure.load.plan import LoadPlan
from pytest_inferperf.measure.load.records import FILLER, MEASURED, WARMUP, Records, Sample


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


def test_a_trace_begins_with_its_first_request_and_not_when_every_process_has_had_one() -> None:
    parts = [part((MEASURED, 10.0, 20.0)), replace(part((MEASURED, 14.0, 24.0)), warmed=14.0, first_measured=14.0)]
    trace = LoadPlan(num_requests=2, osl=8, arrivals=TraceTimes((0.0, 4.0)))
    assert whole_run(trace, parts, interrupted=False).start == 10.0
    rate = LoadPlan(num_requests=2, osl=8, arrivals=Arrivals(rate=1.0))
    assert whole_run(rate, parts, interrupted=False).start == 14.0


def numbered(*rows: tuple[int, int, int, float]) -> Records:
    """Rows of (kind, number, turn, done)."""
    records = Records()
    for kind, number, turn, done in rows:
        records.add(kind=kind, ok=True, intended=1.0, sent=1.0, done=done, number=number, turn=turn)
    return records


def order(records: Records) -> list[tuple[int, int, int]]:
    return list(zip(records.kind, records.number, records.turn, strict=True))


def test_rows_are_in_the_order_of_the_plan_whoever_sent_them() -> None:
    first = numbered(
        (WARMUP, -1, 0, 2.0), (MEASURED, 1, 1, 3.0), (MEASURED, 0, 1, 4.0), (MEASURED, 1, 2, 5.0), (FILLER, -1, 0, 6.0)
    )
    second = numbered((WARMUP, -1, 0, 1.0), (MEASURED, 0, 1, 3.5), (FILLER, -1, 0, 5.5), (FILLER, -1, 0, 9.0))
    found, late = Records.joined([first, second], 8.0)
    measured = [(MEASURED, 0, 1), (MEASURED, 1, 1), (MEASURED, 2, 1), (MEASURED, 2, 2)]
    assert order(found) == [(WARMUP, -1, 0)] * 2 + measured + [(FILLER, -1, 0)] * 2
    assert list(found.done) == [1.0, 2.0, 4.0, 3.5, 3.0, 5.0, 5.5, 6.0]
    assert late == [1.0]


def test_rows_of_one_process_are_too_and_all_stay() -> None:
    found, late = Records.joined(
        [numbered((MEASURED, 1, 0, 3.0), (MEASURED, 0, 0, 4.0), (FILLER, -1, 0, 9.0))], float("inf")
    )
    assert (order(found), late) == ([(MEASURED, 0, 0), (MEASURED, 1, 0), (FILLER, -1, 0)], [])
