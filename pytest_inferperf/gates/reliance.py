"""What a gate can be relied on to catch, and how large a regression must be for it to have no excuse.

Everything follows from sizes and spreads, nothing from the judge: a judge that is wrong must not choose its own examination.
Accuracy speaks of shares (0.01 is a point, or one percent of the reference), performance of relative losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pytest_inferperf.baselines.entries import LEAST_BASELINE_SESSIONS
from pytest_inferperf.gates.looks import ALPHA, BLOCKS, QUESTIONS, SESSIONS
from pytest_inferperf.gates.paired import FREE_ZONE_SHARE as FREE_ZONE_OF_ACCURACY
from pytest_inferperf.gates.power import (
    block_power,
    detectable_loss,
    questions_to_detect,
    session_power,
    t_quantile,
    z_quantile,
)
from pytest_inferperf.gates.sessions import FREE_ZONE_SHARE as FREE_ZONE_OF_PERFORMANCE
from pytest_inferperf.gates.sessions import RESOLUTION, Block

__all__ = [
    "POWER",
    "Reliance",
    "certain_factor",
    "certain_factor_of_blocks",
    "certain_share",
    "rely_on_blocks",
    "rely_on_questions",
    "rely_on_sessions",
    "spread_of_blocks",
    "spread_of_sessions",
    "times_as_good",
]

POWER = 0.9
"""A loss that a gate fails with this probability is one it can be relied on to detect."""

CERTAIN = 3.0
"""Standard deviations beyond what would do, for an injection that must not depend on luck."""

LEAST_MARGIN = 1.15
"""The least factor beyond a limit of performance: figures of two runs of one engine may differ by some percent."""

MOST_SESSIONS = 100


@dataclass(frozen=True, kw_only=True)
class Reliance:
    """The smallest loss that a gate can be relied on to detect, beside the one that it promises to catch."""

    own: float
    """Its tolerance, as a share."""

    least: float | None
    """The smallest loss that it fails with a probability of 0.9, as a share; None where nothing is known of the spread.

    Never below the tolerance: what is smaller may pass, and should where the data are good enough to tell.
    """

    more: int | None
    """How many more would let it detect its own tolerance; 0 where it does, None where no number would."""

    counted: str
    """What there would be more of: `question`, `stored session`, `block` (of which no more are ever measured)."""

    @property
    def detects_its_own(self) -> bool:
        """Whether a loss as large as the tolerance fails nine times of ten."""
        return self.least is not None and self.least <= self.own


def spread_of_sessions(sessions: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of log session means; None below five stored sessions, which say too little about it."""
    if len(sessions) < LEAST_BASELINE_SESSIONS:
        return None
    return max(stdev(fmean(map(math.log, rounds)) for rounds in sessions), RESOLUTION)


def rely_on_sessions(
    sessions: Sequence[Sequence[float]], *, tolerance: float, higher_is_better: bool, alpha: float = ALPHA
) -> Reliance:
    """Say what a performance gate detects against stored sessions, each its rounds, at the last look."""
    sd, looks = spread_of_sessions(sessions), SESSIONS.at(alpha)
    if sd is None:
        return Reliance(
            own=tolerance, least=None, more=LEAST_BASELINE_SESSIONS - len(sessions), counted="stored session"
        )

    def power(loss: float, stored: int) -> float:
        return session_power(
            sd=sd,
            baseline_sessions=stored,
            candidate_sessions=looks.cap,
            loss=loss,
            free_zone=FREE_ZONE_OF_PERFORMANCE * tolerance,
            level=looks.levels[-1],
            higher_is_better=higher_is_better,
        )

    least = _least_loss(lambda loss: power(loss, len(sessions)), higher_is_better)
    enough = next((count for count in range(len(sessions), MOST_SESSIONS) if power(tolerance, count) >= POWER), None)
    return Reliance(
        own=tolerance,
        least=max(tolerance, least),
        more=None if enough is None else enough - len(sessions),
        counted="stored session",
    )


def _least_loss(power: Callable[[float], float], higher_is_better: bool) -> float:
    # Nothing can lose more than all of it; a latency can grow without end.
    low, high = 0.0, 1.0 - 1e-9 if higher_is_better else 1e3
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def spread_of_blocks(blocks: Sequence[Block]) -> float:
    """Standard deviation of the blocks' differences of log means. Raises `StatisticsError` below two blocks."""
    return max(stdev(_differences(blocks)), RESOLUTION)


def times_as_good(blocks: Sequence[Block], *, higher_is_better: bool) -> float:
    """Return how many times as good as its reference a candidate is: the geometric mean over blocks."""
    mean = fmean(_differences(blocks))
    return math.exp(mean if higher_is_better else -mean)


def _differences(blocks: Sequence[Block]) -> list[float]:
    return [fmean(map(math.log, item.candidate)) - fmean(map(math.log, item.reference)) for item in blocks]


def rely_on_blocks(
    blocks: Sequence[Block], *, tolerance: float, higher_is_better: bool, alpha: float = ALPHA
) -> Reliance:
    """Say what a speedup gate detects at its last look, by how much the measured blocks differ. Raises as there."""
    sd, looks = spread_of_blocks(blocks), BLOCKS.at(alpha)

    def power(loss: float) -> float:
        return block_power(
            sd=sd,
            blocks=looks.cap,
            loss=loss,
            free_zone=FREE_ZONE_OF_PERFORMANCE * tolerance,
            level=looks.levels[-1],
            higher_is_better=higher_is_better,
        )

    least = _least_loss(power, higher_is_better)
    return Reliance(own=tolerance, least=max(tolerance, least), more=0 if least <= tolerance else None, counted="block")


def rely_on_questions(
    questions: int, *, spread: float, tolerance: float, binary: bool, level: float = QUESTIONS.levels[-1]
) -> Reliance:
    """Say what an accuracy gate detects with so many questions, where the answers as they are differ by `spread`.

    `level` is that of the gate's last look: of all questions.
    A loss adds to the spread: of right and wrong answers (`binary`) itself, since every lost one flips; of another score,
    which all questions lose alike, its square.
    """

    def whole(loss: float) -> float:
        return spread + (loss if binary else loss * loss)

    zone = FREE_ZONE_OF_ACCURACY * tolerance
    least = tolerance
    for _ in range(50):
        least = zone + detectable_loss(questions, spread=whole(least), power=POWER, alpha=level)
    gap = tolerance - zone
    needed = questions_to_detect(loss=gap, spread=max(whole(tolerance), gap * gap), power=POWER, alpha=level)
    return Reliance(own=tolerance, least=max(tolerance, least), more=max(0, needed - questions), counted="question")


def certain_share(
    loss: float, *, questions: int, answered: int, spread: float, tested: bool, alpha: float = ALPHA
) -> float:
    """Return the share of questions to lose so that a loss of at least `loss` is seen, whatever the luck.

    `questions` are all that may be asked. `loss` and `spread`, the mean square of a question's part in it, are known from
    `answered` of them: had the others been asked, the loss would be another one. `tested` adds the half width of the
    confidence bound; without it the plain share of all questions is compared with a limit.
    """
    unknown = CERTAIN * math.sqrt(spread * (1 / answered - 1 / questions))
    deviations = CERTAIN + (z_quantile(QUESTIONS.at(alpha).levels[0]) if tested else 0.0)
    share = loss
    for _ in range(50):
        share = min(1.0, loss + unknown + deviations * math.sqrt((spread * tested + share) / questions))
    return share


def certain_factor(
    measured: float,
    limit: float,
    *,
    rounds: Sequence[float],
    sessions: Sequence[Sequence[float]] = (),
    alpha: float = ALPHA,
) -> float:
    """Return by what a figure must get worse to be beyond its limit by the last look, whatever the luck.

    The distance to the limit, times what the bound needs against stored sessions, or where those have none, what the
    rounds of the clean run (`rounds`) differ among themselves.
    """
    sd, looks = spread_of_sessions(sessions), SESSIONS.at(alpha)
    if sd is None:
        return _beyond(measured, limit, math.log(max(rounds) / min(rounds)) if rounds else 0.0)
    width = t_quantile(looks.levels[-1], len(sessions) + looks.cap - 2) + CERTAIN
    return _beyond(measured, limit, width * sd * math.sqrt(1 / looks.cap + 1 / len(sessions)))


def certain_factor_of_blocks(measured: float, limit: float, *, blocks: Sequence[Block], alpha: float = ALPHA) -> float:
    """Return the same for a ratio of two engines, by how much the blocks of the clean run differ.

    Raises `StatisticsError` below two blocks.
    """
    looks = BLOCKS.at(alpha)
    width = t_quantile(looks.levels[-1], looks.cap - 1) + CERTAIN
    return _beyond(measured, limit, width * spread_of_blocks(blocks) / math.sqrt(looks.cap))


def _beyond(measured: float, limit: float, margin: float) -> float:
    return math.exp(abs(math.log(measured / limit)) + max(math.log(LEAST_MARGIN), margin))
