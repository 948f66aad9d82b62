"""Planner: how many questions or sessions a gate needs, and what the ones at hand can resolve.

Accuracy speaks of shares (0.01 is a point); `spread` is the mean square of the per-question difference, which for
0/1 outcomes is the share of questions that flip. Performance speaks of standard deviations of log session means.
All errors are one-sided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from pytest_inferperf.gates.looks import ALPHA, QUESTIONS, SESSIONS

__all__ = [
    "baseline_sessions_to_decide",
    "block_power",
    "blocks_to_decide",
    "detectable_loss",
    "log_margin",
    "questions_to_decide",
    "questions_to_detect",
    "questions_to_prove",
    "questions_unpaired",
    "relative_loss",
    "session_power",
    "sessions_for_power",
    "sessions_to_decide",
    "smallest_tolerance",
    "smallest_tolerance_of_questions",
    "t_quantile",
    "z_quantile",
]

MOST_SESSIONS = 1000
"""Where a search for a number of sessions gives up: no further session would decide it."""


@lru_cache(maxsize=4096)
def t_quantile(level: float, degrees: int) -> float:
    """Return t(1 - level, degrees). Raises `ValueError` below one degree of freedom."""
    from scipy.special import stdtrit

    if degrees < 1:
        raise ValueError(f"t needs at least one degree of freedom, not {degrees}")
    return float(stdtrit(degrees, 1 - level))


@lru_cache(maxsize=1024)
def z_quantile(level: float) -> float:
    """Return the upper normal quantile z(1 - level). Raises `ValueError` for a level outside 0 to 1."""
    from scipy.special import ndtri

    if not 0 < level < 1:
        raise ValueError(f"a level is between 0 and 1, not {level}")
    return float(-ndtri(level))


def log_margin(margin: float, *, higher_is_better: bool) -> float:
    """Turn a relative loss into logs: -log(1 - m) where higher is better, log(1 + m) where lower is.

    Raises `ValueError` for a loss of 100 % or more of something that is better when higher.
    """
    if higher_is_better:
        if margin >= 1:
            raise ValueError(f"a loss of {margin:.0%} leaves nothing of a metric that is better when higher")
        return -math.log1p(-margin)
    return math.log1p(margin)


def relative_loss(difference: float, *, higher_is_better: bool) -> float:
    """Turn a loss in logs into a relative loss; the inverse of `log_margin`."""
    # Beyond e^700 a float overflows; such a bound says nothing anyway.
    capped = max(-700.0, min(700.0, difference))
    return -math.expm1(-capped) if higher_is_better else math.expm1(capped)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} has to be above 0, not {value}")


def questions_to_prove(*, margin: float, spread: float, power: float = 0.9, alpha: float = ALPHA) -> int:
    """Questions to prove a loss below `margin` when there is none: (z_a + z_b)^2 d / m^2.

    Raises `ValueError` for a margin or spread that is not above 0.
    """
    _positive(margin=margin, spread=spread)
    return math.ceil((z_quantile(alpha) + z_quantile(1 - power)) ** 2 * spread / margin**2)


def questions_to_detect(*, loss: float, spread: float, power: float = 0.9, alpha: float = ALPHA) -> int:
    """Questions for McNemar's test to see a true `loss`: (z_a sqrt(d) + z_b sqrt(d - L^2))^2 / L^2.

    Raises `ValueError` for a loss that is not above 0, or one that so few differences cannot make (L^2 > d).
    """
    _positive(loss=loss, spread=spread)
    if loss * loss > spread:
        raise ValueError(f"a loss of {loss} needs a spread of at least its square, not {spread}")
    root = z_quantile(alpha) * math.sqrt(spread) + z_quantile(1 - power) * math.sqrt(spread - loss * loss)
    return math.ceil(root**2 / loss**2)


def questions_unpaired(*, margin: float, accuracy: float, power: float = 0.9, alpha: float = ALPHA) -> int:
    """Questions per side if answers were not paired, for comparison: (z_a + z_b)^2 2p(1 - p) / m^2."""
    return questions_to_prove(margin=margin, spread=2 * accuracy * (1 - accuracy), power=power, alpha=alpha)


def questions_to_decide(
    *, spread: float, tolerance: float, free_zone: float, level: float = QUESTIONS.levels[-1]
) -> int:
    """Questions after which the verdict cannot be INCONCLUSIVE: 4 z^2 d / (m1 - m0)^2, at the last look's level."""
    _positive(gap=tolerance - free_zone)
    return math.ceil(4 * z_quantile(level) ** 2 * spread / (tolerance - free_zone) ** 2)


def detectable_loss(questions: int, *, spread: float, power: float = 0.8, alpha: float = ALPHA) -> float:
    """Smallest loss that McNemar's test sees among that many questions: `questions_to_detect` solved for the loss.

    L^2 N = (z_a sqrt(d) + z_b sqrt(d - L^2))^2; capped at sqrt(d), beyond which d would have to be larger.
    Raises `ValueError` for no questions.
    """
    _positive(questions=questions, spread=spread)
    z_a, z_b, root = z_quantile(alpha), z_quantile(1 - power), math.sqrt(spread)
    loss = 0.0
    # The right side falls slowly with L: a fixed point from above, a factor ~ z_b / sqrt(N) per step.
    for _ in range(50):
        rest = math.sqrt(max(0.0, spread - loss * loss))
        loss, before = min(root, (z_a * root + z_b * rest) / math.sqrt(questions)), loss
        if abs(loss - before) < 1e-12:
            break
    return loss


def smallest_tolerance_of_questions(
    questions: int, *, spread: float = 0.0, level: float = QUESTIONS.levels[-1]
) -> float:
    """Smallest tolerance that so many questions can resolve, as a share.

    z sqrt(d / N), the half width of the bound at no loss; but never below 1 - level^(1/N), the exact bound when no
    question flips at all ("rule of three": about 3.6 / N at the last look). Below it even identical answers are no PASS.
    Raises `ValueError` for no questions.
    """
    _positive(questions=questions)
    floor = -math.expm1(math.log(level) / questions)
    return max(floor, z_quantile(level) * math.sqrt(spread / questions))


def _half_width(sd: float, baseline: int, candidate: int, level: float) -> float:
    return t_quantile(level, baseline + candidate - 2) * sd * math.sqrt(1 / baseline + 1 / candidate)


def smallest_tolerance(
    *,
    sd: float,
    baseline_sessions: int,
    higher_is_better: bool = True,
    candidate_sessions: int = SESSIONS.cap,
    level: float = SESSIONS.levels[-1],
) -> float:
    """Smallest relative tolerance that these stored sessions can resolve.

    The half width t(1 - a, n0 + n1 - 2) sd sqrt(1/n0 + 1/n1) at the last look: with a smaller tolerance, less than half
    of all *unchanged* engines would ever PASS. Infinite for one stored session.
    """
    if baseline_sessions < 2:
        return math.inf
    width = _half_width(sd, baseline_sessions, candidate_sessions, level)
    return relative_loss(width, higher_is_better=higher_is_better)


def sessions_to_decide(
    *, sd: float, baseline_sessions: int, gap: float, level: float = SESSIONS.levels[-1]
) -> int | None:
    """Candidate sessions, in all, after which 2 t se < gap: the verdict can no longer be INCONCLUSIVE.

    `gap` is tolerance minus free zone in logs. None where no number of candidate sessions is enough: the stored ones
    are too few.
    """
    return _least(lambda n1: 2 * _half_width(sd, baseline_sessions, n1, level) < gap, max(1, 3 - baseline_sessions))


def baseline_sessions_to_decide(
    *, sd: float, gap: float, candidate_sessions: int = SESSIONS.cap, level: float = SESSIONS.levels[-1]
) -> int | None:
    """Stored sessions with which the last look cannot be INCONCLUSIVE; None where no number is enough."""
    return _least(lambda n0: 2 * _half_width(sd, n0, candidate_sessions, level) < gap, 2)


def blocks_to_decide(*, sd: float, gap: float, level: float) -> int | None:
    """Interleaved blocks after which 2 t sd / sqrt(K) < gap, K - 1 degrees of freedom; None beyond 1,000."""
    return _least(lambda k: 2 * t_quantile(level, k - 1) * sd / math.sqrt(k) < gap, 2)


def session_power(
    *,
    sd: float,
    baseline_sessions: int,
    candidate_sessions: int,
    loss: float,
    free_zone: float,
    level: float = SESSIONS.levels[-1],
    higher_is_better: bool = True,
) -> float:
    """Probability that the lower bound of a true relative `loss` is above the free zone at one look: noncentral t.

    The looks before it add to it, so a sequence of looks finds at least as much.
    """
    from scipy.special import nctdtr

    degrees = baseline_sessions + candidate_sessions - 2
    se = sd * math.sqrt(1 / baseline_sessions + 1 / candidate_sessions)
    distance = log_margin(loss, higher_is_better=higher_is_better) - log_margin(
        free_zone, higher_is_better=higher_is_better
    )
    return 1 - float(nctdtr(degrees, distance / se, t_quantile(level, degrees)))


def block_power(
    *, sd: float, blocks: int, loss: float, free_zone: float, level: float, higher_is_better: bool = True
) -> float:
    """Probability that the lower bound of a true relative `loss` is above the free zone after so many blocks."""
    from scipy.special import nctdtr

    distance = log_margin(loss, higher_is_better=higher_is_better) - log_margin(
        free_zone, higher_is_better=higher_is_better
    )
    return 1 - float(nctdtr(blocks - 1, distance / (sd / math.sqrt(blocks)), t_quantile(level, blocks - 1)))


def sessions_for_power(
    *,
    sd: float,
    baseline_sessions: int,
    loss: float,
    free_zone: float,
    power: float = 0.9,
    level: float = SESSIONS.levels[-1],
    higher_is_better: bool = True,
) -> int | None:
    """Candidate sessions with which one look finds a true relative `loss` with that power; None where none do."""
    return _least(
        lambda n1: (
            session_power(
                sd=sd,
                baseline_sessions=baseline_sessions,
                candidate_sessions=n1,
                loss=loss,
                free_zone=free_zone,
                level=level,
                higher_is_better=higher_is_better,
            )
            >= power
        ),
        max(1, 3 - baseline_sessions),
    )


def _least(enough: Callable[[int], bool], start: int) -> int | None:
    """Return the least count from `start` that is enough; more is never worse. None above `MOST_SESSIONS`."""
    if enough(start):
        return start
    low, high = start, 2 * start
    while not enough(high):
        if high >= MOST_SESSIONS:
            return None
        low, high = high, min(2 * high, MOST_SESSIONS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
