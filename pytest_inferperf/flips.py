"""Which documents flipped against the reference, with their texts: kept for those alone, and for no more than people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_inferperf.baselines.against import RunReference
from pytest_inferperf.baselines.entries import AccuracyEntry, ScoreEntry
from pytest_inferperf.judging import find_accuracy
from pytest_inferperf.model.gates import AccuracyLossCeiling, Gate
from pytest_inferperf.model.results import AccuracyResult, Answered, CaseResult, Flip, Flips

__all__ = ["MOST_SHOWN", "with_flips"]

MOST_SHOWN = 50
"""Documents in each direction whose texts are kept."""


def with_flips(
    result: CaseResult, gates: Sequence[Gate], *, root: Path, against: RunReference | None = None, nodeid: str = ""
) -> CaseResult:
    """Return a result that keeps the flips against each reference of its gates; arguments as in `judge_case`.

    Scores that are not 0 or 1 do not flip. What was replayed keeps the flips it was stored with. Raises `BaselineError`
    for a baseline file that cannot be read.
    """
    answers = result.accuracy
    references = dict.fromkeys(gate.reference for gate in gates if isinstance(gate, AccuracyLossCeiling))
    if answers is None or answers.texts is None or not references:
        return result
    entry = find_accuracy(result, root=root, against=against, nodeid=nodeid)
    if not isinstance(entry, AccuracyEntry) or entry.documents_digest != answers.documents_digest:
        return result
    live = {item.reference.label: item.accuracy.texts or {} for item in result.comparisons if item.accuracy is not None}
    flips = tuple(
        _flips(answers, answers.texts, label, stored, live.get(label, {}))
        for label in references
        if (stored := entry.scores.get(label)) is not None
        and answers.is_binary
        and set(stored.outcomes) <= {0.0, 1.0}
        and len(stored.outcomes) == answers.planned
    )
    return replace(result, accuracy=replace(answers, flips=flips))


def _flips(
    answers: AccuracyResult,
    texts: Mapping[int, Answered],
    label: str,
    stored: ScoreEntry,
    live: Mapping[int, Answered],
) -> Flips:
    asked = [number for number in range(answers.planned) if answers.asked is None or answers.asked[number]]
    right = 1.0 if answers.higher_is_better else 0.0
    moved = [
        (number, after != right)
        for number, after in zip(asked, answers.outcomes, strict=True)
        if after != stored.outcomes[number]
    ]
    shown = []
    for wanted in (True, False):
        mine = [number for number, lost in moved if lost is wanted and number in texts]
        shown += [
            _flip(number, wanted, texts[number], stored, live.get(number), answers.metric)
            for number in mine[:MOST_SHOWN]
        ]
    lost = sum(lost for _, lost in moved)
    return Flips(reference=label, lost=lost, gained=len(moved) - lost, shown=tuple(shown))


def _flip(number: int, lost: bool, text: Answered, stored: ScoreEntry, live: Answered | None, metric: str) -> Flip:
    reference = live.answer if live is not None else None
    # Log-probabilities are kept normalized, which acc_norm and acc_bytes cannot be told from.
    if reference is None and text.choices and stored.logprobs is not None and metric not in ("acc_norm", "acc_bytes"):
        values = stored.logprobs.get(number, ())
        if len(values) == len(text.choices):
            reference = text.choices[max(range(len(values)), key=values.__getitem__)]
    return Flip(
        document=number,
        lost=lost,
        prompt=text.prompt,
        expected=text.expected,
        answer=text.answer,
        reference_answer=reference,
    )
