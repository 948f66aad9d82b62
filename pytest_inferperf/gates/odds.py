"""Odds: how often a sequential verdict is FAIL or PASS, by simulation of its looks under a normal model.

Formulas for one look (`power.session_power`) do not know that PASS is asked first, and at every look: of losses below the
tolerance most pass before they are found. These odds do. They are those of `judge_sessions`, `judge_blocks` and `judge_paired` within the
error of the simulation, about half a percent, and always the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from pytest_inferperf.gates import paired, sessions
from pytest_inferperf.gates.looks import ALPHA, BLOCKS, QUESTIONS, SESSIONS, LookSchedule, check_margins
from pytest_inferperf.gates.power import log_margin, smallest_tolerance_of_questions, t_quantile, z_quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["Odds", "block_odds", "floor_odds", "least", "question_odds", "session_odds"]

PATHS = 4000


@dataclass(frozen=True, kw_only=True)
class Odds:
    """What becomes of runs whose true loss is known."""

    fails: float
    """Share of FAIL."""

    passes: float
    """Share of PASS; the rest is INCONCLUSIVE."""

    used: float
    """Mean sessions, blocks or questions until the verdict."""


def session_odds(
    *,
    sd: float,
    baseline_sessions: int,
    loss: float,
    tolerance: float,
    alpha: float = ALPHA,
    higher_is_better: bool = True,
) -> Odds:
    """Return the odds of `judge_sessions` at a true relative `loss`, `sd` being that of log session means.

    Raises `ValueError` for a tolerance that is not above 0.
    """
    zone = sessions.FREE_ZONE_SHARE * tolerance
    check_margins(tolerance=tolerance, free_zone=zone)
    low, high, true = (log_margin(item, higher_is_better=higher_is_better) for item in (zone, tolerance, loss))
    differences, widths = _session_looks(baseline_sessions, alpha)
    return _walk([true + sd * item for item in differences], [sd * item for item in widths], SESSIONS.looks, low, high)


@lru_cache(maxsize=64)
def _session_looks(baseline: int, alpha: float) -> tuple[list[Array], list[Array]]:
    """Return the differences and half widths of each look, for no loss and a standard deviation of 1."""
    import numpy as np

    generator = np.random.default_rng(baseline)
    mean0 = generator.standard_normal(PATHS) / math.sqrt(baseline)
    squares0 = generator.chisquare(baseline - 1, PATHS)
    new = generator.standard_normal((PATHS, SESSIONS.cap))
    schedule = SESSIONS.at(alpha)
    differences, widths = [], []
    for count, level in zip(schedule.looks, schedule.levels, strict=True):
        asked = new[:, :count]
        mean = asked.mean(axis=1)
        degrees = baseline + count - 2
        pooled = np.sqrt((squares0 + ((asked - mean[:, None]) ** 2).sum(axis=1)) / degrees)
        differences.append(mean - mean0)
        widths.append(t_quantile(level, degrees) * pooled * math.sqrt(1 / baseline + 1 / count))
    return differences, widths


def block_odds(
    *, sd: float, loss: float, tolerance: float, alpha: float = ALPHA, higher_is_better: bool = True
) -> Odds:
    """Return the odds of `judge_blocks` at a true relative `loss`, `sd` being that of block differences in logs.

    Raises `ValueError` for a tolerance that is not above 0.
    """
    zone = sessions.FREE_ZONE_SHARE * tolerance
    check_margins(tolerance=tolerance, free_zone=zone)
    low, high, true = (log_margin(item, higher_is_better=higher_is_better) for item in (zone, tolerance, loss))
    differences, widths = _block_looks(alpha)
    return _walk([true + sd * item for item in differences], [sd * item for item in widths], BLOCKS.looks, low, high)


@lru_cache(maxsize=8)
def _block_looks(alpha: float) -> tuple[list[Array], list[Array]]:
    """Return the differences and half widths of each look, for no loss and a standard deviation of 1."""
    import numpy as np

    drawn = np.random.default_rng(BLOCKS.cap).standard_normal((PATHS, BLOCKS.cap))
    schedule = BLOCKS.at(alpha)
    differences, widths = [], []
    for count, level in zip(schedule.looks, schedule.levels, strict=True):
        asked = drawn[:, :count]
        differences.append(asked.mean(axis=1))
        widths.append(t_quantile(level, count - 1) * asked.std(axis=1, ddof=1) / math.sqrt(count))
    return differences, widths


def question_odds(
    *,
    spread: float,
    questions: int,
    loss: float,
    tolerance: float,
    alpha: float = ALPHA,
    binary: bool = True,
    looks: LookSchedule = QUESTIONS,
) -> Odds:
    """Return the odds of `judge_paired` at a true `loss`, in the score's unit; `spread` as in `power`.

    Where outcomes are 0 and 1, a loss of 3 % of the questions takes 3 % flips at least, and a bound is never closer than
    without any flip. Raises `ValueError` for no questions, or a tolerance that is not above 0.
    """
    import numpy as np

    zone = paired.FREE_ZONE_SHARE * tolerance
    check_margins(tolerance=tolerance, free_zone=zone)
    variance = max(max(spread, loss) - loss * loss, 0.0) if binary else spread
    sizes = paired.look_sizes(questions, looks.at(alpha))
    draws = _steps(len(sizes))
    total, before = np.zeros(PATHS), 0
    differences, widths = [], []
    for step, (size, level) in enumerate(sizes):
        total = total + loss * (size - before) + math.sqrt(variance * (size - before)) * draws[:, step]
        before = size
        floor = smallest_tolerance_of_questions(size, level=level) if binary else 0.0
        differences.append(total / size)
        widths.append(np.full(PATHS, max(floor, z_quantile(level) * math.sqrt(variance / size))))
    return _walk(differences, widths, tuple(size for size, _ in sizes), zone, tolerance)


def floor_odds(*, score: float, questions: int, floor: float, alpha: float = ALPHA) -> Odds:
    """Return the odds of an absolute floor at a true `score`, a share of right answers; its last look leaves none open.

    Raises `ValueError` for no questions, or a score outside 0 to 1.
    """
    import numpy as np

    sizes = paired.look_sizes(questions, QUESTIONS.at(alpha))
    if not 0 <= score <= 1:
        raise ValueError(f"the score has to be from 0 to 1, not {score}")
    deviation = math.sqrt(score * (1 - score))
    draws = _steps(len(sizes))
    total, before = np.zeros(PATHS), 0
    differences, widths = [], []
    for step, (size, level) in enumerate(sizes):
        total = total + score * (size - before) + deviation * math.sqrt(size - before) * draws[:, step]
        before = size
        differences.append(floor - total / size)
        # All documents answered are compared as they are.
        widths.append(np.full(PATHS, 0.0 if size == questions else z_quantile(level) * deviation / math.sqrt(size)))
    return _walk(differences, widths, tuple(size for size, _ in sizes), 0.0, 0.0)


@lru_cache(maxsize=8)
def _steps(looks: int) -> Array:
    import numpy as np

    return np.random.default_rng(looks).standard_normal((PATHS, looks))


def _walk(differences: list[Array], widths: list[Array], counts: tuple[int, ...], low: float, high: float) -> Odds:
    """Walk the looks of every path: PASS if upper < high; else FAIL if lower > low; else look again."""
    import numpy as np

    still = np.ones(PATHS, dtype=bool)
    fails = passes = 0
    used = 0.0
    for difference, width, count in zip(differences, widths, counts, strict=True):
        passed = still & (difference + width < high)
        failed = still & ~passed & (difference - width > low)
        decided = passed | failed
        passes += int(passed.sum())
        fails += int(failed.sum())
        used += count * int(decided.sum())
        still &= ~decided
    used += counts[-1] * int(still.sum())
    return Odds(fails=fails / PATHS, passes=passes / PATHS, used=used / PATHS)


def least(enough: Callable[[float], bool], *, low: float, high: float) -> float | None:
    """Return the least value between `low` and `high` that is enough, within a percent; None where `high` is not.

    More is taken to be never worse.
    """
    if not enough(high):
        return None
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
