"""The texts of a document, as a person reads them who asks why it flipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_inferperf.evaluate.interim import Document, Documents, Sample
from pytest_inferperf.evaluate.tasks import FoundTask
from pytest_inferperf.model.results import Answered

__all__ = ["MOST_ANSWER", "MOST_PROMPT", "texts_of"]

MOST_PROMPT = 2000
"""Characters of a prompt that are kept. Most of them from its end: examples come before the question."""

MOST_ANSWER = 1000
"""Characters that are kept of an answer, of what was expected, and of each choice."""


_SIZES: Mapping[str, Callable[[str], int]] = {"acc_norm": len, "acc_bytes": lambda text: len(text.encode())}
"""What lm-eval divides the log-probability of a choice by, for the metrics that do not take the most probable."""


def texts_of(
    found: FoundTask, documents: Documents, answered: Mapping[int, Sample], *, metric: str
) -> dict[int, Answered]:
    """Return the texts of every document asked; none for documents that are scored whole, which have no answer."""
    texts = {}
    for number, sample in answered.items():
        document = documents.rows[number]
        one = _texts(found.tasks[document.task].OUTPUT_TYPE, document, sample, metric)
        if one is not None:
            texts[number] = one
    return texts


def _texts(kind: str, document: Document, sample: Sample, metric: str = "") -> Answered | None:
    requests, target, responses = document.arguments, document.target, sample["resps"]
    prompt = _cut(str(requests[0][0]), MOST_PROMPT, before=4)
    if kind == "generate_until":
        expected = ", ".join(map(str, target)) if isinstance(target, list | tuple) else str(target)
        return Answered(prompt=prompt, expected=_short(expected), answer=_short(str(responses[0][0])))
    if kind == "multiple_choice":
        choices, likely = _choice(requests, responses, size=_SIZES.get(metric, lambda _: 1))
        right = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else _short(str(target))
        return Answered(prompt=prompt, expected=right, answer=choices[likely], choices=choices)
    if kind == "loglikelihood":
        continuation = _short(str(requests[0][1]).strip())
        greedy = responses[0][0][1]
        return Answered(prompt=prompt, expected=continuation, answer=continuation if greedy else "(another one)")
    return None


def _choice(
    requests: Sequence[tuple[Any, ...]], responses: Sequence[Any], *, size: Callable[[str], int]
) -> tuple[tuple[str, ...], int]:
    """Return what there was to choose from, and the place of the one that counts as the answer."""
    if len({arguments[1] for arguments in requests}) == 1:
        # The choice stands in the context (WinoGrande).
        asked, texts = requests, [arguments[0] for arguments in requests]
    else:
        # Others than the first context ask how probable a choice is by itself.
        asked = [arguments for arguments in requests if arguments[0] == requests[0][0]]
        texts = [arguments[1] for arguments in asked]
    likely = max(range(len(asked)), key=lambda place: responses[place][0][0] / (size(str(texts[place]).strip()) or 1))
    return tuple(_short(str(text).strip()) for text in texts), likely


def _short(text: str) -> str:
    return _cut(text, MOST_ANSWER, before=2)


def _cut(text: str, most: int, *, before: int) -> str:
    """Leave out the middle of a long text: of what is kept, one part in `before` is its beginning."""
    if len(text) <= most:
        return text
    gap = " […] "
    head = (most - len(gap)) // before
    return text[:head] + gap + text[-(most - len(gap) - head) :]
