"""Looks: when a gate may decide, at which level, and the rule that decides.

A gate judges the same data several times as it grows, so each look spends a part of the error it is allowed in total.
Spending is linear in information: after a share t of the planned sessions, blocks or questions, `alpha * t` is spent.
The level of a look is the *nominal* one-sided level at which its confidence bound is computed.

Two errors are controlled, each by `alpha`: FAIL although the loss is within the free zone, and PASS although the loss is
beyond the tolerance.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

__all__ = [
    "ALPHA",
    "BLOCKS",
    "QUESTIONS",
    "SESSIONS",
    "Decision",
    "LookSchedule",
    "Unresolvable",
    "check_margins",
    "decide",
    "nominal_levels",
    "single_look",
]

ALPHA = 0.05
"""Total one-sided error of a gate, over all of its looks."""


class Decision(enum.Enum):
    """What the data at hand say about one gate."""

    PASS = "PASS"
    FAIL = "FAIL"
    OPEN = "OPEN"
    """Not decided, and a further look is planned: measure more."""

    INCONCLUSIVE = "INCONCLUSIVE"
    """Not decided at the last look."""


@dataclass(frozen=True, kw_only=True)
class LookSchedule:
    """When to look, and at which nominal one-sided level.

    Raises `ValueError` for looks that do not grow or for a level count that differs from the looks.
    """

    unit: str
    """What is counted: `sessions`, `blocks`, `percent of the questions`."""

    looks: tuple[int, ...]
    """How many there are at each look, in all."""

    levels: tuple[float, ...]
    """The nominal one-sided level of each look."""

    alpha: float = ALPHA

    def __post_init__(self) -> None:
        if not self.looks or self.looks[0] < 1 or any(b <= a for a, b in pairwise(self.looks)):
            raise ValueError(f"looks have to be positive and to grow: {self.looks}")
        if len(self.levels) != len(self.looks):
            raise ValueError(f"{len(self.looks)} looks have {len(self.levels)} levels")

    @property
    def cap(self) -> int:
        """The last look: what is undecided there is INCONCLUSIVE."""
        return self.looks[-1]

    def reached(self, count: int) -> tuple[tuple[int, float], ...]:
        """Return the looks that `count` sessions, blocks or percent allow, each with its level."""
        return tuple((look, level) for look, level in zip(self.looks, self.levels, strict=True) if look <= count)

    def following(self, count: int) -> int | None:
        """Return the first look after `count`; None after the last."""
        return next((look for look in self.looks if look > count), None)

    def at(self, alpha: float) -> LookSchedule:
        """Return the same looks with the levels of another total alpha.

        Raises `ValueError` for an alpha outside 0 to 0.5.
        """
        return self if alpha == self.alpha else _at(self, alpha)


@lru_cache(maxsize=64)
def _at(schedule: LookSchedule, alpha: float) -> LookSchedule:
    fractions = tuple(look / schedule.cap for look in schedule.looks)
    levels = nominal_levels(fractions, alpha)
    return LookSchedule(unit=schedule.unit, looks=schedule.looks, levels=levels, alpha=alpha)


# The levels of the simulated tables (400,000 paths). `nominal_levels` gives the same within .0006.
SESSIONS = LookSchedule(unit="sessions", looks=(1, 2, 3, 5), levels=(0.0097, 0.0133, 0.0172, 0.0307))
BLOCKS = LookSchedule(unit="blocks", looks=(3, 5, 7, 10), levels=(0.0145, 0.0157, 0.0194, 0.0281))
QUESTIONS = LookSchedule(
    unit="percent of the questions", looks=(25, 50, 75, 100), levels=(0.0121, 0.0169, 0.0217, 0.0269)
)


@dataclass(frozen=True, kw_only=True)
class Unresolvable:
    """The tolerance is 0, or smaller than the data can ever resolve: an error of the gate, not a pass or a regression."""

    tolerance: float
    smallest: float
    """Smallest tolerance that can be resolved; infinite where nothing is known about the spread."""

    reason: str
    """The whole message: what was asked, and what is possible."""


def single_look(unit: str, count: int, *, alpha: float = ALPHA) -> LookSchedule:
    """Return the plan of one look with the whole alpha: for a number that was fixed before measuring."""
    _check_alpha(alpha)
    return LookSchedule(unit=unit, looks=(count,), levels=(alpha,), alpha=alpha)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha has to be between 0 and 0.5, not {alpha}")


@lru_cache(maxsize=64)
def nominal_levels(fractions: tuple[float, ...], alpha: float = ALPHA) -> tuple[float, ...]:
    """Compute the nominal one-sided levels of looks at growing shares of the information, spending `alpha * t` by t.

    With S the Brownian motion of the information t, the bound b_k of look k solves
    P(S_1 <= b_1, ..., S_k-1 <= b_k-1, S_k > b_k) = alpha (t_k - t_k-1), and its level is 1 - Phi(b_k / sqrt(t_k)).
    The density of the paths still open is carried from look to look by Gauss-Legendre quadrature
    (Armitage, McPherson and Rowe 1969; Lan and DeMets 1983). Error below 1e-5.

    Raises `ValueError` for an alpha outside 0 to 0.5, or fractions that do not grow to at most 1.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import ndtr

    _check_alpha(alpha)
    if not fractions or fractions[0] <= 0 or fractions[-1] > 1 + 1e-12:
        raise ValueError(f"fractions have to be above 0 and at most 1: {fractions}")
    if any(b <= a for a, b in pairwise(fractions)):
        raise ValueError(f"fractions have to grow: {fractions}")

    unit_nodes, unit_weights = np.polynomial.legendre.leggauss(96)
    # All paths start at 0 with no information: one node, weight 1.
    nodes, mass = np.zeros(1), np.ones(1)
    before, levels = 0.0, []
    for fraction in fractions:
        step = math.sqrt(fraction - before)
        root = math.sqrt(fraction)
        spend = alpha * (fraction - before)

        def excess(
            bound: float, nodes: object = nodes, mass: object = mass, step: float = step, spend: float = spend
        ) -> float:
            return float(np.sum(mass * ndtr((nodes - bound) / step))) - spend  # type: ignore[operator]

        bound = float(brentq(excess, -9 * root, 9 * root, xtol=1e-10))
        levels.append(float(ndtr(-bound / root)))
        low = -9 * root
        points = low + (bound - low) * (unit_nodes + 1) / 2
        kernel = np.exp(-0.5 * ((points[:, None] - nodes[None, :]) / step) ** 2) / (step * math.sqrt(2 * math.pi))
        mass = (kernel @ mass) * unit_weights * (bound - low) / 2
        nodes, before = points, fraction
    return tuple(levels)


def check_margins(*, tolerance: float, free_zone: float) -> None:
    """Check the two margins. Raises `ValueError` unless 0 < free zone < tolerance, both finite.

    A free zone of 0 is refused: with early stopping, a harmless half of the tolerance then fails one run in two.
    """
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"the tolerance has to be above 0, not {tolerance}")
    if not 0 < free_zone < tolerance:
        raise ValueError(f"the free zone has to be above 0 and below the tolerance {tolerance}, not {free_zone}")


def decide(*, lower: float, upper: float, free_zone: float, tolerance: float) -> Decision:
    """Decide by one-sided confidence bounds on the loss (positive is worse): PASS, FAIL or OPEN.

    PASS if upper < tolerance; else FAIL if lower > free_zone; else OPEN, which the last look turns to INCONCLUSIVE.
    Raises `ValueError` for bounds that are NaN: they compare false with everything.
    """
    if math.isnan(lower) or math.isnan(upper):
        raise ValueError(f"the bounds of the loss are not numbers: {lower}, {upper}")
    if upper < tolerance:
        return Decision.PASS
    return Decision.FAIL if lower > free_zone else Decision.OPEN
