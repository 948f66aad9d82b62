"""The loss against a published score: two scores compared, because a publication has no answers to pair with.

What decides is the plain difference, as for a performance baseline with too few sessions: nobody knows how often that
alarms without a cause. So every verdict says `unpaired`, how far chance alone moves the difference, and how to get a
reference of one's own.
"""

from __future__ import annotations

import math
from functools import partial

from pytest_inferperf.baselines.entries import ScoreEntry
from pytest_inferperf.gates.asking import Answers
from pytest_inferperf.model.gates import AccuracyLossCeiling
from pytest_inferperf.model.results import AccuracyResult
from pytest_inferperf.model.verdicts import GateVerdict, Status

__all__ = ["RECORD_REFERENCE", "judge_published"]

RECORD_REFERENCE = '--inferperf-update=all --inferperf-reason="…"'
"""What replaces a published score by answers of one's own."""

_Z = 1.96
"""95 % of a normal distribution lie this many standard deviations around its mean."""

_ROUNDING = 1e-9


def judge_published(
    gate: AccuracyLossCeiling,
    result: AccuracyResult,
    answers: Answers,
    reference: ScoreEntry,
    path: str,
    *,
    wrong_scale: str = "",
) -> GateVerdict:
    """Compare the score of all questions with a published one: FAIL where the loss is above the ceiling, else PASS.

    INCONCLUSIVE until every question is answered: scores of other questions are not comparable. `wrong_scale` says why
    the gate's unit does not apply to the metric, "" where it does; that, and a percentage of 0, is a FAIL.
    """
    limit = gate.points if gate.points is not None else gate.percent
    assert limit is not None  # the mark gives one of the two
    unit = "points" if gate.points is not None else "%"
    row = partial(
        GateVerdict,
        gate=f"{result.metric} loss vs {gate.reference}",
        unit=unit,
        higher_is_better=False,
        limit=limit,
        baseline=reference.score,
        source=path,
    )
    details: dict[str, float | int | str] = {"reference": gate.reference, "published": reference.provenance.source}
    if gate.percent is not None and not reference.score:
        wrong_scale = "the reference is 0, and a percentage of it is undefined: use points="
    if wrong_scale:
        return row(status=Status.FAIL, reason=wrong_scale, details=details)
    if result.is_partial:
        planned, used = len(answers.order), len(answers.outcomes)
        return row(
            status=Status.INCONCLUSIVE,
            reason=f"{used} of {planned} questions: a published score is compared with that of all of them",
            next_look=answers.next_look(),
            details=details,
        )
    # One unit of the row in units of the score.
    scale = 0.01 if gate.points is not None else abs(reference.score) / 100
    lost = reference.score - result.score if result.higher_is_better else result.score - reference.score
    loss, noise = lost / scale, _chance(reference, result) / scale
    passed = loss <= limit + _ROUNDING
    return row(
        status=Status.PASS if passed else Status.FAIL,
        measured=loss,
        reason="" if passed else f"{loss:.2f} {unit} is above its ceiling {limit:.2f} ({_scores(reference, result)})",
        notes=(_note(gate, result, reference, noise, unit),),
        details={**details, "questions": len(result.outcomes), "chance": noise},
    )


def _scores(reference: ScoreEntry, result: AccuracyResult) -> str:
    return f"published {reference.score:.4f} -> {result.score:.4f}"


def _chance(reference: ScoreEntry, result: AccuracyResult) -> float:
    """Return how far 95 % of the differences of two equal engines lie from 0, in units of the score.

    Each is taken to have answered as many questions as this run did; a score of right answers has the spread of a
    share, any other that of its documents.
    """
    count = len(result.outcomes)
    if result.is_binary and 0 <= reference.score <= 1:
        variance = sum(score * (1 - score) for score in (reference.score, result.score))
    else:
        mean = math.fsum(result.outcomes) / count
        variance = 2 * math.fsum((value - mean) ** 2 for value in result.outcomes) / count
    return _Z * math.sqrt(variance / count)


def _note(gate: AccuracyLossCeiling, result: AccuracyResult, reference: ScoreEntry, noise: float, unit: str) -> str:
    quant, _, kv_cache = gate.reference.partition("+kv_")
    cases = f"quant={quant!r}" + (f", kv_cache_dtype={kv_cache!r}" if kv_cache else "")
    return (
        f"vs {gate.reference}: unpaired and uncalibrated: a published score without answers "
        f"({reference.provenance.source}), {_scores(reference, result)}; with {len(result.outcomes)} questions chance "
        f"alone moves the loss by up to {noise:.2f} {unit} in 95 of 100 runs. To pair question by question, evaluate the "
        f"task with {cases} and {RECORD_REFERENCE}"
    )
