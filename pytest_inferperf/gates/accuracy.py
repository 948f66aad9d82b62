"""Accuracy gates: the loss against a stored reference, question by question.

The answers are judged in the order in which they were asked. An evaluation that could stop is judged at its looks, by
bounds that spend `alpha` over all of them, and the first decision stands; one that was answered whole before anybody
looked is judged once, at all of `alpha`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, ScoreEntry
from pytest_inferperf.baselines.outcomes import as_stored
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.gates.asking import Answers, answers_of
from pytest_inferperf.gates.drift import Drift, drift_against, kl_divergence
from pytest_inferperf.gates.looks import ALPHA, QUESTIONS, Decision, Unresolvable, single_look
from pytest_inferperf.gates.paired import PairedVerdict, binomial_bounds, judge_paired, paired_bounds
from pytest_inferperf.gates.published import judge_published
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling
from pytest_inferperf.model.results import AccuracyResult
from pytest_inferperf.model.verdicts import GateVerdict, Status

__all__ = ["judge_floor", "judge_loss"]

_STATUS = {
    Decision.PASS: Status.PASS,
    Decision.FAIL: Status.FAIL,
    Decision.OPEN: Status.INCONCLUSIVE,
    Decision.INCONCLUSIVE: Status.INCONCLUSIVE,
}


def judge_floor(gate: AccuracyFloor, result: AccuracyResult, *, alpha: float = ALPHA) -> GateVerdict:
    """Judge an absolute floor in points. A score that is not a share of right answers has no floor: FAIL.

    Once all documents are answered the score itself is compared. Before, Clopper-Pearson bounds of the share of right
    answers decide at the looks; where they do not apply (scores between 0 and 1, groups), nothing is decided.
    """
    row = partial(GateVerdict, gate=result.metric, unit="points", limit=gate.points, source="mark")
    wrong_scale = _not_points(result)
    if wrong_scale:
        return row(status=Status.FAIL, reason=wrong_scale)
    if result.is_partial:
        answers = answers_of(result)
        if isinstance(answers, str):
            return row(status=Status.INVALID, reason=f"the run is invalid: {answers}")
        return _floor_in_part(gate, result, answers, alpha)
    measured = 100 * result.score
    passed = measured >= gate.points
    return row(
        status=Status.PASS if passed else Status.FAIL,
        measured=measured,
        reason="" if passed else f"{measured:.2f} points is below its floor {gate.points:.2f}",
    )


def _floor_in_part(gate: AccuracyFloor, result: AccuracyResult, answers: Answers, alpha: float) -> GateVerdict:
    planned, used = len(answers.order), len(answers.outcomes)
    status, shown = Status.INCONCLUSIVE, f"{used} of {planned} questions"
    measured = 100 * math.fsum(answers.outcomes) / used
    mean_of_bits = result.is_binary and result.groups is None and math.isclose(100 * result.score, measured)
    for size, level in answers.looks(alpha) if mean_of_bits else ():
        right = int(sum(answers.outcomes[:size]))
        lower, upper = (100 * bound for bound in binomial_bounds(right, size, level))
        measured = 100 * right / size
        shown = (
            f"{size} of {planned} questions; score between {lower:.2f} and {upper:.2f} points at "
            f"{100 * (1 - level):.3g} % each way"
        )
        if lower >= gate.points or upper < gate.points:
            status = Status.PASS if lower >= gate.points else Status.FAIL
            break
    reason = {
        Status.PASS: "",
        Status.FAIL: f"{measured:.2f} points is below its floor {gate.points:.2f} ({shown})",
        Status.INCONCLUSIVE: f"{measured:.2f} points is neither proven above nor below its floor {gate.points:.2f} ({shown})",
    }[status]
    return GateVerdict(
        gate=result.metric,
        status=status,
        unit="points",
        measured=measured,
        limit=gate.points,
        source="mark",
        reason=reason,
        notes=(shown,),
        next_look=answers.next_look() if status is Status.INCONCLUSIVE else None,
    )


def judge_loss(
    gate: AccuracyLossCeiling,
    result: AccuracyResult,
    entry: AccuracyEntry | Missing | None,
    *,
    alpha: float = ALPHA,
    precision: str = "",
) -> list[GateVerdict]:
    """Judge the paired loss, and for generated answers the rise of the unparseable share as a row of its own.

    Against a published score, which has no answers to pair with, the scores themselves are compared.

    `alpha` is the total one-sided error of each row; `precision` that of the candidate, whose own baseline, where there
    is one beside the reference, is compared too: drift is a note, and never changes a status.
    """

    def invalid(reason: str) -> list[GateVerdict]:
        return [
            GateVerdict(
                gate=_name(gate, result),
                status=Status.INVALID,
                unit=_unit(gate),
                higher_is_better=False,
                reason=f"the run is invalid: {reason}",
            )
        ]

    if not all(map(math.isfinite, (result.score, *result.outcomes))):
        return invalid(f"{result.metric} is not finite on at least one document")
    found = _reference(gate, result, entry)
    if isinstance(found, GateVerdict):
        return [found]
    answers = answers_of(result)
    if isinstance(answers, str):
        return invalid(answers)
    reference, path = found
    if not reference.outcomes:
        wrong_scale = _not_points(result) if gate.points is not None else ""
        rows = [judge_published(gate, result, answers, reference, path, wrong_scale=wrong_scale)]
        return rows + _unparseable_rows(gate, result, answers, reference, path, alpha)
    own = entry.scores.get(precision) if isinstance(entry, AccuracyEntry) and precision != gate.reference else None
    drift = None
    if own is not None and own.outcomes:
        drift = drift_against(
            own,
            order=answers.order,
            outcomes=_rounded(answers.outcomes),
            logprobs=result.logprobs,
            higher_is_better=result.higher_is_better,
        )
    rows = [_judge_paired(gate, result, answers, reference, path, alpha, (precision, drift) if drift else None)]
    return rows + _unparseable_rows(gate, result, answers, reference, path, alpha)


def _unparseable_rows(
    gate: AccuracyLossCeiling,
    result: AccuracyResult,
    answers: Answers,
    reference: ScoreEntry,
    path: str,
    alpha: float,
) -> list[GateVerdict]:
    if result.unparseable is None and gate.unparseable_points is None:
        return []
    return [_judge_unparseable(gate, result, answers, reference, path, alpha)]


def _name(gate: AccuracyLossCeiling, result: AccuracyResult) -> str:
    return f"{result.metric} loss vs {gate.reference}"


def _unit(gate: AccuracyLossCeiling) -> str:
    return "points" if gate.points is not None else "%"


def _reference(
    gate: AccuracyLossCeiling, result: AccuracyResult, entry: AccuracyEntry | Missing | None
) -> tuple[ScoreEntry, str] | GateVerdict:
    """Find the stored reference, answers or a published score, or the verdict that says why there is none."""

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
    if entry.higher_is_better is not result.higher_is_better:
        return fail(
            entry.path, f"cannot be paired: {entry.path} says that {entry.metric} is better in the other direction"
        )
    if not stored.outcomes:
        return stored, entry.path
    if entry.documents_digest != result.documents_digest or len(stored.outcomes) != result.planned:
        return fail(
            entry.path,
            f"cannot be paired: {entry.path} answers {len(stored.outcomes)} documents (digest "
            f"{entry.documents_digest[:12]}), this run {result.planned} (digest {result.documents_digest[:12]}); "
            "the questions changed",
            'record the reference again: --inferperf-update=all --inferperf-reason="…"',
        )
    return stored, entry.path


def _not_points(result: AccuracyResult) -> str:
    """Say why points do not apply to a metric; "" when they do."""
    if result.higher_is_better and all(0 <= value <= 1 for value in (result.score, *result.outcomes)):
        return ""
    return (
        f"{result.metric} is not a score between 0 and 1 that is better when higher: points do not apply, use percent="
    )


def _judge_paired(
    gate: AccuracyLossCeiling,
    result: AccuracyResult,
    answers: Answers,
    reference: ScoreEntry,
    path: str,
    alpha: float,
    own: tuple[str, Drift] | None,
) -> GateVerdict:
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
            [reference.outcomes[document] for document in answers.order],
            _rounded(answers.outcomes),
            tolerance=limit * unit,
            higher_is_better=result.higher_is_better,
            groups=answers.groups,
            alpha=alpha,
            looks=QUESTIONS if _looked(result) else single_look("percent of the questions", 100, alpha=alpha),
        )
    except ValueError as error:
        return row(status=Status.FAIL, reason=f"cannot be judged: {error}", details={"reference": gate.reference})
    if isinstance(found, Unresolvable):
        return row(
            status=Status.FAIL, reason=f"cannot be judged: {found.reason}", details={"reference": gate.reference}
        )
    if not found.used:
        return row(
            status=Status.INCONCLUSIVE,
            reason=f"{len(answers.outcomes)} of {found.planned} questions are fewer than the first look takes",
            next_look=found.next_look,
            details={"reference": gate.reference, "questions": 0, "planned": found.planned},
        )
    status = _STATUS[found.status]
    kl = None
    if reference.logprobs and result.logprobs:
        kl = kl_divergence(reference.logprobs, result.logprobs)
    return row(
        status=status,
        measured=found.loss / unit,
        reason="" if status is Status.PASS else _why(gate, result, reference, found, unit),
        notes=_loss_notes(gate, reference, found, unit, kl, own),
        next_look=found.next_look,
        details=_details(gate, reference, found, unit, kl, own),
    )


def _looked(result: AccuracyResult) -> bool:
    return result.sequential or result.is_partial


def _why(
    gate: AccuracyLossCeiling, result: AccuracyResult, reference: ScoreEntry, found: PairedVerdict, unit: float
) -> str:
    loss, upper = found.loss / unit, found.upper / unit
    limit = gate.points if gate.points is not None else gate.percent
    counts = f"({_counts(found)}"
    if found.used == found.planned:
        counts += f"; score {reference.score:.4f} -> {result.score:.4f}"
    counts += ")"
    if found.status is Decision.FAIL and limit is not None and loss > limit:
        return f"{loss:.2f} {_unit(gate)} is above its ceiling {limit:.2f} {counts}"
    text = f"{loss:.2f} {_unit(gate)}, at most {upper:.2f}, is not proven below its ceiling {limit:.2f} {counts}"
    if found.next_look is not None:
        text += f"; the next look is at {found.next_look} questions"
    elif found.status is Decision.INCONCLUSIVE and found.needed:
        text += f"; {found.needed} more questions would decide it"
    return text


def _counts(found: PairedVerdict) -> str:
    part = f"in {found.used} of {found.planned} questions" if found.used < found.planned else f"of {found.used}"
    return f"{found.lost} lost, {found.gained} gained {part}"


def _loss_notes(
    gate: AccuracyLossCeiling,
    reference: ScoreEntry,
    found: PairedVerdict,
    unit: float,
    kl: float | None,
    own: tuple[str, Drift] | None,
) -> tuple[str, ...]:
    assert found.level is not None  # only before the first look
    bounds = f"{_counts(found)}; loss between {found.lower / unit:.2f} and {found.upper / unit:.2f} {_unit(gate)} at {100 * (1 - found.level):.3g} % each way"
    parts = [f"{100 * found.flips:.2f} % flips"]
    if reference.repeat is not None:
        parts.append(f"A/A flips of {gate.reference}: {reference.repeat.flips} of {reference.repeat.questions}")
    parts.append(f"McNemar mid-p {found.mcnemar_p:.2g}")
    if math.isfinite(found.detectable):
        parts.append(f"detectable loss {found.detectable / unit:.2f} {_unit(gate)}")
    if kl is not None:
        parts.append(f"KL {kl:.2g} nats")
    notes = [f"vs {gate.reference}: {bounds}", f"vs {gate.reference}: {', '.join(parts)}"]
    if own is not None:
        precision, drift = own
        text = f"{drift.lost} lost, {drift.gained} gained of {drift.questions}, net loss {drift.loss / unit:.2f} {_unit(gate)}"
        if drift.kl is not None:
            text += f", KL {drift.kl:.2g} nats"
        tripped = f" ({'; '.join(drift.causes)})" if drift.causes else ""
        notes.append(f"{'drift: ' if drift.causes else ''}vs the own baseline {precision}: {text}{tripped}")
    return tuple(notes)


def _details(
    gate: AccuracyLossCeiling,
    reference: ScoreEntry,
    found: PairedVerdict,
    unit: float,
    kl: float | None,
    own: tuple[str, Drift] | None,
) -> Mapping[str, float | int | str]:
    figures: dict[str, float | int | str | None] = {
        "reference": gate.reference,
        "questions": found.used,
        "planned": found.planned,
        "lost": found.lost,
        "gained": found.gained,
        "flips_percent": 100 * found.flips,
        "lower": found.lower / unit,
        "upper": found.upper / unit,
        "level": found.level,
        "mcnemar_p": found.mcnemar_p,
        "detectable": found.detectable / unit,
        "resolvable": found.resolvable / unit,
        "needed": found.needed,
        "method": str(found.method),
        "kl": kl,
    }
    if reference.repeat is not None:
        figures |= {"aa_questions": reference.repeat.questions, "aa_flips": reference.repeat.flips}
    if own is not None:
        drift = own[1]
        figures |= {"own_lost": drift.lost, "own_gained": drift.gained, "own_questions": drift.questions}
        figures |= {"own_loss": drift.loss / unit, "own_kl": drift.kl, "drift": "; ".join(drift.causes)}
    # What is unknown or infinite is left out: a file of results cannot hold it.
    return {
        name: value
        for name, value in figures.items()
        if value is not None and (isinstance(value, str) or math.isfinite(value))
    }


def _rounded(outcomes: Sequence[float]) -> tuple[float, ...]:
    """Round like stored outcomes are, or every document of an unchanged perplexity would count as a flip."""
    if set(outcomes) <= {0.0, 1.0}:
        return tuple(outcomes)
    try:
        return as_stored(outcomes)
    except BaselineError:
        # Too large to store: worse than any reference by more than rounding.
        return tuple(outcomes)


def _judge_unparseable(
    gate: AccuracyLossCeiling,
    result: AccuracyResult,
    answers: Answers,
    reference: ScoreEntry,
    path: str,
    alpha: float,
) -> GateVerdict:
    """Judge the share of answers that could not be read: a broken format is another failure than a wrong answer.

    Once all documents are answered the shares themselves are compared; before, paired bounds of the rise decide at the
    looks. A reference without such flags counts as 0 %, the strictest reading.
    """
    row = partial(
        GateVerdict, gate=f"unparseable rise vs {gate.reference}", unit="points", higher_is_better=False, source=path
    )
    if answers.unparseable is None:
        return row(
            status=Status.FAIL,
            reason="was not measured: no filter of the task has a fallback, so no answer counts as unparseable",
            next_step="give the task's regex filter a fallback, or leave unparseable_points out of the mark",
        )
    given = (gate.unparseable_points, gate.points, gate.percent)
    limit = next(value for value in given if value is not None)
    planned, used = len(answers.order), len(answers.unparseable)
    stored = reference.unparseable
    before = [stored is not None and stored[document] for document in answers.order]
    rises = [int(new) - int(old) for new, old in zip(answers.unparseable, before, strict=False)]
    status, next_look, bounds = Status.INCONCLUSIVE, answers.next_look(), ""
    if used == planned:
        status = Status.PASS if 100 * sum(rises) / used <= limit else Status.FAIL
    else:
        for size, level in answers.looks(alpha):
            groups = answers.groups[:size] if answers.groups is not None else None
            lower, upper = (100 * bound for bound in paired_bounds(rises[:size], level, groups=groups))
            bounds = f"; rise between {lower:.2f} and {upper:.2f} at {100 * (1 - level):.3g} % each way"
            if upper <= limit or lower > limit:
                status, used = Status.PASS if upper <= limit else Status.FAIL, size
                break
    rise = 100 * sum(rises[:used]) / used
    share, base = 100 * sum(answers.unparseable[:used]) / used, 100 * sum(before[:used]) / used
    shares = f"({base:.2f} % -> {share:.2f} % of answers unparseable{bounds})"
    reason = {
        Status.PASS: "",
        Status.FAIL: f"{rise:.2f} points is above its ceiling {limit:.2f} {shares}",
        Status.INCONCLUSIVE: f"{rise:.2f} points is neither proven below nor above its ceiling {limit:.2f} {shares}",
    }[status]
    return row(
        status=status,
        measured=rise,
        limit=limit,
        baseline=base,
        reason=reason,
        next_look=next_look if status is Status.INCONCLUSIVE else None,
        details={
            "reference": gate.reference,
            "questions": used,
            "planned": planned,
            "unparseable_percent": share,
        },
    )
