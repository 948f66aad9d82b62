"""The order in which documents are asked, and the answers of a result in that order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_inferperf.gates.looks import QUESTIONS
from pytest_inferperf.gates.paired import look_sizes, question_order
from pytest_inferperf.model.results import AccuracyResult

__all__ = ["Answers", "answers_of", "asking_looks", "asking_order"]

_SEED = 0
"""The same for every run: with another seed, a run that stopped would have been asked other questions."""


def asking_order(count: int, groups: Sequence[int] | None) -> tuple[int, ...]:
    """Return the order to ask `count` documents in; groups stay together. Raises `ValueError` for no documents."""
    return question_order(count, seed=_SEED, groups=groups)


def asking_looks(count: int) -> tuple[int, ...]:
    """Return the numbers of answers at which an evaluation of `count` documents is judged."""
    return tuple(size for size, _ in look_sizes(count))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a result says, in the order of asking."""

    order: tuple[int, ...]
    """All documents of the task."""

    outcomes: tuple[float, ...]
    """Of the documents asked: the first of `order`."""

    unparseable: tuple[bool, ...] | None
    groups: tuple[int, ...] | None
    """Of all documents."""

    def looks(self, alpha: float) -> Iterator[tuple[int, float]]:
        """Yield (questions, level) of each look that the answers reach."""
        for size, level in look_sizes(len(self.order), QUESTIONS.at(alpha)):
            if size <= len(self.outcomes):
                yield size, level

    def next_look(self) -> int | None:
        """Return the number of answers at the first look they do not reach; None after the last."""
        return next((size for size in asking_looks(len(self.order)) if size > len(self.outcomes)), None)


def answers_of(result: AccuracyResult) -> Answers | str:
    """Bring the answers into the order of asking, or say why the result cannot be judged.

    Whoever chooses which documents are answered chooses the verdict, so the documents of a result that stopped early
    have to be the first of the order.
    """
    asked = [number for number, was in enumerate(result.asked or ()) if was]
    if result.asked is not None and len(asked) != len(result.outcomes):
        return f"{len(result.outcomes)} outcomes belong to {len(asked)} documents that were asked"
    if result.groups is not None and len(result.groups) != result.planned:
        return f"{len(result.groups)} groups belong to {result.planned} documents"
    if not result.planned:
        return "no document was asked"
    order = asking_order(result.planned, result.groups)
    place = {document: position for position, document in enumerate(asked)} if result.is_partial else None
    first = order[: len(result.outcomes)]
    if place is not None and any(document not in place for document in first):
        return (
            f"the {len(asked)} of {result.planned} documents asked are not the first in the order of asking; "
            "evaluate the task again"
        )
    places = first if place is None else tuple(place[document] for document in first)
    flags = result.unparseable
    return Answers(
        order=order,
        outcomes=tuple(result.outcomes[position] for position in places),
        unparseable=None if flags is None else tuple(flags[position] for position in places),
        groups=None if result.groups is None else tuple(result.groups[document] for document in order),
    )
