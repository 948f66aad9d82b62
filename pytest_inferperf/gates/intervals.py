"""How sure a change is: confidence intervals of what a baseline diff shows, and proof that one precision beats another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_inferperf.gates.looks import ALPHA
from pytest_inferperf.gates.power import t_quantile
from pytest_inferperf.gates.sessions import RESOLUTION

__all__ = ["CONFIDENCE", "accuracy_interval", "outdone", "performance_interval"]

CONFIDENCE = 0.95
"""Two-sided; half of the rest on either side."""

_TAIL = (1 - CONFIDENCE) / 2


def performance_interval(
    stored: Sequence[Sequence[float]], measured: Sequence[Sequence[float]]
) -> tuple[float, float] | None:
    """Return the bounds of the change in percent: t on log session means with a pooled standard deviation.

    None where three sessions in all are not reached: one on each side says nothing about their spread.
    """
    before, after = _log_means(stored), _log_means(measured)
    degrees = len(before) + len(after) - 2
    if not before or not after or degrees < 1:
        return None
    means = [math.fsum(side) / len(side) for side in (before, after)]
    squares = (
        math.fsum((value - mean) ** 2 for value in side) for side, mean in zip((before, after), means, strict=True)
    )
    sd = max(math.sqrt(math.fsum(squares) / degrees), RESOLUTION)
    width = t_quantile(_TAIL, degrees) * sd * math.sqrt(1 / len(before) + 1 / len(after))
    moved = means[1] - means[0]
    return 100 * math.expm1(moved - width), 100 * math.expm1(moved + width)


def accuracy_interval(stored: Sequence[float], measured: Sequence[float]) -> tuple[float, float] | None:
    """Return the bounds of the mean change of an outcome, question by question; None where they cannot be paired."""
    from pytest_inferperf.gates.paired import paired_bounds

    if not stored or len(stored) != len(measured):
        return None
    return paired_bounds([new - old for old, new in zip(stored, measured, strict=True)], _TAIL)


def outdone(finer: Sequence[float], coarser: Sequence[float], higher_is_better: bool) -> str:
    """Say by how much the answers of a finer precision are worse than those of a coarser one; "" where it may be noise."""
    from pytest_inferperf.gates.paired import paired_bounds

    if not finer or len(finer) != len(coarser):
        return ""
    sign = 1.0 if higher_is_better else -1.0
    losses = [sign * (theirs - ours) for ours, theirs in zip(finer, coarser, strict=True)]
    lower, _ = paired_bounds(losses, ALPHA)
    worse = sum(loss > 0 for loss in losses)
    better = sum(loss < 0 for loss in losses)
    return f"worse on {worse} questions and better on {better}, a loss of at least {lower:.3g}" if lower > 0 else ""


def _log_means(sessions: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(map(math.log, rounds)) / len(rounds) for rounds in sessions if rounds]
