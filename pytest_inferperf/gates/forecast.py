"""Forecast: what each gate will be able to say with the baseline at hand, before anything is measured.

The margins, looks and refusals are those of the judges: a gate that `judge_sessions` or `judge_paired` would refuse is
one that cannot decide. A gate "finds" a loss when its verdict on it is FAIL, and "holds" a tolerance when it finds a loss
that large and passes where there is none, both with the wanted power.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from pytest_inferperf.baselines.entries import (
    LEAST_BASELINE_SESSIONS,
    AccuracyEntry,
    MetricBaseline,
    Missing,
    PerformanceEntry,
    ScoreEntry,
)
from pytest_inferperf.gates.looks import ALPHA, BLOCKS, QUESTIONS, SESSIONS, Unresolvable, single_look
from pytest_inferperf.gates.odds import Odds, block_odds, floor_odds, least, question_odds, session_odds
from pytest_inferperf.gates.paired import FREE_ZONE_SHARE as ACCURACY_FREE_ZONE
from pytest_inferperf.gates.paired import judge_paired
from pytest_inferperf.gates.power import (
    MOST_SESSIONS,
    questions_to_prove,
    relative_loss,
    smallest_tolerance_of_questions,
)
from pytest_inferperf.gates.sessions import (
    FREE_ZONE_SHARE,
    RESOLUTION,
    block_differences,
    judge_sessions,
)
from pytest_inferperf.gates.speedup import block_values, times_as_good
from pytest_inferperf.model.case import Case, ReferenceEngine
from pytest_inferperf.model.gates import (
    AccuracyFloor,
    AccuracyLossCeiling,
    ErrorRateCeiling,
    Gate,
    PerformanceGate,
    SpeedupFloor,
)
from pytest_inferperf.model.plan import Foresight, GateForecast
from pytest_inferperf.model.results import Comparison

__all__ = ["ASSUMED_FLIPS", "OnFile", "Unknown", "forecast"]

ASSUMED_FLIPS = 0.05
"""Share of the questions taken to flip where the candidate's own answers were never stored."""

LARGEST = 0.99
"""Largest loss that is asked about: beyond it nothing is left of a metric that is better when higher."""

MOST_QUESTIONS = 10_000_000


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

    compared: Mapping[ReferenceEngine, Comparison] = field(default_factory=dict)
    """What a past run measured of the case beside each reference engine."""

    default_tolerance: float = 0.05
    alpha: float = ALPHA
    power: float = 0.9


def forecast(gate: Gate, known: OnFile) -> GateForecast:
    """Say what a gate will be able to find, and with how many sessions or questions."""
    answer: GateForecast = _FORECASTS[type(gate)](gate, known)
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
    state, text, used = _sessions(stored, tolerance, gate.metric.metric.higher_is_better, known)
    text = _plural(len(stored.sessions), "session") + where + text
    return GateForecast(gate=gate.name, aim=aim, state=state, text=text, used=used)


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


def _sessions(
    stored: MetricBaseline, tolerance: float, higher: bool, known: OnFile
) -> tuple[Foresight, str, float | None]:
    """Say what stored sessions can find, and how many sessions an unchanged engine takes."""
    n0 = len(stored.sessions)
    if n0 < LEAST_BASELINE_SESSIONS:
        text = f" of the {LEAST_BASELINE_SESSIONS} it takes: the plain tolerance judges, its error rates are unknown"
        return Foresight.UNCALIBRATED, text, 1.0
    means = [fmean(map(math.log, rounds)) for rounds in stored.sessions]
    sd = max(stdev(means), RESOLUTION)
    spread = f", sd {_percent(sd)}"
    judged = judge_sessions(
        stored.sessions, stored.sessions[:1], higher_is_better=higher, tolerance=tolerance, alpha=known.alpha
    )
    if isinstance(judged, Unresolvable):
        return Foresight.UNABLE, f"{spread}: {judged.reason}", None

    def odds(loss: float, tolerance: float = tolerance, stored: int = n0) -> Odds:
        return session_odds(
            sd=sd,
            baseline_sessions=stored,
            loss=loss,
            tolerance=tolerance,
            alpha=known.alpha,
            higher_is_better=higher,
        )

    def holds(tolerance: float, stored: int = n0) -> bool:
        """Whether a loss of the tolerance fails, and none passes, with the wanted power."""
        return (
            odds(tolerance, tolerance, stored).fails >= known.power
            and odds(0.0, tolerance, stored).passes >= known.power
        )

    found = least(lambda loss: odds(loss).fails >= known.power, low=FREE_ZONE_SHARE * tolerance, high=LARGEST)
    text = f"{spread}: {_finds(found, _percent, known)} in up to {SESSIONS.cap} sessions"
    used = odds(0.0).used
    if holds(tolerance):
        return Foresight.ABLE, f"{text}; an unchanged engine passes after {used:.1f}{_could(holds, tolerance)}", used
    needed = least(lambda count: holds(tolerance, math.ceil(count)), low=n0, high=MOST_SESSIONS)
    cure = f"{math.ceil(needed)} stored sessions hold" if needed is not None else "more stored sessions do not hold"
    return Foresight.WEAK, f"{text}; {cure} {_percent(tolerance)}", used


def _could(holds: Callable[[float], bool], tolerance: float) -> str:
    """Say which smaller tolerance would hold; "" where hardly any would."""
    smallest = least(holds, low=RESOLUTION, high=tolerance)
    return f"; could hold {_percent(smallest)}" if smallest is not None and smallest < 0.8 * tolerance else ""


def _speedup(gate: SpeedupFloor, known: OnFile) -> GateForecast:
    """Blocks are measured in the run; how far they vary is known where a past run compared the same two engines."""
    tolerance = known.default_tolerance if gate.tolerance is None else gate.tolerance
    aim = (
        f"tolerance {_percent(tolerance)}" if gate.ratio == 1 else f"{gate.ratio:g} x, tolerance {_percent(tolerance)}"
    )
    head = f"interleaved in up to {BLOCKS.cap} blocks"

    def unknown(reason: str) -> GateForecast:
        return GateForecast(gate=gate.name, aim=aim, state=Foresight.UNKNOWN, text=f"{head}: {reason}")

    compared = known.compared.get(gate.reference)
    if compared is None:
        return unknown("how far they vary is known after the first run")
    blocks = [block for block in block_values(compared, gate.metric.name) if block.reference and block.candidate]
    higher = gate.metric.metric.higher_is_better
    try:
        differences = block_differences(blocks, higher_is_better=higher, ratio=gate.ratio) if blocks else []
    except ValueError as error:
        return unknown(f"the past run is of no use ({error})")
    if len(differences) < BLOCKS.looks[0]:
        return unknown(
            f"the past run has {_plural(len(differences), 'block')} of {gate.metric.name}, too few to say more"
        )
    sd = max(stdev(differences), RESOLUTION)
    loss = relative_loss(fmean(differences), higher_is_better=higher)

    def odds(loss: float, tolerance: float = tolerance) -> Odds:
        return block_odds(sd=sd, loss=loss, tolerance=tolerance, alpha=known.alpha, higher_is_better=higher)

    def holds(tolerance: float) -> bool:
        return odds(tolerance, tolerance).fails >= known.power and odds(0.0, tolerance).passes >= known.power

    found = least(lambda loss: odds(loss).fails >= known.power, low=FREE_ZONE_SHARE * tolerance, high=LARGEST)
    text = f"{head}, {len(differences)} on file, sd {_percent(sd)}: {_finds(found, _percent, known)}"
    same = odds(loss)
    text += f"; {times_as_good(gate, loss):.3g} x, as on file, {_ends(same, f'{same.used:.1f}', known)}"
    if holds(tolerance):
        state, text = Foresight.ABLE, text + _could(holds, tolerance)
    else:
        smallest = least(holds, low=tolerance, high=LARGEST)
        state = Foresight.WEAK
        text += (
            f"; such blocks hold {_percent(smallest)}" if smallest is not None else "; such blocks hold no tolerance"
        )
    return GateForecast(gate=gate.name, aim=aim, state=state, text=text, used=same.used)


def _ends(odds: Odds, used: str, known: OnFile) -> str:
    """Say what becomes of an engine: `passes after 375`, or how often it does where that is less than the power."""
    return f"passes after {used}" if odds.passes >= known.power else f"passes in {_percent(odds.passes)} of runs"


def _finds(loss: float | None, shown: Callable[[float], str], known: OnFile) -> str:
    power = f"with {_percent(known.power)} power"
    return f"finds no loss {power}" if loss is None else f"finds {shown(loss)} {power}"


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
        return GateForecast(
            gate=name,
            aim=aim,
            state=Foresight.UNCALIBRATED,
            text=f"published {gate.reference}, no answers to pair with: the scores of all questions are compared",
        )
    values = (reference.score, *reference.outcomes)
    if gate.points is not None and not (entry.higher_is_better and all(0 <= value <= 1 for value in values)):
        return unable(f"{entry.metric} is not a score between 0 and 1 that is better when higher: use percent=")
    mean = math.fsum(reference.outcomes) / len(reference.outcomes)
    if gate.percent is not None and not mean:
        return unable("the reference is 0, and a percentage of it is undefined: use points=")
    scale = 0.01 if gate.points is not None else abs(mean) / 100
    state, text, used = _questions(reference, entry, limit * scale, known, lambda share: _amount(share / scale, unit))
    return GateForecast(gate=name, aim=aim, state=state, text=text, used=used)


def _questions(
    reference: ScoreEntry, entry: AccuracyEntry, tolerance: float, known: OnFile, shown: Callable[[float], str]
) -> tuple[Foresight, str, float | None]:
    """Say what so many questions can find, and the share of them that an unchanged engine is asked.

    `tolerance` is in the score's unit, `shown` puts such a loss into words.
    """
    count = len(reference.outcomes)
    head = _plural(count, "question")
    # Answers that nobody may look at before they are complete are judged once.
    stops = known.case.task is None or known.case.task.early_stop
    looks = QUESTIONS.at(known.alpha) if stops else single_look(QUESTIONS.unit, QUESTIONS.cap, alpha=known.alpha)
    try:
        judged = judge_paired(
            reference.outcomes,
            (),
            tolerance=tolerance,
            higher_is_better=entry.higher_is_better,
            alpha=known.alpha,
            looks=looks,
        )
    except ValueError as error:
        return Foresight.UNABLE, f"{head}: {error}", None
    if isinstance(judged, Unresolvable):
        return (
            Foresight.UNABLE,
            f"{head}: {shown(tolerance)} cannot be resolved; the smallest is {shown(judged.smallest)}",
            None,
        )
    binary = all(value in (0.0, 1.0) for value in reference.outcomes)
    precision = known.case.engine.precision
    own = entry.scores.get(precision)
    again = reference.repeat.flips / reference.repeat.questions if reference.repeat is not None else None
    unchanged = 0.0
    if own is not None and own is not reference and len(own.outcomes) == count:
        losses = [old - new for old, new in zip(reference.outcomes, own.outcomes, strict=True)]
        spread = fmean(loss * loss for loss in losses)
        # The candidate as it was recorded is what an unchanged one will be.
        unchanged = fmean(losses) if entry.higher_is_better else -fmean(losses)
        head += f", {_percent(spread)} flips on file" if binary else f", answers of {precision} on file"
    elif not binary:
        return Foresight.UNKNOWN, f"{head}: how far answers differ is known after the first recorded run", None
    elif again is not None and (own is reference or again > ASSUMED_FLIPS):
        # Another engine than the reference flips no less than the reference asked twice.
        spread = again
        head += f", {_percent(spread)} A/A flips on file"
    else:
        spread = ASSUMED_FLIPS
        head += f", {_percent(spread)} flips assumed"
    level = looks.levels[-1]
    smallest = smallest_tolerance_of_questions(count, spread=spread, level=level) if binary else 0.0
    if tolerance < smallest:
        proven = questions_to_prove(margin=tolerance, spread=spread, power=known.power, alpha=level)
        reason = (
            f"{shown(tolerance)} cannot be resolved, the smallest is {shown(smallest)}; it takes {proven} questions"
        )
        return Foresight.UNABLE, f"{head}: {reason}", None

    def odds(loss: float, questions: int = count) -> Odds:
        return question_odds(
            spread=spread,
            questions=questions,
            loss=loss,
            tolerance=tolerance,
            alpha=known.alpha,
            binary=binary,
            looks=looks,
        )

    def holds(questions: float) -> bool:
        whole = math.ceil(questions)
        return odds(tolerance, whole).fails >= known.power and odds(0.0, whole).passes >= known.power

    found = least(
        lambda loss: odds(loss).fails >= known.power,
        low=ACCURACY_FREE_ZONE * tolerance,
        high=LARGEST if binary else 100 * tolerance,
    )
    text = f"{head}: {_finds(found, shown, known)}"
    same = odds(unchanged)
    share = same.used / count
    ends = f"; an unchanged engine {_ends(same, f'{same.used:.0f}', known)}"
    if holds(count):
        return Foresight.ABLE, f"{text}{ends}", share
    needed = least(holds, low=count, high=MOST_QUESTIONS)
    cure = f"{math.ceil(needed)} questions hold" if needed is not None else "no number of questions holds"
    if unchanged and same.passes < known.power:
        text += ends
    return Foresight.WEAK, f"{text}; {cure} {shown(tolerance)}", share


def _errors(gate: ErrorRateCeiling, known: OnFile) -> GateForecast:
    return GateForecast(
        gate=gate.name, aim=f"limit {100 * gate.share:g} %", state=Foresight.ABLE, text="absolute limit: no baseline"
    )


def _floor(gate: AccuracyFloor, known: OnFile) -> GateForecast:
    """An absolute limit; the number of questions says how far chance moves the score."""
    text = "absolute limit: no baseline"
    entry = known.accuracy
    if isinstance(entry, AccuracyEntry) and entry.num_documents:
        share = gate.points / 100
        error = 100 * math.sqrt(share * (1 - share) / entry.num_documents)
        text += f"; a score of {_plural(entry.num_documents, 'question')} has a standard error of {_amount(error, 'points')}"
    own = entry.scores.get(known.case.engine.precision) if isinstance(entry, AccuracyEntry) else None
    used = None
    grouped = known.case.task is not None and known.case.task.group_by
    if own is not None and own.outcomes and 0 <= own.score <= 1 and not grouped:
        count = len(own.outcomes)
        used = floor_odds(score=own.score, questions=count, floor=gate.points / 100, alpha=known.alpha).used / count
    aim = f"limit {_amount(gate.points, 'points')}"
    return GateForecast(gate=gate.name, aim=aim, state=Foresight.ABLE, text=text, used=used)


_FORECASTS: Mapping[type, Callable[[Any, OnFile], GateForecast]] = {
    PerformanceGate: _performance,
    SpeedupFloor: _speedup,
    AccuracyLossCeiling: _loss,
    AccuracyFloor: _floor,
    ErrorRateCeiling: _errors,
}
"""One row per kind of gate."""


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
