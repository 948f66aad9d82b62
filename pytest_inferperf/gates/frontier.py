"""Frontier gates: no point of the baseline's frontier may fall by more than the tolerance; all points are one gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from pytest_inferperf.baselines.entries import (
    LEAST_BASELINE_SESSIONS,
    MetricBaseline,
    Missing,
    PerformanceEntry,
    other_records,
)
from pytest_inferperf.gates.dominance import (
    Dominance,
    Levels,
    Standing,
    frontier_of,
    judge_dominance,
    levels_at,
    standing_of_levels,
)
from pytest_inferperf.gates.judge import failed_requests, moved_context
from pytest_inferperf.gates.looks import ALPHA, SESSIONS, Decision
from pytest_inferperf.gates.power import smallest_tolerance
from pytest_inferperf.gates.reliance import spread_of_sessions
from pytest_inferperf.gates.sessions import FREE_ZONE_SHARE
from pytest_inferperf.model.gates import FrontierFloor, Gate
from pytest_inferperf.model.results import CaseResult
from pytest_inferperf.model.verdicts import PROVEN_GAIN, GateVerdict, Status

__all__ = ["FrontierPoint", "judge_frontier", "stored_points"]

_RECORD = '--inferperf-update=all --inferperf-reason="…"'
_TIGHTEN = "--inferperf-update=tighten"


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One load of a sweep: what was measured, and what is on file for it."""

    load: str
    """What rows call it: `c8`."""

    result: CaseResult
    entry: PerformanceEntry | Missing | None


@dataclass(frozen=True)
class _Stored:
    """The two metrics of one baseline point, and the loss of either that must be caught."""

    load: str
    path: str
    metrics: tuple[MetricBaseline, MetricBaseline]
    tolerance: float

    @property
    def levels(self) -> tuple[float, float]:
        return self.metrics[0].level, self.metrics[1].level

    @property
    def is_calibrated(self) -> bool:
        return all(len(item.sessions) >= LEAST_BASELINE_SESSIONS for item in self.metrics)


def judge_frontier(
    gate: FrontierFloor,
    points: Sequence[FrontierPoint],
    gates: Sequence[Gate],
    *,
    default_tolerance: float,
    alpha: float = ALPHA,
) -> GateVerdict:
    """Judge the points of a sweep as one gate; `gates` are all of the test, which say how many requests may fail.

    The row's figure is the loss of the point that has fallen most, in percent. With bounds, as `gates.dominance` derives
    them, where every point has 5 stored sessions; else by the levels alone, `uncalibrated`. A published point has no
    tolerance. A point that is INVALID, was not measured, or has no baseline is named, and the gate does not pass.
    """
    row = partial(GateVerdict, gate=gate.name, unit="%", higher_is_better=False)
    wrong = _wrong(gate, points, gates)
    if wrong is not None:
        return row(status=wrong[0], reason=wrong[1])
    stored = stored_points(gate, points, default_tolerance)
    if isinstance(stored, Missing):
        return row(
            status=Status.FAIL,
            source=stored.path,
            reason=f"has no baseline ({stored.reason})",
            next_step="pytest {nodeid} --inferperf-update=new",
        )
    directions = _directions(gate)
    frontier = frontier_of([item.levels for item in stored], directions)
    words = _Words(gate, points, stored)
    row = partial(row, source=stored[0].path)
    if not all(item.is_calibrated for item in stored):
        return _by_levels(row, words, frontier)
    too_small = _unresolvable(gate, [stored[index] for index in frontier], levels_at(alpha, points=len(points)))
    if too_small:
        enough = max(2 * min(len(item.metrics[0].sessions) for item in stored), 2 * LEAST_BASELINE_SESSIONS)
        return row(
            status=Status.FAIL,
            tolerance=min(item.tolerance for item in stored),
            reason=f"cannot be judged: {too_small}",
            next_step=f"give the gate a wider tolerance, or record more sessions: pytest {{nodeid}} {_RECORD} "
            f"--inferperf-set=sessions={enough}",
        )
    try:
        found = judge_dominance(
            [(item.metrics[0].sessions, item.metrics[1].sessions) for item in stored],
            [_measured(gate, point) for point in points],
            frontier=frontier,
            directions=directions,
            tolerances=[stored[index].tolerance for index in frontier],
            alpha=alpha,
        )
    except ValueError as error:
        return row(status=Status.INVALID, reason=f"cannot be judged: {error}")
    return _by_bounds(row, words, found)


def stored_points(
    gate: FrontierFloor, points: Sequence[FrontierPoint], default_tolerance: float
) -> list[_Stored] | Missing:
    """Return what is on file for every point; what is missing, of which points, where it is not all."""
    found: list[_Stored] = []
    lacks: list[tuple[str, Missing]] = []
    for point in points:
        entry = _entry(gate, point)
        if isinstance(entry, Missing):
            lacks.append((point.load, entry))
            continue
        pair = entry.metrics[gate.metric.name], entry.metrics[gate.over.name]
        own = [item.tolerance if item.tolerance is not None else default_tolerance for item in pair]
        found.append(
            _Stored(
                point.load,
                entry.path,
                pair,
                # Each figure may have a tolerance on file; a point has the smaller.
                gate.tolerance if gate.tolerance is not None else min(own),
            )
        )
    if not lacks:
        return found
    named = "; ".join(
        f"{load}: {item.path}: {item.reason}; key {item.key}" if item.path else f"{load}: {item.reason}"
        for load, item in lacks
    )
    return Missing(path=lacks[0][1].path, key=lacks[0][1].key, reason=named)


def _entry(gate: FrontierFloor, point: FrontierPoint) -> PerformanceEntry | Missing:
    entry = point.entry
    if entry is None:
        return Missing(path="", key="", reason="none was looked up")
    if isinstance(entry, Missing):
        return entry
    for name in (gate.metric.name, gate.over.name):
        stored = entry.metrics.get(name)
        if stored is None or (stored.value is None and not stored.sessions):
            return Missing(path=entry.path, key=entry.key, reason=f"the entry has no {name}")
        performance = point.result.performance
        warm_up = {item.warmup_rounds for item in performance.sessions} if performance is not None else set()
        if stored.value is None and warm_up != {entry.warmup_rounds}:
            reason = f"recorded after {entry.warmup_rounds} warm-up rounds, this run after {max(warm_up, default=0)}"
            return Missing(path=entry.path, key=entry.key, reason=reason)
    for ref, sessions in zip((gate.metric, gate.over), _measured(gate, point), strict=True):
        other = other_records(entry, entry.metrics[ref.name], map(len, sessions))
        if other:
            return Missing(path=entry.path, key=entry.key, reason=other)
    return entry


def _wrong(gate: FrontierFloor, points: Sequence[FrontierPoint], gates: Sequence[Gate]) -> tuple[Status, str] | None:
    """Say why no figure of the sweep may be judged; None where they may."""
    for point in points:
        result = point.result
        reason = result.invalid or failed_requests(gates, result.performance, result.comparisons)
        if reason:
            where = "" if result.invalid else f"{point.load}: "
            return Status.INVALID, f"the run is invalid: {where}{reason}"
    if len(points) != gate.points:
        return Status.FAIL, f"was measured at {len(points)} of {gate.points} points"
    counts = set()
    for point in points:
        for ref, sessions in zip((gate.metric, gate.over), _measured(gate, point), strict=True):
            if not sessions or not all(sessions):
                return Status.FAIL, f"{point.load}: {ref.name} was not measured in every session"
            for value in (value for rounds in sessions for value in rounds):
                if not (math.isfinite(value) and value > 0):
                    return Status.INVALID, f"{point.load}: measured {value}, which is no {ref.metric.unit}"
            counts.add(len(sessions))
    return None if len(counts) == 1 else (Status.FAIL, "was not measured at every point in every session")


def _measured(gate: FrontierFloor, point: FrontierPoint) -> tuple[list[list[float]], list[list[float]]]:
    performance = point.result.performance
    if performance is None:
        return [], []
    return performance.rounds(gate.metric.name), performance.rounds(gate.over.name)


def _directions(gate: FrontierFloor) -> tuple[bool, bool]:
    return gate.metric.metric.higher_is_better, gate.over.metric.higher_is_better


def _unresolvable(gate: FrontierFloor, frontier: Sequence[_Stored], levels: Levels) -> str:
    """Say which point of the frontier can never be told from one that has fallen by its tolerance; "" for none."""
    for item in frontier:
        for ref, metric in zip((gate.metric, gate.over), item.metrics, strict=True):
            smallest = smallest_tolerance(
                sd=spread_of_sessions(metric.sessions) or 0.0,
                baseline_sessions=len(metric.sessions),
                higher_is_better=ref.metric.higher_is_better,
                candidate_sessions=SESSIONS.cap,
                level=levels.own.levels[-1],
            )
            if item.tolerance < smallest:
                return (
                    f"a tolerance of {100 * item.tolerance:g} % of {ref.name} at {item.load} cannot be resolved by "
                    f"{len(metric.sessions)} stored sessions: the smallest is {math.ceil(1e5 * smallest) / 1e3:g} %"
                )
    return ""


def _by_levels(row: partial[GateVerdict], words: _Words, frontier: Sequence[int]) -> GateVerdict:
    """Compare levels alone; nothing is known about false alarms."""
    levels = [
        (median(map(median, one)), median(map(median, other)))
        for one, other in (_measured(words.gate, point) for point in words.points)
    ]
    found = [
        standing_of_levels(index, words.stored[index].levels, levels, _directions(words.gate)) for index in frontier
    ]
    # A published point is the limit itself; the slack is for the rounding of a limit that is met.
    allowed = {
        index: 0.0
        if any(item.value is not None for item in words.stored[index].metrics)
        else words.stored[index].tolerance
        for index in frontier
    }
    worst = max(found, key=lambda item: item.loss - allowed[item.point])
    fallen = [item for item in found if item.loss > allowed[item.point] + 1e-12]
    few = min((len(item.metrics[0].sessions) for item in words.stored if item.metrics[0].value is None), default=None)
    note = (
        "published baseline: absolute limit"
        if few is None
        else f"uncalibrated: a point has {few} stored session{'' if few == 1 else 's'}, {LEAST_BASELINE_SESSIONS} or more "
        f"are needed to know the false alarm rate; record with {_RECORD}"
    )
    return row(
        status=Status.FAIL if fallen else Status.PASS,
        measured=100 * worst.loss,
        limit=100 * allowed[worst.point],
        tolerance=allowed[worst.point],
        reason="; ".join(map(words.fell, fallen)),
        notes=(note, *words.context()),
        details=words.details(found, fallen),
    )


def _by_bounds(row: partial[GateVerdict], words: _Words, found: Dominance) -> GateVerdict:
    tolerances = {item.point: words.stored[item.point].tolerance for item in found.standings}
    fallen = [item for item in found.standings if item.fell]
    worst = max(fallen or found.standings, key=lambda item: item.loss - tolerances[item.point])
    tolerance = tolerances[worst.point]
    details = words.details(found.standings, fallen)
    details |= {
        "sessions": found.used,
        "baseline_sessions": min(len(item.metrics[0].sessions) for item in words.stored),
        "lower_percent": 100 * worst.lower,
        "upper_percent": 100 * worst.upper,
        "sd_percent": 100 * found.sd,
    }
    notes = [
        f"{words.gate.name}: the worst point is {words.load(worst)}: {_interval(worst)} "
        f"({found.used} session{'' if found.used == 1 else 's'}, {len(words.stored)} points share the error)"
    ]
    gain = -max(item.upper for item in found.standings)
    if gain > max(tolerances.values()):
        details[PROVEN_GAIN] = 100 * gain
        notes.append(
            f"{words.gate.name}: every point is better by at least {100 * gain:.2f} %: the baseline is stale, tighten it: "
            f"{_TIGHTEN}"
        )
    reason, next_step = "", ""
    if found.status is Decision.FAIL:
        reason = "; ".join(
            words.fell(item)
            if item.loss > tolerances[item.point]
            else f"{words.fell(item)}, and a loss beyond the free {100 * FREE_ZONE_SHARE * tolerances[item.point]:g} % is proven"
            for item in fallen
        )
    elif found.status is not Decision.PASS:
        open_points = [item for item in found.standings if not item.holds]
        more = (
            f"no number of further sessions would decide it against {details['baseline_sessions']} stored ones"
            if found.needed is None
            else f"{found.needed} more session{'' if found.needed == 1 else 's'} would decide it"
        )
        named = ", ".join(f"{words.load(item)} ({_interval(item)})" for item in open_points)
        reason = f"a fall of {100 * tolerance:g} % is not ruled out at {named}; {more}"
        if found.next_look is None:
            reason += ", and no look is left"
            next_step = "measure on a quieter machine, or give the gate a wider tolerance"
    return row(
        status=Status.INCONCLUSIVE if found.status is Decision.OPEN else Status(found.status.value),
        measured=100 * worst.loss,
        limit=100 * tolerance,
        tolerance=tolerance,
        reason=reason,
        next_step=next_step,
        notes=(*notes, *words.context()),
        next_look=found.next_look,
        details={name: value for name, value in details.items() if isinstance(value, str) or math.isfinite(value)},
    )


def _interval(item: Standing) -> str:
    return f"fallen by {100 * item.loss:.2f} %, between {100 * item.lower:.2f} and {100 * item.upper:.2f} %"


@dataclass(frozen=True)
class _Words:
    """Names the points of a frontier, and says what became of them."""

    gate: FrontierFloor
    points: Sequence[FrontierPoint]
    stored: Sequence[_Stored]

    def load(self, item: Standing) -> str:
        return self.stored[item.point].load

    def fell(self, item: Standing) -> str:
        """Say what a point was, and what comes nearest to it now."""
        old = self._place(*self.stored[item.point].levels)
        nearest = self.points[item.cover].result.performance
        assert nearest is not None  # looked at before
        new = self._place(nearest[self.gate.metric.name], nearest[self.gate.over.name])
        return f"{self.load(item)} has fallen by {100 * item.loss:.2f} %: {old} before, at best {new} now ({self.points[item.cover].load})"

    def _place(self, value: float, over: float) -> str:
        return f"{value:.6g} {self.gate.metric.metric.unit} at {over:.6g} {self.gate.over.metric.unit}"

    def context(self) -> tuple[str, ...]:
        """Say what differs between the days of recording and judging, of any point."""
        moved = (
            note
            for point in self.points
            if isinstance(point.entry, PerformanceEntry)
            for note in moved_context(point.entry.context, point.result.context)
        )
        return tuple(dict.fromkeys(moved))

    def details(self, standings: Sequence[Standing], fallen: Sequence[Standing]) -> dict[str, float | int | str]:
        """Return what a report draws: how far each point of the frontier has fallen, and which have too far."""
        worst = max(standings, key=lambda item: item.loss)
        return {
            "points": len(self.stored),
            "fallen": " ".join(map(self.load, fallen)),
            "worst": self.load(worst),
            "loss_percent": 100 * worst.loss,
            **{f"loss_percent.{self.load(item)}": 100 * item.loss for item in standings},
        }
