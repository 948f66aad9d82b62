"""Waivers in a run: which failures they cover, and which of them have expired or cover nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import date, datetime, timezone
from pathlib import Path

from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.model.verdicts import GateVerdict, Status
from pytest_inferperf.waivers import Waiver

__all__ = ["faulty_waivers", "today", "waived", "with_notes"]


def today() -> date:
    """Return the date, UTC: a waiver ends on the same day on every machine."""
    return datetime.now(timezone.utc).date()


def with_notes(
    verdicts: Sequence[GateVerdict], nodeid: str, waivers: Sequence[Waiver], day: date
) -> tuple[GateVerdict, ...]:
    """Say beside every failing gate that is waived until when, and why."""
    return tuple(
        replace(verdict, notes=(*verdict.notes, f"{verdict.gate}: {found.note}"))
        if _can_be_waived(verdict) and (found := _waiver_of(verdict, nodeid, waivers, day)) is not None
        else verdict
        for verdict in verdicts
    )


def waived(record: ResultRecord, waivers: Sequence[Waiver], day: date) -> tuple[Waiver, ...]:
    """Return the waivers that cover a record's failing gates; none unless every one of them is covered.

    An INVALID run, a gate without its baseline or its measurement, and an engine that died are never covered.
    """
    if record.result.invalid:
        return ()
    failing = [verdict for verdict in record.verdicts if verdict.status is not Status.PASS]
    found = [
        _waiver_of(verdict, record.nodeid, waivers, day) if _can_be_waived(verdict) else None for verdict in failing
    ]
    return () if None in found else tuple(item for item in found if item is not None)


def faulty_waivers(
    waivers: Sequence[Waiver],
    records: Sequence[ResultRecord],
    *,
    seen: Collection[str],
    arguments: Sequence[Path],
    root: Path,
    partial: str,
    day: date,
) -> list[str]:
    """Return a sentence for every waiver that has expired, or, after a full selection, that covers no failure.

    `seen` are the tests that were run or skipped, `arguments` the files and folders that were selected, and `partial`
    says why some of their tests may be missing.
    """
    found = []
    for item in waivers:
        if item.has_expired(day):
            found.append(f"{item.place} expired on {item.expires}. Mend what {item.issue} is about, or renew it.")
        elif not partial and _is_below(root / item.case.partition("::")[0], arguments):
            why = _unused(item, records, seen)
            if why:
                found.append(f"{item.place} is not used: {why}. Remove it.")
    return found


def _unused(item: Waiver, records: Sequence[ResultRecord], seen: Collection[str]) -> str:
    """Say why a waiver covers nothing; "" where it does, or where its gate was not judged."""
    own = [record for record in records if item.covers_test(record.nodeid)]
    if not own:
        return "" if any(map(item.covers_test, seen)) else "no such test was collected"
    judged = [verdict for record in own if not record.result.invalid for verdict in record.verdicts]
    if not judged:
        return ""
    same = [verdict for verdict in judged if verdict.gate == item.gate]
    if not same:
        names = ", ".join(dict.fromkeys(verdict.gate for verdict in judged))
        return f"the test has no such gate; its gates: {names}"
    return "the gate passes" if all(verdict.status is Status.PASS for verdict in same) else ""


def _can_be_waived(verdict: GateVerdict) -> bool:
    """Whether a gate failed by its figures, and not for want of them."""
    return (
        verdict.status in (Status.FAIL, Status.INCONCLUSIVE)
        and verdict.measured is not None
        and verdict.limit is not None
    )


def _waiver_of(verdict: GateVerdict, nodeid: str, waivers: Sequence[Waiver], day: date) -> Waiver | None:
    return next((item for item in waivers if item.covers(nodeid, verdict.gate) and not item.has_expired(day)), None)


def _is_below(path: Path, arguments: Sequence[Path]) -> bool:
    return any(path == folder or folder in path.parents for folder in arguments)
