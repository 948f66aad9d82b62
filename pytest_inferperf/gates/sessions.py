"""Performance between sessions: bounds on the relative loss, and the verdict of the looks so far.

The unit is the session (one launch of the engine) or, where two engines can be held at once, the block A B B A; never
the round, because rounds of one session are not independent. With y the mean over a session's rounds of log(metric):

- Stored: sp^2 = ((n0 - 1) s0^2 + (n1 - 1) s1^2) / (n0 + n1 - 2), se = sp sqrt(1/n0 + 1/n1), bounds = difference of the
  means of y +- t(1 - a_k, n0 + n1 - 2) se. One candidate session gives the prediction interval s0 sqrt(1 + 1/n0).
- Interleaved: a block's difference is the mean log of its two B rounds minus that of its two A rounds; bounds = mean
  difference +- t(1 - a_k, K - 1) sd / sqrt(K).

The looks are walked in order and the first decision stands: what was measured after it changes nothing, so a rerun
cannot turn a verdict around. The same data always give the same verdict, live or replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pytest_inferperf.baselines.entries import LEAST_BASELINE_SESSIONS
from pytest_inferperf.gates.looks import (
    ALPHA,
    BLOCKS,
    SESSIONS,
    Decision,
    LookSchedule,
    Unresolvable,
    check_margins,
    decide,
    single_look,
)
from pytest_inferperf.gates.power import (
    blocks_to_decide,
    log_margin,
    relative_loss,
    sessions_to_decide,
    smallest_tolerance,
    t_quantile,
)

__all__ = [
    "FREE_ZONE_SHARE",
    "RESOLUTION",
    "Block",
    "SessionsVerdict",
    "block_differences",
    "doubt_gain",
    "judge_blocks",
    "judge_sessions",
    "log_means",
    "squares",
]

FREE_ZONE_SHARE = 0.2
"""Free zone of a performance gate as a share of its tolerance, where none is given."""

RESOLUTION = 1e-4
"""Smallest standard deviation of log session means that is believed: 0.01 %.

Equal figures (a rounded metric, a counter) show a spread of zero, which no measurement of time has. Without this floor
the interval would have no width, and any tolerance however small would seem resolved.
"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One A B B A block: rounds of the reference engine and of the candidate, measured side by side."""

    reference: tuple[float, ...]
    candidate: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SessionsVerdict:
    """What the sessions or blocks so far say about one metric. Losses are relative, positive is worse."""

    status: Decision
    loss: float
    """Estimate from what was used; NaN before the first look."""

    lower: float
    upper: float
    """One-sided confidence bounds, each at `level`. Infinite where there are none: uncalibrated, or before a look."""

    level: float | None
    """Nominal one-sided level of the look the verdict rests on; None where no look was reached."""

    used: int
    """Sessions or blocks the verdict rests on."""

    next_look: int | None
    """Sessions or blocks, in all, at the next look; None unless OPEN."""

    needed: int | None
    """Further sessions or blocks after which it can no longer be undecided, by the spread so far.

    0 once decided. None where no number of them is enough, or where the spread is not known yet.
    """

    sd: float
    """Standard deviation of log session means (pooled) or of block differences: 0.01 is about 1 %. NaN when unknown."""

    resolvable: float
    """Smallest relative tolerance that could be resolved at the last look; infinite when unknown."""

    uncalibrated: bool = False
    """True where fewer than 5 stored sessions left only the plain tolerance."""


def judge_sessions(
    baseline: Sequence[Sequence[float]],
    candidate: Sequence[Sequence[float]],
    *,
    higher_is_better: bool,
    tolerance: float,
    free_zone: float | None = None,
    alpha: float = ALPHA,
    looks: LookSchedule = SESSIONS,
) -> SessionsVerdict | Unresolvable:
    """Judge candidate sessions against stored ones: a sequence of sessions, each its rounds in the metric's unit.

    `tolerance` and `free_zone` (default: a fifth of it) are relative losses. With fewer than 5 stored sessions the loss
    of the median over sessions of the median over rounds is compared with the tolerance alone: `uncalibrated`. Sessions
    between two looks wait for the next; sessions after the last look are not judged.

    Returns `Unresolvable` for a tolerance of 0 or below, or below what the stored sessions can resolve.
    Raises `ValueError` for no session on either side, a session without rounds, a value that is not finite and above 0,
    or margins out of order.
    """
    before = log_means(baseline, "stored")
    after = log_means(candidate, "candidate")
    schedule = looks.at(alpha)
    n0 = len(before)
    spread = max(_sd(before), RESOLUTION) if n0 > 1 else math.nan
    smallest = smallest_tolerance(
        sd=spread,
        baseline_sessions=n0,
        higher_is_better=higher_is_better,
        candidate_sessions=schedule.cap,
        level=schedule.levels[-1],
    )
    calibrated = n0 >= LEAST_BASELINE_SESSIONS
    if tolerance <= 0 or (calibrated and tolerance < smallest):
        return _unresolvable(tolerance, smallest, f"{n0} stored {_plural('session', n0)}", spread)
    low, high = _margins(tolerance, free_zone, higher_is_better)
    if not calibrated:
        return _plain(baseline, candidate, higher_is_better, tolerance, spread, smallest)

    sign = 1.0 if higher_is_better else -1.0
    mean0 = math.fsum(before) / n0
    squares0 = squares(before)
    status, used, level, difference, width, sd = Decision.OPEN, 0, None, math.nan, math.inf, spread
    for n1, level_k in schedule.reached(len(after)):
        asked = after[:n1]
        degrees = n0 + n1 - 2
        sd = max(math.sqrt((squares0 + squares(asked)) / degrees), RESOLUTION)
        width = t_quantile(level_k, degrees) * sd * math.sqrt(1 / n0 + 1 / n1)
        difference = sign * (mean0 - math.fsum(asked) / n1)
        used, level = n1, level_k
        status = decide(lower=difference - width, upper=difference + width, free_zone=low, tolerance=high)
        if status is not Decision.OPEN:
            break
    total = None
    if status is Decision.OPEN:
        total = sessions_to_decide(sd=sd, baseline_sessions=n0, gap=high - low, level=schedule.levels[-1])
    return _verdict(status, used, level, difference, width, sd, smallest, total, len(after), schedule, higher_is_better)


def doubt_gain(
    baseline: Sequence[Sequence[float]], candidate: Sequence[Sequence[float]], higher_is_better: bool
) -> str:
    """Say why a better candidate must not replace stored sessions; "" where it may.

    Stored sessions that are enough to judge by are replaced only by as many as that, and only by a gain that one look
    at all of them proves: the upper bound of the loss, at the whole alpha, is below 0. Otherwise the baseline would
    follow every lucky run, and unchanged engines would then fail against it.
    """
    if len(baseline) < LEAST_BASELINE_SESSIONS:
        return ""
    count = len(candidate)
    if count < LEAST_BASELINE_SESSIONS:
        measured = f"{count} {_plural('session', count)}"
        return f"{measured} would replace {len(baseline)}; {LEAST_BASELINE_SESSIONS} or more are needed to judge by"
    found = judge_sessions(
        baseline,
        candidate,
        higher_is_better=higher_is_better,
        tolerance=1 - RESOLUTION,  # only the bounds are of interest here
        looks=single_look("sessions", count),
    )
    if isinstance(found, Unresolvable):
        return found.reason
    return "" if found.upper < 0 else f"the gain may be noise: loss at most {100 * found.upper:.2f} %"


def judge_blocks(
    blocks: Sequence[Block],
    *,
    higher_is_better: bool,
    tolerance: float,
    free_zone: float | None = None,
    ratio: float = 1.0,
    alpha: float = ALPHA,
    looks: LookSchedule = BLOCKS,
) -> SessionsVerdict | Unresolvable:
    """Judge interleaved A B B A blocks of two engines.

    The loss is relative to `ratio` times the reference: a candidate that has to be 1.5 times as good as the reference,
    and is 1.47 times as good, has lost 2 %. Where lower is better, "1.5 times as good" is the reference divided by 1.5.

    Returns `Unresolvable` for a tolerance of 0 or below. A positive tolerance is never refused, since the spread is
    known only afterwards: the verdict's `resolvable` says what the blocks so far could resolve at the last look.
    Raises `ValueError` for no blocks, a block without rounds on either side, a value or ratio that is not finite and
    above 0, or margins out of order.
    """
    differences = block_differences(blocks, higher_is_better=higher_is_better, ratio=ratio)
    schedule = looks.at(alpha)

    def resolvable(sd: float) -> float:
        if math.isnan(sd):
            return math.inf
        width = t_quantile(schedule.levels[-1], schedule.cap - 1) * sd / math.sqrt(schedule.cap)
        return relative_loss(width, higher_is_better=higher_is_better)

    def spread(values: list[float]) -> float:
        return max(_sd(values), RESOLUTION) if len(values) > 1 else math.nan

    if tolerance <= 0:
        sd = spread(differences)
        count = len(differences)
        return _unresolvable(tolerance, resolvable(sd), f"{count} {_plural('block', count)}", sd)
    low, high = _margins(tolerance, free_zone, higher_is_better)
    status, used, level, difference, width, sd = Decision.OPEN, 0, None, math.nan, math.inf, spread(differences)
    for count, level_k in schedule.reached(len(differences)):
        asked = differences[:count]
        sd = spread(asked)
        width = t_quantile(level_k, count - 1) * sd / math.sqrt(count)
        difference = math.fsum(asked) / count
        used, level = count, level_k
        status = decide(lower=difference - width, upper=difference + width, free_zone=low, tolerance=high)
        if status is not Decision.OPEN:
            break
    total = None
    if status is Decision.OPEN and not math.isnan(sd):
        total = blocks_to_decide(sd=sd, gap=high - low, level=schedule.levels[-1])
    return _verdict(
        status,
        used,
        level,
        difference,
        width,
        sd,
        resolvable(sd),
        total,
        len(differences),
        schedule,
        higher_is_better,
    )


def block_differences(blocks: Sequence[Block], *, higher_is_better: bool, ratio: float = 1.0) -> list[float]:
    """Return the loss of each block against `ratio` times the reference, in logs. Raises `ValueError` as `judge_blocks`."""
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"the ratio has to be above 0, not {ratio}")
    reference = log_means([block.reference for block in blocks], "reference")
    candidate = log_means([block.candidate for block in blocks], "candidate")
    sign = 1.0 if higher_is_better else -1.0
    return [math.log(ratio) + sign * (a - b) for a, b in zip(reference, candidate, strict=True)]


def _verdict(
    status: Decision,
    used: int,
    level: float | None,
    difference: float,
    width: float,
    sd: float,
    resolvable: float,
    total: int | None,
    measured: int,
    schedule: LookSchedule,
    higher_is_better: bool,
) -> SessionsVerdict:
    next_look = schedule.following(measured) if status is Decision.OPEN else None
    needed: int | None = 0
    if status is Decision.OPEN:
        # No decision falls between looks.
        needed = max(total, next_look or 0, measured + 1) - measured if total is not None else None
        if next_look is None:
            status = Decision.INCONCLUSIVE
    bounds = (difference - width, difference + width) if used else (-math.inf, math.inf)
    lower, upper = (
        relative_loss(bound, higher_is_better=higher_is_better) if math.isfinite(bound) else bound for bound in bounds
    )
    return SessionsVerdict(
        status=status,
        loss=relative_loss(difference, higher_is_better=higher_is_better) if used else math.nan,
        lower=lower,
        upper=upper,
        level=level,
        used=used,
        next_look=next_look,
        needed=needed,
        sd=sd,
        resolvable=resolvable,
    )


def _plain(
    baseline: Sequence[Sequence[float]],
    candidate: Sequence[Sequence[float]],
    higher_is_better: bool,
    tolerance: float,
    sd: float,
    smallest: float,
) -> SessionsVerdict:
    """Compare medians with the tolerance alone; nothing is known about false alarms."""
    old, new = (median(median(rounds) for rounds in side) for side in (baseline, candidate))
    loss = 1 - new / old if higher_is_better else new / old - 1
    return SessionsVerdict(
        # The limit itself is still allowed; the slack is for its rounding.
        status=Decision.PASS if loss <= tolerance + 1e-12 else Decision.FAIL,
        loss=loss,
        lower=-math.inf,
        upper=math.inf,
        level=None,
        used=len(candidate),
        next_look=None,
        needed=0,
        sd=sd,
        resolvable=smallest,
        uncalibrated=True,
    )


def _margins(tolerance: float, free_zone: float | None, higher_is_better: bool) -> tuple[float, float]:
    zone = FREE_ZONE_SHARE * tolerance if free_zone is None else free_zone
    check_margins(tolerance=tolerance, free_zone=zone)
    low, high = (log_margin(margin, higher_is_better=higher_is_better) for margin in (zone, tolerance))
    return low, high


def log_means(sessions: Sequence[Sequence[float]], whose: str) -> list[float]:
    """Return the mean of the logs of each session's rounds. Raises `ValueError` for a figure that has none."""
    if not sessions:
        raise ValueError(f"there is no {whose} session")
    means = []
    for number, rounds in enumerate(sessions, start=1):
        if not rounds:
            raise ValueError(f"{whose} session {number} has no rounds")
        for value in rounds:
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{whose} session {number} measured {value}: a figure has to be finite and above 0")
        means.append(math.fsum(map(math.log, rounds)) / len(rounds))
    return means


def squares(values: Sequence[float]) -> float:
    """Return the sum of squares about the mean."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values)


def _sd(values: Sequence[float]) -> float:
    return math.sqrt(squares(values) / (len(values) - 1))


def _unresolvable(tolerance: float, smallest: float, what: str, sd: float) -> Unresolvable:
    if math.isfinite(smallest):
        # Rounded up, so that the tolerance named here is accepted; an absurd one is not worth rounding.
        percent = math.ceil(1e5 * smallest) / 1e3 if smallest < 1e6 else 100 * smallest
        possible = f"the smallest is {percent:g} %"
    else:
        possible = "one alone says nothing about its spread"
    noise = f" that vary by {100 * sd:.2g} %" if not math.isnan(sd) else ""
    return Unresolvable(
        tolerance=tolerance,
        smallest=smallest,
        reason=f"a tolerance of {100 * tolerance:g} % cannot be resolved by {what}{noise}: {possible}",
    )


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
