"""Drift: what changed against the same engine's own baseline. A tripwire that warns; the ceiling alone decides.

Flips and divergence measure how much the answers changed, not whether they got worse, so nothing is gated on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_inferperf.baselines.entries import ScoreEntry
from pytest_inferperf.model.results import Repeat

__all__ = ["FLIPS_LEVEL", "KL_LIMIT", "Drift", "drift_against", "kl_divergence", "more_flips_p"]

FLIPS_LEVEL = 0.01
"""More flips than those of the engine asked twice count as drift when chance explains them with less than this."""

KL_LIMIT = 0.001
"""Mean divergence, nats, above which probabilities count as moved: by Pinsker's inequality, below it no choice's
probability moves by more than sqrt(KL/2) = 2.2 points on average. The embedded suite's model, asked about its facts in
other batches, measured below 1e-13, FP8 against BF16 0.0003, NVFP4 against BF16 0.004."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The candidate against its own baseline."""

    lost: int
    gained: int
    questions: int
    loss: float
    """Mean loss over the questions, in the score's unit; positive is worse."""

    kl: float | None
    """Mean KL divergence of the choices, nats; None where no probabilities are stored."""

    causes: tuple[str, ...]
    """What trips the wire; empty when nothing does."""


def drift_against(
    own: ScoreEntry,
    *,
    order: Sequence[int],
    outcomes: Sequence[float],
    logprobs: Mapping[int, Sequence[float]] | None,
    higher_is_better: bool,
) -> Drift:
    """Compare the answers to the first documents of `order` with those of the engine's own baseline.

    `outcomes` are rounded like stored ones.
    """
    sign = 1 if higher_is_better else -1
    worse = [sign * (own.outcomes[document] - new) for document, new in zip(order, outcomes, strict=False)]
    lost, gained = sum(value > 0 for value in worse), sum(value < 0 for value in worse)
    kl = kl_divergence(own.logprobs, logprobs) if own.logprobs and logprobs else None
    causes = []
    if own.repeat is not None and more_flips_p(lost + gained, len(worse), own.repeat) < FLIPS_LEVEL:
        causes.append(f"{lost + gained} flips are more than the engine's own noise")
    if kl is not None and kl > KL_LIMIT:
        causes.append(f"KL is above {KL_LIMIT}")
    return Drift(
        lost=lost,
        gained=gained,
        questions=len(worse),
        loss=math.fsum(worse) / len(worse),
        kl=kl,
        causes=tuple(causes),
    )


def kl_divergence(reference: Mapping[int, Sequence[float]], candidate: Mapping[int, Sequence[float]]) -> float | None:
    """Return the mean over the documents of both of KL(reference || candidate) of the choices, nats.

    Takes log-probabilities, which need not be normalized. None where no document is in both with as many choices.
    """
    found = []
    for document, old in reference.items():
        new = candidate.get(document, ())
        if len(new) == len(old):
            p, q = _normalized(old), _normalized(new)
            found.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
    # Rounding can leave a mean a hair below 0.
    return max(0.0, math.fsum(found) / len(found)) if found else None


def _normalized(values: Sequence[float]) -> list[float]:
    top = max(values)
    total = top + math.log(math.fsum(math.exp(value - top) for value in values))
    return [value - total for value in values]


def more_flips_p(flips: int, questions: int, repeat: Repeat) -> float:
    """One-sided Fisher exact p of so many flips among the questions, given the flips of the engine asked twice.

    P(X >= flips) with X hypergeometric: of all flips, those that fall to `questions` of both sets of questions.
    """
    both, total = flips + repeat.flips, questions + repeat.questions

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    whole = log_choose(total, both)
    terms = (
        math.exp(log_choose(questions, count) + log_choose(repeat.questions, both - count) - whole)
        for count in range(max(flips, both - repeat.questions), min(both, questions) + 1)
    )
    return min(1.0, math.fsum(terms))
