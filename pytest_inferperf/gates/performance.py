"""Performance gates: confidence bounds on the loss between sessions, against stored ones; or an absolute limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pytest_inferperf.baselines.entries import (
    LEAST_BASELINE_SESSIONS,
    MetricBaseline,
    Missing,
    PerformanceEntry,
    other_records,
)
from pytest_inferperf.gates.looks import ALPHA, SESSIONS, Decision, Unresolvable
from pytest_inferperf.gates.power import baseline_sessions_to_decide, log_margin
from pytest_inferperf.gates.sessions import (
    FREE_ZONE_SHARE,
    SessionsVerdict,
    judge_sessions,
)
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.metrics import per_megawatt
from pytest_inferperf.model.results import PerformanceResult
from pytest_inferperf.model.verdicts import PROVEN_GAIN, GateVerdict, Status

__all__ = ["judge_performance", "stale_verdict"]

_RECORD = '--inferperf-update=all --inferperf-reason="…"'
_TIGHTEN = (
    "--inferperf-update=tighten, or inferperf baseline tighten RESULTS.json with what "
    "--inferperf-set=sessions=10 --inferperf-json=RESULTS.json wrote"
)


def judge_performance(
    gate: PerformanceGate,
    result: PerformanceResult,
    entry: PerformanceEntry | Missing | None,
    default_tolerance: float,
    *,
    alpha: float = ALPHA,
) -> GateVerdict:
    """Judge one metric.

    Against stored sessions the bounds of `gates.sessions` decide, at a total one-sided error of `alpha`; the row shows
    medians over sessions of medians over rounds, and as the limit `baseline * (1 - tolerance)` for a floor or
    `baseline * (1 + tolerance)` for a ceiling. Tolerance comes from the mark, else the baseline entry, else
    `default_tolerance`. With fewer than 5 stored sessions that limit itself decides: `uncalibrated`. A published
    baseline is the limit itself.
    """
    metric = gate.metric.metric
    verdict = _Verdict(gate)
    sessions = result.rounds(gate.metric.name)
    for number, rounds in enumerate(sessions, start=1):
        for value in rounds:
            if not math.isfinite(value) or value < 0 or (value == 0 and not metric.may_be_zero):
                reason = f"measured {value} in session {number}, which is no {metric.unit}"
                return verdict.give(Status.INVALID, measured=value, reason=reason)
    measured = result.median(gate.metric.name)
    if measured is None:
        lack = f"it needs {metric.needs}" if metric.needs else "the workload has no sample of it"
        return verdict.fail(reason=f"was not measured: {lack}")
    if not all(sessions):
        return verdict.fail(reason=f"was not measured in session {sessions.index([]) + 1} of {len(sessions)}")
    if gate.limit is not None:
        return verdict.compare(measured, gate.limit, source="mark")
    if entry is None or isinstance(entry, Missing):
        return verdict.missing(entry, measured)
    stored = entry.metrics.get(gate.metric.name)
    if stored is None or (stored.value is None and not stored.sessions):
        absent = Missing(path=entry.path, key=entry.key, reason=f"the entry has no {gate.metric.name}")
        return verdict.missing(absent, measured)
    if stored.value is not None:
        return verdict.compare(measured, stored.value, source=entry.path, notes=("published baseline: absolute limit",))
    warm_up = {session.warmup_rounds for session in result.sessions}
    if warm_up != {entry.warmup_rounds}:
        # A cold first round is not the steady state: such figures are of another workload.
        reason = f"recorded after {entry.warmup_rounds} warm-up rounds, this run after {max(warm_up)}"
        return verdict.missing(Missing(path=entry.path, key=entry.key, reason=reason), measured)
    other = other_records(entry, stored, map(len, sessions))
    if other:
        return verdict.missing(Missing(path=entry.path, key=entry.key, reason=other), measured)
    given = (gate.tolerance, stored.tolerance, default_tolerance)
    tolerance = next(value for value in given if value is not None)
    for number, rounds in enumerate(sessions, start=1):
        if 0.0 in rounds:
            # On the scale of logs, on which sessions are compared, the loss has no bound.
            return verdict.give(
                Status.FAIL,
                measured=measured,
                limit=stored.level * (1 - tolerance),
                baseline=stored.level,
                tolerance=tolerance,
                source=entry.path,
                reason=f"was 0 {metric.unit} in a round of session {number}, where the baseline is {stored.level:.6g}",
            )
    return _against_sessions(verdict, sessions, measured, stored, entry.path, tolerance, alpha)


def _against_sessions(
    verdict: _Verdict,
    sessions: list[list[float]],
    measured: float,
    stored: MetricBaseline,
    path: str,
    tolerance: float,
    alpha: float,
) -> GateVerdict:
    baseline, higher = stored.level, verdict.higher
    try:
        found = judge_sessions(stored.sessions, sessions, higher_is_better=higher, tolerance=tolerance, alpha=alpha)
    except ValueError as error:
        return verdict.give(Status.INVALID, measured=measured, source=path, reason=f"cannot be judged: {error}")
    if isinstance(found, Unresolvable):
        return verdict.give(
            Status.FAIL,
            measured=measured,
            baseline=baseline,
            tolerance=tolerance,
            source=path,
            reason=f"cannot be judged: {found.reason}",
            next_step=_widen(found, len(stored.sessions)),
        )
    limit = baseline * (1 - tolerance if higher else 1 + tolerance)
    if found.uncalibrated:
        return verdict.compare(
            measured,
            limit,
            source=path,
            baseline=baseline,
            tolerance=tolerance,
            notes=(_uncalibrated(len(stored.sessions)),),
            details=_details(found, len(sessions), len(stored.sessions)),
        )
    figures = _details(found, len(sessions), len(stored.sessions))
    if found.upper < -tolerance:
        figures[PROVEN_GAIN] = -100 * found.upper
    words = _Words(verdict, found, measured, limit, baseline, tolerance, len(stored.sessions), alpha)
    return verdict.give(
        Status.INCONCLUSIVE if found.status is Decision.OPEN else Status(found.status.value),
        measured=measured,
        limit=limit,
        baseline=baseline,
        tolerance=tolerance,
        source=path,
        reason=words.reason(),
        next_step=words.next_step(),
        notes=words.notes(),
        next_look=found.next_look,
        details=figures,
    )


def stale_verdict(verdict: GateVerdict) -> GateVerdict:
    """Fail a gate that passes with a proven gain beyond its tolerance: its baseline lets that gain be lost unseen."""
    if verdict.status is not Status.PASS or PROVEN_GAIN not in verdict.details:
        return verdict
    gain, allowed = float(verdict.details[PROVEN_GAIN]), 100 * (verdict.tolerance or 0)
    return replace(
        verdict,
        status=Status.FAIL,
        reason=f"is better than its baseline by at least {gain:.2f} %, more than the tolerance of {allowed:g} %: the "
        "baseline is stale, tighten it (inferperf_fail_on_improvement)",
        next_step="pytest {nodeid} --inferperf-update=tighten",
    )


def _widen(found: Unresolvable, stored: int) -> str:
    """Say what to type for a tolerance that cannot be resolved."""
    # Rounded up, so that it is accepted.
    wider = f"tolerance={math.ceil(1e4 * found.smallest) / 1e4:g}" if found.smallest < 1 else "a wider tolerance"
    sessions = max(2 * stored, 2 * LEAST_BASELINE_SESSIONS)
    return (
        f"give the gate {wider}, or record more sessions, or on a quieter machine: pytest {{nodeid}} {_RECORD} "
        f"--inferperf-set=sessions={sessions}"
    )


def _uncalibrated(stored: int) -> str:
    return (
        f"uncalibrated: {_count(stored, 'stored session')}, {LEAST_BASELINE_SESSIONS} or more are needed to know the "
        f"false alarm rate; record with {_RECORD}"
    )


def _details(found: SessionsVerdict, sessions: int, stored: int) -> dict[str, float | int | str]:
    """Return the figures of a report; what is unknown or unbounded is left out."""
    figures: dict[str, float | int | None] = {
        "sessions": sessions,
        "baseline_sessions": stored,
        "loss_percent": 100 * found.loss,
        "lower_percent": 100 * found.lower,
        "upper_percent": 100 * found.upper,
        "sd_percent": 100 * found.sd,
        "level": found.level,
        "needed": found.needed,
        "resolvable_percent": 100 * found.resolvable,
    }
    return {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}


@dataclass(frozen=True)
class _Words:
    """Puts a calibrated verdict into words: the reason, the notes and the next step."""

    verdict: _Verdict
    found: SessionsVerdict
    measured: float
    limit: float
    baseline: float
    tolerance: float
    stored: int
    alpha: float

    @property
    def _free(self) -> float:
        return FREE_ZONE_SHARE * self.tolerance

    @property
    def _beyond(self) -> bool:
        return not self.verdict.meets(self.measured, self.limit)

    def _interval(self) -> str:
        loss, lower, upper = map(self._percent, (self.found.loss, self.found.lower, self.found.upper))
        return f"loss {loss}, between {lower} and {upper}"

    def _percent(self, share: float) -> str:
        # Rounded by what the gate can tell apart; without the sign of a zero.
        digits = 1 if self.tolerance >= 0.1 else 2
        return f"{round(100 * share, digits) + 0.0:.{digits}f} %"

    def _row(self) -> str:
        """Say where the row's median lies, for a verdict that reads otherwise."""
        unit = self.verdict.gate.metric.metric.unit
        return f"{self.measured:.6g} {unit} is {self.verdict.side(self._beyond)} {self.limit:.6g}"

    def reason(self) -> str:
        """Say why it is not a PASS; "" for a PASS."""
        if self.found.status is Decision.PASS:
            return ""
        if self.found.status is Decision.FAIL:
            if self._beyond:
                return self.verdict.beyond(self.measured, self.limit, self.baseline)
            return (
                f"{self._row()}, but a loss beyond the free {100 * self._free:g} % is proven: "
                f"{self._percent(self.found.loss)}, at least {self._percent(self.found.lower)}, "
                f"vs baseline {self.baseline:.6g}"
            )
        doubt = "that may be noise" if self._beyond else f"a loss of {100 * self.tolerance:g} % is not ruled out"
        return f"{self._row()}, but {doubt}: {self._interval()}; {self._more()}"

    def _more(self) -> str:
        """Say how many more sessions would decide it."""
        if self.found.needed is None:
            return f"no number of further sessions would decide it against {self.stored} stored ones"
        left = "" if self.found.next_look is not None else ", and no look is left"
        return f"{_count(self.found.needed, 'more session')} would decide it{left}"

    def next_step(self) -> str:
        """Say what to do about a verdict that is not decided at the last look."""
        if self.found.status is not Decision.INCONCLUSIVE:
            return ""
        gap = log_margin(self.tolerance, higher_is_better=self.verdict.higher) - log_margin(
            self._free, higher_is_better=self.verdict.higher
        )
        looks = SESSIONS.at(self.alpha)
        enough = baseline_sessions_to_decide(sd=self.found.sd, gap=gap, level=looks.levels[-1])
        if enough is None or enough <= self.stored:
            return "measure on a quieter machine, or give the gate a wider tolerance"
        return (
            f"measure on a quieter machine, give the gate a wider tolerance, or record {enough} sessions: "
            f"pytest {{nodeid}} {_RECORD} --inferperf-set=sessions={enough}"
        )

    def notes(self) -> tuple[str, ...]:
        """Return the bounds, and what a PASS must explain."""
        name = self.verdict.gate.name
        sessions = _count(self.found.used, "session")
        found = [f"{name}: {self._interval()} ({sessions} against {self.stored} stored)"]
        if self.found.status is Decision.PASS and self._beyond:
            found.append(
                f"{name}: {self._row()}, but a loss of {100 * self.tolerance:g} % is ruled out: at most "
                f"{self._percent(self.found.upper)}"
            )
        if self.found.upper < -self.tolerance:
            gain = self._percent(-self.found.upper)
            found.append(f"{name}: better by at least {gain}: the baseline is stale, tighten it: {_TIGHTEN}")
        return tuple(found)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


class _Verdict:
    """Builds the verdict of one gate; knows its name, unit and direction."""

    def __init__(self, gate: PerformanceGate) -> None:
        self.gate = gate
        self.higher = gate.metric.metric.higher_is_better

    def meets(self, measured: float, limit: float) -> bool:
        """Whether a figure is on the right side of a limit, or on it."""
        return measured >= limit if self.higher else measured <= limit

    def side(self, beyond: bool) -> str:
        """Name the side of its limit on which a figure is."""
        kind = "floor" if self.higher else "ceiling"
        return f"{'below' if self.higher else 'above'} its {kind}" if beyond else f"within its {kind}"

    def beyond(self, measured: float, limit: float, baseline: float | None) -> str:
        """Say by how much a figure is beyond its limit."""
        change = f" ({100 * (measured / baseline - 1):+.1f} % vs baseline {baseline:.6g})" if baseline else ""
        return f"{measured:.6g} {self.gate.metric.metric.unit} is {self.side(True)} {limit:.6g}{change}"

    def give(
        self,
        status: Status,
        *,
        measured: float | None = None,
        limit: float | None = None,
        baseline: float | None = None,
        tolerance: float | None = None,
        source: str = "",
        reason: str = "",
        next_step: str = "",
        notes: tuple[str, ...] = (),
        next_look: int | None = None,
        details: Mapping[str, float | int | str] | None = None,
    ) -> GateVerdict:
        metric = self.gate.metric.metric
        return GateVerdict(
            gate=self.gate.name,
            status=status,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            measured=measured,
            limit=limit,
            baseline=baseline,
            tolerance=tolerance,
            source=source,
            reason=reason,
            next_step=next_step,
            notes=(*notes, *self._said_otherwise(measured)),
            next_look=next_look,
            details=details or {},
        )

    def _said_otherwise(self, measured: float | None) -> tuple[str, ...]:
        """Say a figure in the unit that data centres plan by."""
        if self.gate.name != "energy_per_token_j" or measured is None or measured <= 0:
            return ()
        return (f"{self.gate.name}: {per_megawatt(measured):.6g} tok/s per megawatt of GPU power",)

    def fail(self, *, reason: str) -> GateVerdict:
        return self.give(Status.FAIL, reason=reason)

    def missing(self, entry: Missing | None, measured: float) -> GateVerdict:
        where = f"{entry.path}: {entry.reason}; key {entry.key}" if entry is not None else "no baseline was looked up"
        return self.give(
            Status.FAIL,
            measured=measured,
            source=entry.path if entry is not None else "",
            reason=f"has no baseline ({where})",
            next_step="pytest {nodeid} --inferperf-update=new",
        )

    def compare(
        self,
        measured: float,
        limit: float,
        *,
        source: str,
        baseline: float | None = None,
        tolerance: float | None = None,
        notes: tuple[str, ...] = (),
        details: Mapping[str, float | int | str] | None = None,
    ) -> GateVerdict:
        passed = self.meets(measured, limit)
        if baseline is not None and tolerance is not None:
            gain = baseline * (1 + tolerance if self.higher else 1 - tolerance)
            if measured > gain if self.higher else measured < gain:
                better = (
                    "better beyond tolerance, which so few sessions do not prove: if the baseline is stale, tighten it"
                )
                notes = (*notes, f"{self.gate.name}: {better}: {_TIGHTEN}")
        return self.give(
            Status.PASS if passed else Status.FAIL,
            measured=measured,
            limit=limit,
            baseline=baseline,
            tolerance=tolerance,
            source=source,
            reason="" if passed else self.beyond(measured, limit, baseline),
            notes=notes,
            details=details,
        )
