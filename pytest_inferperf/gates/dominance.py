"""Whether a baseline's frontier is still on offer: bounds on how far each of its points has fallen.

A point is a pair of figures at one load. A stored point i is covered by a candidate point j up to the larger of the two
losses, and has fallen by what its best cover lacks:

    D_i = min over j of max(loss of x from i to j, loss of y from i to j)

Any measured candidate point may cover it, not the one of the same load alone: the frontier says which trade-offs are on
offer, by whatever load. Nothing between two points is assumed: what was not measured covers nothing.

With bounds of each loss as in `gates.sessions`, of the P points of a sweep, stored and measured again:

- Point i holds where one j has the upper bounds of both losses below the tolerance, each at the level of j: four fifths
  of alpha at the load of i itself, which nearly always covers it, and the last fifth shared among the others. If i has
  fallen, every j has a loss of at least the tolerance, so that the error is at most the sum of the levels.
- Point i has fallen where every j has the lower bound of a loss above the free zone, each at level alpha / (2 P). If no
  point has, each has a cover whose two losses are within the free zone, so that the error is at most 2 P times that.
- PASS where every point holds; else FAIL where one has fallen; else a further look. Each level is spent over the looks.

Both hold whatever the points have to do with each other: they share their launches. Points that another stored point
covers ask nothing that that one does not; P counts them all the same, because which they are is read from the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_inferperf.gates.looks import ALPHA, SESSIONS, Decision, LookSchedule
from pytest_inferperf.gates.power import log_margin, relative_loss, sessions_to_decide, t_quantile
from pytest_inferperf.gates.sessions import FREE_ZONE_SHARE, RESOLUTION, log_means, squares

__all__ = [
    "Dominance",
    "Levels",
    "Sessions",
    "Standing",
    "frontier_of",
    "judge_dominance",
    "levels_at",
    "standing_of_levels",
]

Sessions = Sequence[Sequence[float]]
"""One figure: rounds per session."""

Figures = tuple[Sessions, Sessions]
"""The sessions of the two figures of a point."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one stored point stands. Losses are relative, positive is worse."""

    point: int
    """Its index among the stored points."""

    cover: int
    """The index of the candidate point that covers it best."""

    loss: float
    lower: float
    upper: float
    holds: bool
    fell: bool


@dataclass(frozen=True, kw_only=True)
class Dominance:
    """What the sessions so far say about a frontier."""

    status: Decision
    standings: tuple[Standing, ...]
    """Of the stored points that no other stored point covers, in their order."""

    used: int
    next_look: int | None
    needed: int | None
    """Further sessions after which it can no longer be undecided, by the spread so far; None where none are enough."""

    sd: float
    """The largest standard deviation of log session means."""


@dataclass(frozen=True)
class _Difference:
    """The loss of one figure from a stored point to a candidate point, in logs."""

    mean: float
    sd: float
    error: float
    degrees: int


@dataclass(frozen=True)
class _Sample:
    """The log session means of one figure."""

    count: int
    mean: float
    squares: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Sample:
        return cls(len(values), math.fsum(values) / len(values), squares(values))


OWN_SHARE = 0.8
"""Share of the error of a PASS that is spent on the load of the point itself."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The looks of one gate, with the levels of each kind of bound."""

    own: LookSchedule
    """Upper bounds of the loss to the same load."""

    other: LookSchedule
    """Upper bounds of the loss to another load."""

    fall: LookSchedule
    """Lower bounds."""


def levels_at(alpha: float, *, points: int) -> Levels:
    """Share the error of one gate among what could go wrong, for so many points: at least 2."""
    return Levels(
        own=SESSIONS.at(OWN_SHARE * alpha),
        other=SESSIONS.at((1 - OWN_SHARE) * alpha / (points - 1)),
        fall=SESSIONS.at(alpha / (2 * points)),
    )


def frontier_of(points: Sequence[tuple[float, float]], directions: tuple[bool, bool]) -> list[int]:
    """Return the indices of the points that no other point covers; of equal ones, the first."""

    def covers(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return all(a >= b if higher else a <= b for a, b, higher in zip(one, other, directions, strict=True))

    return [
        index
        for index, point in enumerate(points)
        if not any(
            covers(other, point) and (other != point or place < index)
            for place, other in enumerate(points)
            if place != index
        )
    ]


def standing_of_levels(
    point: int, stored: tuple[float, float], candidates: Sequence[tuple[float, float]], directions: tuple[bool, bool]
) -> Standing:
    """Compare one level of a stored point with those of the candidate's, without bounds: `holds` and `fell` are False."""

    def loss(candidate: tuple[float, float]) -> float:
        return max(
            1 - new / old if higher else new / old - 1
            for old, new, higher in zip(stored, candidate, directions, strict=True)
        )

    cover = min(range(len(candidates)), key=lambda index: loss(candidates[index]))
    return Standing(
        point=point,
        cover=cover,
        loss=loss(candidates[cover]),
        lower=-math.inf,
        upper=math.inf,
        holds=False,
        fell=False,
    )


def judge_dominance(
    stored: Sequence[Figures],
    candidates: Sequence[Figures],
    *,
    frontier: Sequence[int],
    directions: tuple[bool, bool],
    tolerances: Sequence[float],
    alpha: float = ALPHA,
) -> Dominance:
    """Judge the points `frontier` of the stored ones, each with its tolerance, against all candidate points.

    `candidates` are of the same loads as `stored`, in the same order. `directions` say of each figure whether higher is
    better. Every point has the same number of candidate sessions, and at least two stored ones. Raises `ValueError` as
    `judge_sessions` does for figures that cannot be compared, and for less than two points.
    """
    if len(stored) != len(candidates) or len(stored) < 2:
        raise ValueError(f"a frontier of {len(stored)} points cannot be judged by {len(candidates)}")
    levels = levels_at(alpha, points=len(stored))
    before = [[_Sample.of(log_means(item, "stored")) for item in point] for point in stored]
    after = [[log_means(item, "candidate") for item in point] for point in candidates]
    count = len(after[0][0])
    status, used, sd = Decision.OPEN, 0, RESOLUTION
    standings: tuple[Standing, ...] = ()
    for number, (look, fall) in enumerate(levels.fall.reached(count)):
        used, found, spreads = look, [], [RESOLUTION]
        own, other = levels.own.levels[number], levels.other.levels[number]
        now = [[_Sample.of(item[:look]) for item in point] for point in after]
        for index, tolerance in zip(frontier, tolerances, strict=True):
            rows = []
            for candidate in now:
                pair = [
                    _difference(old, new, higher)
                    for old, new, higher in zip(before[index], candidate, directions, strict=True)
                ]
                rows.append(pair)
                spreads += [item.sd for item in pair]
            upper = [own if place == index else other for place in range(len(after))]
            found.append(_standing(index, rows, directions, tolerance, upper, fall))
        standings, sd = tuple(found), max(spreads)
        if all(item.holds for item in found):
            status = Decision.PASS
            break
        if any(item.fell for item in found):
            status = Decision.FAIL
            break
    next_look: int | None = None
    needed: int | None = 0
    if status is Decision.OPEN:
        next_look = levels.own.following(count)
        gap = min(
            log_margin(tolerance, higher_is_better=higher)
            - log_margin(FREE_ZONE_SHARE * tolerance, higher_is_better=higher)
            for tolerance in tolerances
            for higher in directions
        )
        total = sessions_to_decide(
            sd=sd,
            baseline_sessions=min(point[0].count for point in before),
            gap=gap,
            level=min(levels.own.levels[-1], levels.fall.levels[-1]),
        )
        needed = None if total is None else max(total, next_look or 0, count + 1) - count
        if next_look is None:
            status = Decision.INCONCLUSIVE
    return Dominance(status=status, standings=standings, used=used, next_look=next_look, needed=needed, sd=sd)


def _difference(before: _Sample, after: _Sample, higher: bool) -> _Difference:
    degrees = before.count + after.count - 2
    sd = max(math.sqrt((before.squares + after.squares) / degrees), RESOLUTION)
    loss = before.mean - after.mean
    return _Difference(
        mean=loss if higher else -loss,
        sd=sd,
        error=sd * math.sqrt(1 / before.count + 1 / after.count),
        degrees=degrees,
    )


def _standing(
    index: int,
    rows: Sequence[Sequence[_Difference]],
    directions: tuple[bool, bool],
    tolerance: float,
    upper_levels: Sequence[float],
    fall_level: float,
) -> Standing:
    free = FREE_ZONE_SHARE * tolerance

    def worst(pair: Sequence[_Difference], level: float, sign: int) -> float:
        """Return the larger of two losses, each moved by its width."""
        return max(
            relative_loss(item.mean + sign * t_quantile(level, item.degrees) * item.error, higher_is_better=higher)
            for item, higher in zip(pair, directions, strict=True)
        )

    losses = [worst(pair, fall_level, 0) for pair in rows]
    lower = min(worst(pair, fall_level, -1) for pair in rows)
    upper = min(worst(pair, level, 1) for pair, level in zip(rows, upper_levels, strict=True))
    cover = min(range(len(rows)), key=losses.__getitem__)
    holds = upper < tolerance
    return Standing(
        point=index,
        cover=cover,
        loss=losses[cover],
        lower=lower,
        upper=upper,
        holds=holds,
        fell=not holds and lower > free,
    )
