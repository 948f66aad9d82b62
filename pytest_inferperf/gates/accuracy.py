"""Accuracy gates: the loss against a stored reference, question by question."""

from __future__ import annotations

import math
from functools import partial

from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, ScoreEntry
from pytest_inferperf.baselines.outcomes import as_stored
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.gates.looks import Decision, Unresolvable, single_look
from pytest_inferperf.gates.paired import PairedVerdict, judge_paired
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling
from pytest_inferperf.model.results import AccuracyResult
from pytest_inferperf.model.verdicts import GateVerdict, Status

__all__ = ["judge_floor", "judge_loss"]


def judge_floor(gate: AccuracyFloor, result: AccuracyResult) -> GateVerdict:
    """Judge an absolute floor in points. A score that is not a share of right answers has no floor: FAIL."""
    wrong_scale = _not_points(result)
    measured = None if wrong_scale else 100 * result.score
    passed = measured is not None and measured >= gate.points
    reason = wrong_scale
    if measured is not None and not passed:
        reason = f"{measured:.2f} points is below its floor {gate.points:.2f}"
    return GateVerdict(
        gate=result.metric,
        status=Status.PASS if passed else Status.FAIL,
        unit="points",
        measured=measured,
        limit=gate.points,
        source="mark",
        reason=reason,
    )


def judge_loss(
    gate: AccuracyLossCeiling, result: AccuracyResult, entry: AccuracyEntry | Missing | None
) -> list[GateVerdict]:
    """Judge the paired loss, and for generated answers the rise of the unparseable share as a row of its own."""
    if not all(map(math.isfinite, (result.score, *result.outcomes))):
        reason = f"the run is invalid: {result.metric} is not finite on at least one document"
        return [
            GateVerdict(
                gate=_name(gate, result),
                status=Status.INVALID,
                unit=_unit(gate),
                higher_is_better=False,
                reason=reason,
            )
        ]
    found = _reference(gate, result, entry)
    if isinstance(found, GateVerdict):
        return [found]
    reference, path = found
    rows = [_judge_paired(gate, result, reference, path)]
    if result.unparseable is not None or gate.unparseable_points is not None:
        rows.append(_judge_unparseable(gate, result, reference, path))
    return rows


def _name(gate: AccuracyLossCeiling, result: AccuracyResult) -> str:
    return f"{result.metric} loss vs {gate.reference}"


def _unit(gate: AccuracyLossCeiling) -> str:
    return "points" if gate.points is not None else "%"


def _reference(
    gate: AccuracyLossCeiling, result: AccuracyResult, entry: AccuracyEntry | Missing | None
) -> tuple[ScoreEntry, str] | GateVerdict:
    """Find the stored reference outcomes, or the verdict that says why there are none to compare with."""

    def fail(path: str, reason: str, next_step: str = "pytest {nodeid} --inferperf-update=new") -> GateVerdict:
        return GateVerdict(
            gate=_name(gate, result),
            status=Status.FAIL,
            unit=_unit(gate),
            higher_is_better=False,
            source=path,
            reason=reason,
            next_step=next_step,
        )

    record = f"evaluate the same task with quant={gate.reference.partition('+')[0]!r} and --inferperf-update=new"
    if entry is None:
        return fail("", "has no baseline (none was looked up)", record)
    if isinstance(entry, Missing):
        return fail(entry.path, f"has no baseline ({entry.path}: {entry.reason}; key {entry.key})", record)
    stored = entry.scores.get(gate.reference)
    if stored is None:
        held = ", ".join(sorted(entry.scores))
        return fail(
            entry.path,
            f"has no baseline ({entry.path}: key {entry.key} has no {gate.reference}; it holds {held})",
            record,
        )
    if not stored.outcomes:
        return fail(
            entry.path,
            f"cannot be paired: {gate.reference} in {entry.path} is a published score without per-sample outcomes",
            record,
        )
    if entry.documents_digest != result.documents_digest or len(stored.outcomes) != len(result.outcomes):
        return fail(
            entry.path,
            f"cannot be paired: {entry.path} answers {len(stored.outcomes)} documents (digest "
            f"{entry.documents_digest[:12]}), this run {len(result.outcomes)} (digest {result.documents_digest[:12]}); "
            "the questions changed",
            'record the reference again: --inferperf-update=all --inferperf-reason="…"',
        )
    if entry.higher_is_better is not result.higher_is_better:
        return fail(
            entry.path, f"cannot be paired: {entry.path} says that {entry.metric} is better in the other direction"
        )
    return stored, entry.path


def _not_points(result: AccuracyResult) -> str:
    """Say why points do not apply to a metric; "" when they do."""
    if result.higher_is_better and all(0 <= value <= 1 for value in (result.score, *result.outcomes)):
        return ""
    return (
        f"{result.metric} is not a score between 0 and 1 that is better when higher: points do not apply, use percent="
    )


_EVERY_QUESTION = single_look("percent of the questions", 100)
"""lm-eval answers every question before anyone looks, so all of alpha is spent at once."""


def _judge_paired(gate: AccuracyLossCeiling, result: AccuracyResult, reference: ScoreEntry, path: str) -> GateVerdict:
    """Judge the loss by its confidence bounds: PASS when proven below the ceiling, FAIL when proven beyond half of it.

    In between the verdict is INCONCLUSIVE, and says how many more questions would decide it.
    """
    row = partial(
        GateVerdict,
        gate=_name(gate, result),
        unit=_unit(gate),
        higher_is_better=False,
        limit=gate.points if gate.points is not None else gate.percent,
        baseline=reference.score,
        source=path,
    )
    mean = math.fsum(reference.outcomes) / len(reference.outcomes)
    wrong_scale = _not_points(result) if gate.points is not None else ""
    if gate.percent is not None and not mean:
        wrong_scale = "the reference is 0, and a percentage of it is undefined: use points="
    if wrong_scale:
        return row(status=Status.FAIL, reason=wrong_scale, details={"reference": gate.reference})
    # One unit of the row in units of the score.
    unit = 0.01 if gate.points is not None else abs(mean) / 100
    limit = gate.points if gate.points is not None else gate.percent
    assert limit is not None  # the mark gives one of the two
    try:
        found = judge_paired(
            reference.outcomes,
            _rounded(result.outcomes),
            tolerance=limit * unit,
            higher_is_better=result.higher_is_better,
            looks=_EVERY_QUESTION,
        )
    except ValueError as error:
        return row(status=Status.FAIL, reason=f"cannot be judged: {error}", details={"reference": gate.reference})
    if isinstance(found, Unresolvable):
        return row(
            status=Status.FAIL, reason=f"cannot be judged: {found.reason}", details={"reference": gate.reference}
        )
    loss, lower, upper = found.loss / unit, found.lower / unit, found.upper / unit
    status = Status(found.status.value)
    return row(
        status=status,
        measured=loss,
        reason="" if status is Status.PASS else _why(gate, result, reference, found, unit),
        notes=(
            f"{found.lost} lost, {found.gained} gained of {found.used}; loss between {lower:.2f} and {upper:.2f} "
            f"{_unit(gate)} at 95 % each way",
        ),
        details={
            "reference": gate.reference,
            "questions": found.used,
            "lost": found.lost,
            "gained": found.gained,
            "flips_percent": 100 * found.flips,
            "lower": lower,
            "upper": upper,
            "mcnemar_p": found.mcnemar_p,
            "method": str(found.method),
        },
    )


def _why(
    gate: AccuracyLossCeiling, result: AccuracyResult, reference: ScoreEntry, found: PairedVerdict, unit: float
) -> str:
    loss, upper = found.loss / unit, found.upper / unit
    limit = gate.points if gate.points is not None else gate.percent
    counts = (
        f"({found.lost} lost, {found.gained} gained of {found.used}; score {reference.score:.4f} -> {result.score:.4f})"
    )
    if found.status is Decision.FAIL and limit is not None and loss > limit:
        return f"{loss:.2f} {_unit(gate)} is above its ceiling {limit:.2f} {counts}"
    text = f"{loss:.2f} {_unit(gate)}, at most {upper:.2f}, is not proven below its ceiling {limit:.2f} {counts}"
    if found.status is Decision.INCONCLUSIVE and found.needed:
        text += f"; {found.needed} more questions would decide it"
    return text


def _rounded(outcomes: tuple[float, ...]) -> tuple[float, ...]:
    """Round like stored outcomes are, or every document of an unchanged perplexity would count as a flip."""
    try:
        return as_stored(outcomes)
    except BaselineError:
        # Too large to store: worse than any reference by more than rounding.
        return outcomes


def _judge_unparseable(
    gate: AccuracyLossCeiling, result: AccuracyResult, reference: ScoreEntry, path: str
) -> GateVerdict:
    """Judge the share of answers that could not be read: a broken format is another failure than a wrong answer.

    A reference without such flags counts as 0 %, the strictest reading.
    """
    if result.unparseable is None:
        return GateVerdict(
            gate=f"unparseable rise vs {gate.reference}",
            status=Status.FAIL,
            unit="points",
            higher_is_better=False,
            source=path,
            reason="was not measured: no filter of the task has a fallback, so no answer counts as unparseable",
            next_step="give the task's regex filter a fallback, or leave unparseable_points out of the mark",
        )
    share = 100 * sum(result.unparseable) / len(result.unparseable)
    before = 100 * sum(reference.unparseable) / len(reference.unparseable) if reference.unparseable else 0.0
    given = (gate.unparseable_points, gate.points, gate.percent)
    limit = next(value for value in given if value is not None)
    rise = share - before
    passed = rise <= limit
    return GateVerdict(
        gate=f"unparseable rise vs {gate.reference}",
        status=Status.PASS if passed else Status.FAIL,
        unit="points",
        higher_is_better=False,
        measured=rise,
        limit=limit,
        baseline=before,
        source=path,
        reason=""
        if passed
        else f"{rise:.2f} points is above its ceiling {limit:.2f} ({before:.2f} % -> {share:.2f} % of answers unparseable)",
        details={"reference": gate.reference, "unparseable_percent": share},
    )
