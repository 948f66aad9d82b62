"""Forecast: what each gate will be able to say with the baseline at hand, before anything is measured.

The margins, looks and refusals are those of the judges: a gate that `judge_sessions` or `judge_paired` would refuse is
one that cannot decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from pytest_inferperf.baselines.entries import AccuracyEntry, MetricBaseline, Missing, PerformanceEntry, ScoreEntry
from pytest_inferperf.gates.looks import ALPHA, QUESTIONS, SESSIONS, Unresolvable
from pytest_inferperf.gates.paired import FREE_ZONE_SHARE as ACCURACY_FREE_ZONE
from pytest_inferperf.gates.paired import judge_paired
from pytest_inferperf.gates.power import (
    baseline_sessions_for_power,
    detectable_loss,
    detectable_session_loss,
    questions_to_prove,
    session_power,
    smallest_tolerance_of_questions,
)
from pytest_inferperf.gates.sessions import (
    FREE_ZONE_SHARE,
    LEAST_BASELINE_SESSIONS,
    RESOLUTION,
    judge_sessions,
)
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling, Gate, PerformanceGate
from pytest_inferperf.model.plan import Foresight, GateForecast

__all__ = ["ASSUMED_FLIPS", "OnFile", "Unknown", "forecast"]

ASSUMED_FLIPS = 0.05
"""Share of the questions taken to flip where the candidate's own answers were never stored."""


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """Why a baseline is not known before the run: nothing is missing, or the file is broken."""

    reason: str
    broken: bool = False


@dataclass(frozen=True, kw_only=True)
class OnFile:
    """One case, what is on file for it, and how it will be judged."""

    case: Case
    performance: PerformanceEntry | Missing | Unknown | None = None
    """None where the case has no workload."""

    performance_on: str = ""
    """The hardware of the performance entry, where it is not this machine; "" where it is."""

    accuracy: AccuracyEntry | Missing | Unknown | None = None
    """None where the case has no task."""

    default_tolerance: float = 0.05
    alpha: float = ALPHA
    power: float = 0.9


def forecast(gate: Gate, known: OnFile) -> GateForecast:
    """Say what a gate will be able to find, and with how many sessions or questions."""
    of = _FORECASTS.get(type(gate))
    if of is None:
        return GateForecast(gate=gate.name, aim="", state=Foresight.UNKNOWN, text="measured in the run itself")
    answer: GateForecast = of(gate, known)
    return answer


def _performance(gate: PerformanceGate, known: OnFile) -> GateForecast:
    unit = gate.metric.metric.unit
    if gate.limit is not None:
        return GateForecast(
            gate=gate.name, aim=f"limit {gate.limit:g} {unit}", state=Foresight.ABLE, text="absolute limit: no baseline"
        )
    entry = known.performance
    stored = entry.metrics.get(gate.name) if isinstance(entry, PerformanceEntry) else None
    given = (gate.tolerance, stored.tolerance if stored is not None else None, known.default_tolerance)
    tolerance = next(value for value in given if value is not None)
    aim = f"tolerance {_percent(tolerance)}"
    if isinstance(entry, Unknown):
        return _unknown(gate, aim, entry)
    absent = entry if isinstance(entry, Missing) else _lack(entry, stored, gate, known.case)
    if absent is not None or stored is None:
        return _missing(gate, aim, absent, "pytest {nodeid} --inferperf-update=new")
    where = f" on {known.performance_on}" if known.performance_on else ""
    if stored.value is not None:
        aim = f"limit {stored.value:g} {unit}"
        return GateForecast(
            gate=gate.name, aim=aim, state=Foresight.ABLE, text=f"published limit{where}: no sessions to compare with"
        )
    state, text = _sessions(stored, tolerance, gate.metric.metric.higher_is_better, known)
    return GateForecast(
        gate=gate.name, aim=aim, state=state, text=_plural(len(stored.sessions), "session") + where + text
    )


def _lack(
    entry: PerformanceEntry | None, stored: MetricBaseline | None, gate: PerformanceGate, case: Case
) -> Missing | None:
    """Say what an entry lacks for a gate, as the judge will; None when nothing."""
    if entry is None:
        return Missing(path="", key="", reason="none was looked up")
    if stored is None:
        return Missing(path=entry.path, key=entry.key, reason=f"the entry has no {gate.name}")
    rounds = case.workload.warmup_rounds if case.workload is not None else 0
    if stored.value is None and entry.warmup_rounds != rounds:
        reason = f"recorded after {entry.warmup_rounds} warm-up rounds, this run after {rounds}"
        return Missing(path=entry.path, key=entry.key, reason=reason)
    return None


def _sessions(stored: MetricBaseline, tolerance: float, higher: bool, known: OnFile) -> tuple[Foresight, str]:
    """Say what stored sessions can find."""
    n0 = len(stored.sessions)
    if n0 < LEAST_BASELINE_SESSIONS:
        text = f" of the {LEAST_BASELINE_SESSIONS} it takes: the plain tolerance judges, its error rates are unknown"
        return Foresight.UNCALIBRATED, text
    means = [fmean(map(math.log, rounds)) for rounds in stored.sessions]
    sd = max(stdev(means), RESOLUTION)
    spread = f", sd {_percent(sd)}"
    judged = judge_sessions(
        stored.sessions, stored.sessions[:1], higher_is_better=higher, tolerance=tolerance, alpha=known.alpha
    )
    if isinstance(judged, Unresolvable):
        return Foresight.UNABLE, f"{spread}: {judged.reason}"
    schedule = SESSIONS.at(known.alpha)
    zone = FREE_ZONE_SHARE * tolerance
    last: Mapping[str, Any] = {
        "sd": sd,
        "candidate_sessions": schedule.cap,
        "free_zone": zone,
        "level": schedule.levels[-1],
        "higher_is_better": higher,
    }
    least = detectable_session_loss(baseline_sessions=n0, power=known.power, **last)
    text = f"{spread}: finds {_percent(least)} with {_percent(known.power)} power in up to {schedule.cap} sessions"
    enough = (
        look
        for look, level in schedule.reached(schedule.cap)
        if session_power(baseline_sessions=n0, loss=tolerance, **{**last, "candidate_sessions": look, "level": level})
        >= known.power
    )
    look = next(enough, None)
    if look is not None:
        return Foresight.ABLE, f"{text}, {_percent(tolerance)} after {look}"
    power = session_power(baseline_sessions=n0, loss=tolerance, **last)
    needed = baseline_sessions_for_power(loss=tolerance, power=known.power, **last)
    cure = f"{needed} stored sessions would do" if needed is not None else "more stored sessions do not help"
    return Foresight.WEAK, f"{text}, {_percent(tolerance)} with {_percent(power)}; {cure}"


def _loss(gate: AccuracyLossCeiling, known: OnFile) -> GateForecast:
    limit, unit = (gate.points, "points") if gate.points is not None else (gate.percent, "%")
    assert limit is not None  # the mark gives one of the two
    aim = f"tolerance {_amount(limit, unit)}"
    entry = known.accuracy
    if isinstance(entry, Unknown):
        return _unknown(gate, aim, entry)
    record = f"evaluate the same task with quant={gate.reference.partition('+')[0]!r} and --inferperf-update=new"
    if entry is None or isinstance(entry, Missing):
        return _missing(gate, aim, entry, record)
    name = f"{entry.metric} loss vs {gate.reference}"
    reference = entry.scores.get(gate.reference)
    if reference is None:
        held = ", ".join(sorted(entry.scores))
        absent = Missing(path=entry.path, key=entry.key, reason=f"no {gate.reference} beside {held}")
        return _missing(gate, aim, absent, record)

    def unable(reason: str) -> GateForecast:
        return GateForecast(gate=name, aim=aim, state=Foresight.UNABLE, text=reason)

    if not reference.outcomes:
        return unable(f"{gate.reference} in {entry.path} is a published score without answers to pair with")
    values = (reference.score, *reference.outcomes)
    if gate.points is not None and not (entry.higher_is_better and all(0 <= value <= 1 for value in values)):
        return unable(f"{entry.metric} is not a score between 0 and 1 that is better when higher: use percent=")
    mean = math.fsum(reference.outcomes) / len(reference.outcomes)
    if gate.percent is not None and not mean:
        return unable("the reference is 0, and a percentage of it is undefined: use points=")
    scale = 0.01 if gate.points is not None else abs(mean) / 100
    state, text = _questions(reference, entry, limit * scale, known, lambda share: _amount(share / scale, unit))
    return GateForecast(gate=name, aim=aim, state=state, text=text)


def _questions(
    reference: ScoreEntry, entry: AccuracyEntry, tolerance: float, known: OnFile, shown: Callable[[float], str]
) -> tuple[Foresight, str]:
    """Say what so many questions can find; `tolerance` is in the score's unit, `shown` puts such a loss into words."""
    count = len(reference.outcomes)
    head = _plural(count, "question")
    try:
        judged = judge_paired(
            reference.outcomes, (), tolerance=tolerance, higher_is_better=entry.higher_is_better, alpha=known.alpha
        )
    except ValueError as error:
        return Foresight.UNABLE, f"{head}: {error}"
    if isinstance(judged, Unresolvable):
        return (
            Foresight.UNABLE,
            f"{head}: {shown(tolerance)} cannot be resolved; the smallest is {shown(judged.smallest)}",
        )
    binary = all(value in (0.0, 1.0) for value in reference.outcomes)
    own = entry.scores.get(known.case.engine.precision)
    if own is not None and own is not reference and len(own.outcomes) == count:
        spread = fmean((old - new) ** 2 for old, new in zip(reference.outcomes, own.outcomes, strict=True))
        head += (
            f", {_percent(spread)} flips on file" if binary else f", answers of {known.case.engine.precision} on file"
        )
    elif binary:
        spread = ASSUMED_FLIPS
        head += f", {_percent(spread)} flips assumed"
    else:
        return Foresight.UNKNOWN, f"{head}: how far answers differ is known after the first recorded run"
    level = QUESTIONS.at(known.alpha).levels[-1]
    smallest = smallest_tolerance_of_questions(count, spread=spread, level=level) if binary else 0.0
    if tolerance < smallest:
        needed = questions_to_prove(margin=tolerance, spread=spread, power=known.power, alpha=level)
        reason = (
            f"{shown(tolerance)} cannot be resolved, the smallest is {shown(smallest)}; {needed} questions would do"
        )
        return Foresight.UNABLE, f"{head}: {reason}"
    least = _least_loss(count, spread, tolerance, level, binary, known)
    needed = _to_prove(tolerance, spread, level, binary, known)
    text = f"{head}: finds {shown(least)} with {_percent(known.power)} power; {needed} prove a loss below {shown(tolerance)}"
    return (Foresight.ABLE if least <= tolerance and needed <= count else Foresight.WEAK), text


def _least_loss(count: int, spread: float, tolerance: float, level: float, binary: bool, known: OnFile) -> float:
    """Smallest loss that fails the gate with the wanted power: what McNemar's test sees beyond the free zone."""
    zone = ACCURACY_FREE_ZONE * tolerance
    loss = 0.0
    # A loss of 3 % of the questions takes 3 % flips at least.
    for _ in range(30):
        flips = max(spread, loss, 1 / count) if binary else max(spread, 1e-18)
        loss = zone + detectable_loss(count, spread=flips, power=known.power, alpha=level)
    return loss


def _to_prove(tolerance: float, spread: float, level: float, binary: bool, known: OnFile) -> int:
    """Questions that prove an unchanged engine's loss below the tolerance, without a flip too ("rule of three")."""
    needed = questions_to_prove(margin=tolerance, spread=max(spread, 1e-18), power=known.power, alpha=level)
    return max(needed, math.ceil(math.log(level) / math.log1p(-min(tolerance, 0.999)))) if binary else needed


def _floor(gate: AccuracyFloor, known: OnFile) -> GateForecast:
    """An absolute limit; the number of questions says how far chance moves the score."""
    text = "absolute limit: no baseline"
    entry = known.accuracy
    if isinstance(entry, AccuracyEntry) and entry.num_documents:
        share = gate.points / 100
        error = 100 * math.sqrt(share * (1 - share) / entry.num_documents)
        text += f"; a score of {_plural(entry.num_documents, 'question')} has a standard error of {_amount(error, 'points')}"
    return GateForecast(gate=gate.name, aim=f"limit {_amount(gate.points, 'points')}", state=Foresight.ABLE, text=text)


_FORECASTS: Mapping[type, Callable[[Any, OnFile], GateForecast]] = {
    PerformanceGate: _performance,
    AccuracyLossCeiling: _loss,
    AccuracyFloor: _floor,
}
"""One row per kind of gate; any other is measured in the run itself."""


def _unknown(gate: Gate, aim: str, unknown: Unknown) -> GateForecast:
    state = Foresight.UNABLE if unknown.broken else Foresight.UNKNOWN
    return GateForecast(gate=gate.name, aim=aim, state=state, text=unknown.reason)


def _missing(gate: Gate, aim: str, missing: Missing | None, next_step: str) -> GateForecast:
    reason = f"{missing.path}: {missing.reason}; key {missing.key}" if missing is not None else "none was looked up"
    return GateForecast(gate=gate.name, aim=aim, state=Foresight.MISSING, text=reason, next_step=next_step)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.3g} %"


def _amount(value: float, unit: str) -> str:
    """Put a loss into words: `1 point`, `2.4 points`, `3 %`."""
    text = f"{value:.2g}" if value < 10 else f"{value:.3g}"
    return f"{text} {'point' if unit == 'points' and text == '1' else unit}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
