"""Frontiers: which points lie on one, what covers a point, bounds against scipy, and error rates by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pytest_inferperf.gates.dominance import (
    Dominance,
    Figures,
    Sessions,
    frontier_of,
    judge_dominance,
    levels_at,
    standing_of_levels,
)
from pytest_inferperf.gates.looks import SESSIONS, Decision

HIGHER = (True, True)
PLACES = ((10.0, 100.0), (40.0, 60.0), (70.0, 20.0))
"""Tokens of all and of one user, in three loads."""


def point(
    place: tuple[float, float], count: int, generator: np.random.Generator, *, sd: float = 0.002, loss: float = 0.0
) -> Figures:
    """Draw sessions of one round: what a launch does to one figure it does to the other."""
    launches = np.exp(generator.normal(0, sd, count)) * (1 - loss)
    return tuple([[value * float(launch)] for launch in launches] for value in place)  # type: ignore[return-value]


def judged(
    losses: dict[int, float],
    *,
    seed: int = 1,
    count: int = 5,
    sd: float = 0.002,
    places: tuple[tuple[float, float], ...] = PLACES,
    tolerance: float = 0.05,
) -> Dominance:
    generator = np.random.default_rng(seed)
    stored = [point(place, 10, generator, sd=sd) for place in PLACES]
    after = [point(place, count, generator, sd=sd, loss=losses.get(index, 0.0)) for index, place in enumerate(places)]
    return judge_dominance(stored, after, frontier=range(3), directions=HIGHER, tolerances=[tolerance] * 3)


@pytest.mark.parametrize(
    ("points", "directions", "found"),
    [
        (PLACES, HIGHER, [0, 1, 2]),
        ([(10, 100), (9, 60), (70, 20)], HIGHER, [0, 2]),
        ([(10, 100), (10, 100), (5, 100)], HIGHER, [0]),
        ([(10, 5), (40, 7), (30, 8)], (True, False), [0, 1]),
        ([(10, 100)], HIGHER, [0]),
    ],
)
def test_what_another_point_covers_is_not_on_the_frontier(
    points: list[tuple[float, float]], directions: tuple[bool, bool], found: list[int]
) -> None:
    assert frontier_of(points, directions) == found


@pytest.mark.parametrize(
    ("candidates", "cover", "loss"),
    [
        ([(40.0, 60.0)], 0, 0.0),
        ([(38.0, 60.0)], 0, 0.05),
        ([(38.0, 54.0)], 0, 0.1),
        ([(20.0, 90.0), (39.0, 57.0)], 1, 0.05),
        # Another load that offers as much covers it, and a gain in one figure pays for nothing in the other.
        ([(38.0, 54.0), (44.0, 66.0)], 1, -0.1),
        ([(400.0, 48.0)], 0, 0.2),
    ],
)
def test_a_point_has_fallen_by_what_its_best_cover_lacks(
    candidates: list[tuple[float, float]], cover: int, loss: float
) -> None:
    found = standing_of_levels(0, (40.0, 60.0), candidates, HIGHER)
    assert found.cover == cover
    assert found.loss == pytest.approx(loss)
    assert not found.holds
    assert not found.fell


def test_levels_share_the_error_among_what_could_go_wrong() -> None:
    levels = levels_at(0.05, points=4)
    assert levels.own.alpha + 3 * levels.other.alpha == pytest.approx(0.05)
    assert levels.own.alpha == pytest.approx(0.04)
    assert levels.fall.alpha * 4 * 2 == pytest.approx(0.05)
    assert levels.own.looks == levels.other.looks == levels.fall.looks == SESSIONS.looks


def test_bounds_are_those_of_two_samples() -> None:
    """At one session: the prediction interval of either figure, the larger of the two losses, of the best cover."""
    generator = np.random.default_rng(3)
    stored = [point(place, 8, generator, sd=0.01) for place in PLACES]
    after = [point(place, 1, generator, sd=0.01) for place in PLACES]
    found = judge_dominance(stored, after, frontier=[1], directions=HIGHER, tolerances=[0.05])
    (one,) = found.standings
    levels = levels_at(0.05, points=3)

    def bound(old: Sessions, new: Sessions, level: float, sign: int) -> float:
        logs = np.log(np.ravel(np.array(old)))
        width = stats.t.ppf(1 - level, 7) * np.std(logs, ddof=1) * math.sqrt(1 + 1 / 8)
        return 1 - math.exp(-(float(logs.mean()) - math.log(new[0][0]) + sign * float(width)))

    pairs = list(zip(stored[1], after[1], strict=True))
    assert one.cover == 1
    assert one.lower == pytest.approx(max(bound(*pair, levels.fall.levels[0], -1) for pair in pairs))
    assert one.upper == pytest.approx(max(bound(*pair, levels.own.levels[0], 1) for pair in pairs))


def test_an_unchanged_frontier_passes_at_the_first_look() -> None:
    found = judged({})
    assert (found.status, found.used, found.next_look) == (Decision.PASS, 1, None)
    assert all(item.holds and item.cover == item.point for item in found.standings)


@pytest.mark.parametrize("fallen", [0, 1, 2])
def test_a_point_that_falls_fails_it_and_no_other_is_blamed(fallen: int) -> None:
    found = judged({fallen: 0.1})
    assert (found.status, found.used) == (Decision.FAIL, 1)
    assert [item.point for item in found.standings if item.fell] == [fallen]
    assert found.standings[fallen].loss == pytest.approx(0.1, abs=0.02)


def test_one_figure_alone_may_fall() -> None:
    """As many tokens for all, and fewer for each user."""
    found = judged({}, places=((10.0, 100.0), (40.0, 54.0), (70.0, 20.0)))
    assert [item.point for item in found.standings if item.fell] == [1]


def test_another_load_may_take_its_place() -> None:
    found = judged({1: 0.5}, places=((10.0, 100.0), (40.0, 60.0), (70.0, 62.0)))
    assert found.status is Decision.PASS
    assert found.standings[1].cover == 2


def test_a_noisy_machine_decides_nothing_and_says_how_much_would() -> None:
    found = judged({1: 0.03}, sd=0.02, count=5, seed=5, tolerance=0.045)
    assert found.status is Decision.INCONCLUSIVE
    assert found.next_look is None
    assert found.needed is None or found.needed > 0
    early = judged({1: 0.03}, sd=0.02, count=1, seed=5, tolerance=0.045)
    assert (early.status, early.next_look) == (Decision.OPEN, 2)


@pytest.mark.parametrize("higher", [True, False])
def test_directions_are_those_of_the_metrics(higher: bool) -> None:
    """Tokens of all over a latency: 8 % more time is worse, 8 % less is not."""
    generator = np.random.default_rng(2)
    places = ((10.0, 5.0), (40.0, 9.0))
    stored = [point(place, 10, generator) for place in places]
    factor = 1.08 if not higher else 0.92
    after = [point((x, y * factor), 1, generator) for x, y in places]
    found = judge_dominance(stored, after, frontier=[0, 1], directions=(True, False), tolerances=[0.05, 0.05])
    assert found.status is (Decision.PASS if higher else Decision.FAIL)


def test_how_often_it_is_wrong_is_held() -> None:
    """All points at the free zone: FAIL in 5 % at most. One at the tolerance: PASS in 5 % at most. 400 runs of each."""
    runs = 400
    free = [judged(dict.fromkeys(range(3), 0.01), seed=seed, sd=0.01).status for seed in range(runs)]
    lost = [judged({1: 0.05}, seed=seed, sd=0.01).status for seed in range(runs)]
    assert free.count(Decision.FAIL) <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)
    assert lost.count(Decision.PASS) <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)
    assert lost.count(Decision.FAIL) > 0.5 * runs


def test_figures_without_a_logarithm_are_refused() -> None:
    bad: Figures = ([[1.0], [0.0]], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="stored session"):
        judge_dominance([bad, bad], [bad, bad], frontier=[0], directions=HIGHER, tolerances=[0.05])


def test_a_frontier_has_several_points_on_both_sides() -> None:
    one: Figures = ([[1.0], [1.0]], [[1.0], [1.0]])
    for stored, candidates in (([one], [one]), ([one, one], [one])):
        with pytest.raises(ValueError, match="cannot be judged by 1"):
            judge_dominance(stored, candidates, frontier=[0], directions=HIGHER, tolerances=[0.05])
