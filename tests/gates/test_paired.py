"""Paired losses: each interval against an independent computation, looks, bad pairs, and error rates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import optimize, special, stats

from pytest_inferperf.gates.looks import QUESTIONS, Decision, Unresolvable, single_look
from pytest_inferperf.gates.paired import (
    FEW_FLIPS,
    PairedVerdict,
    binomial_bounds,
    exact_bounds,
    judge_paired,
    look_sizes,
    mcnemar_mid_p,
    paired_bounds,
    question_order,
    score_bounds,
    sign_flip_bounds,
)

ALL = single_look("percent of the questions", 100)


def pairs(lost: int, gained: int, count: int) -> tuple[list[float], list[float]]:
    """Outcomes spread evenly: reference and candidate, of which the rest is right on both sides."""
    flips = [-1.0] * gained + [1.0] * lost + [0.0] * (count - lost - gained)
    spread = [flips[index] for index in np.random.default_rng(count).permutation(count)]
    return [float(flip >= 0) for flip in spread], [float(flip <= 0) for flip in spread]


def verdict(
    reference: Sequence[float], candidate: Sequence[float], tolerance: float = 0.02, **kwargs: object
) -> PairedVerdict:
    found = judge_paired(reference, candidate, tolerance=tolerance, **kwargs)  # type: ignore[arg-type]
    assert isinstance(found, PairedVerdict)
    return found


@pytest.mark.parametrize("level", [0.0121, 0.05])
@pytest.mark.parametrize(("lost", "gained", "count"), [(30, 20, 1000), (0, 25, 250), (40, 3, 43), (364, 364, 14042)])
def test_score_bounds_solve_tangos_equation(lost: int, gained: int, count: int, level: float) -> None:
    """The nuisance is found here by maximising the likelihood numerically, not by the closed form."""
    lower, upper = score_bounds(lost, gained, count, level)
    z = stats.norm.isf(level)
    for delta, sign in ((lower, 1), (upper, -1)):

        def deviance(q: float, delta: float = delta) -> float:
            both = special.xlogy(lost, q + delta) + special.xlogy(gained, q)
            return float(-both - special.xlogy(count - lost - gained, 1 - 2 * q - delta))

        found = optimize.minimize_scalar(
            deviance, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-12}
        )
        variance = count * (2 * found.x + delta * (1 - delta))
        assert (lost - gained - count * delta) / math.sqrt(variance) == pytest.approx(sign * z, abs=2e-3)


def test_score_bounds_without_flips_have_a_closed_form() -> None:
    """(N delta)^2 = z^2 N delta (1 - delta)."""
    z2 = stats.norm.isf(0.05) ** 2
    assert score_bounds(0, 0, 100, 0.05) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))


def test_score_bounds_at_the_edge() -> None:
    lower, upper = score_bounds(100, 0, 100, 0.05)
    assert (0.9 < lower < 1, upper) == (True, 1.0)
    assert score_bounds(0, 100, 100, 0.05) == (-upper, -lower)


def test_score_bounds_approach_walds() -> None:
    """With many flips both are loss -+ z sqrt((d - loss^2)/N)."""
    wald = stats.norm.isf(0.05) * math.sqrt((0.05 - 0.01**2) / 100_000)
    assert score_bounds(3000, 2000, 100_000, 0.05) == pytest.approx((0.01 - wald, 0.01 + wald), abs=2e-5)


def test_exact_bounds_worked_by_hand() -> None:
    """3 lost and 1 gained of 100: Clopper-Pearson says 3 % -> 7.571 %, 1 % -> 0.0513 % at .05 one-sided."""
    high = stats.binomtest(3, 100).proportion_ci(0.9).high
    low = stats.binomtest(1, 100).proportion_ci(0.9).low
    assert (float(high), float(low)) == pytest.approx((0.07571, 0.000513), abs=5e-6)
    assert exact_bounds(3, 1, 100, 0.05)[1] == pytest.approx(0.02 + math.hypot(high - 0.03, 0.01 - low))
    assert exact_bounds(1, 3, 100, 0.05)[0] == pytest.approx(-exact_bounds(3, 1, 100, 0.05)[1])


def test_zero_flips_are_the_rule_of_three() -> None:
    assert exact_bounds(0, 0, 300, 0.05)[1] == pytest.approx(1 - 0.05 ** (1 / 300))
    assert exact_bounds(0, 0, 300, 0.05)[1] == pytest.approx(3 / 300, rel=0.01)
    assert exact_bounds(5, 0, 5, 0.05)[1] == 1.0


@pytest.mark.parametrize("bounds", [score_bounds, exact_bounds])
def test_binary_bounds_are_symmetric_and_ordered(bounds: Callable[..., tuple[float, float]]) -> None:
    for lost, gained in itertools.product((0, 1, 5, 20, 50), repeat=2):
        lower, upper = bounds(lost, gained, 120, 0.02)
        assert -1 <= lower < (lost - gained) / 120 < upper <= 1
        mirrored = bounds(gained, lost, 120, 0.02)
        assert mirrored == pytest.approx((-upper, -lower))
        wider = bounds(lost, gained, 120, 0.005)
        assert wider[0] < lower
        assert wider[1] > upper
        assert bounds(lost + 1, gained, 120, 0.02)[1] > upper


@pytest.mark.parametrize("bounds", [score_bounds, exact_bounds])
@pytest.mark.parametrize("counts", [(-1, 0, 10), (0, -1, 10), (6, 5, 10), (0, 0, 0)])
def test_impossible_counts(bounds: Callable[..., object], counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        bounds(*counts, 0.05)


@pytest.mark.parametrize("level", [0.0121, 0.05])
@pytest.mark.parametrize(("count", "most"), [(60, 40), (400, 70)])
def test_error_of_the_binary_bound_by_exact_enumeration(count: int, most: int, level: float) -> None:
    """Sum the probability of every (b, c) whose upper bound misses the true loss; both sides by symmetry.

    The bound is the product's choice: exact below 25 flips, score from there.
    """
    upper = np.full((most, most), np.inf)
    for lost, gained in itertools.product(range(most), repeat=2):
        if lost + gained <= min(count, most):
            bounds = exact_bounds if lost + gained < FEW_FLIPS else score_bounds
            upper[lost, gained] = bounds(lost, gained, count, level)[1]
    b, c = np.meshgrid(np.arange(most), np.arange(most), indexing="ij")
    rest = count - b - c
    possible = rest >= 0
    logs = special.gammaln(count + 1) - special.gammaln(b + 1) - special.gammaln(c + 1)
    logs = logs - special.gammaln(np.where(possible, rest, 0) + 1)
    worst = 0.0
    for flips in (0.005, 0.02, 0.05, 0.08):
        for balance in (-0.9, -0.5, -0.2, 0.0, 0.2, 0.5, 0.9, 1 - 1e-9):
            loss = flips * balance
            joint = logs + b * math.log((flips + loss) / 2) + c * math.log((flips - loss) / 2)
            weight = np.where(possible, np.exp(joint + np.where(possible, rest, 0) * math.log1p(-flips)), 0.0)
            worst = max(worst, float(weight[upper < loss].sum()))
    assert worst < 1.35 * level


def test_mcnemar_mid_p_against_scipy() -> None:
    for lost, gained in ((0, 0), (3, 1), (0, 5), (5, 0), (40, 20)):
        flips = stats.binom(lost + gained, 0.5)
        expected = flips.sf(lost - 1) - flips.pmf(lost) / 2
        assert mcnemar_mid_p(lost, gained) == pytest.approx(expected)
    assert mcnemar_mid_p(0, 0) == 0.5
    assert mcnemar_mid_p(3, 1) == pytest.approx(3 / 16)


def test_sign_flip_bounds_by_full_enumeration() -> None:
    """8 differences: reject v while the sign-flip p of sum(x - v), over all 256 flips, is at most the level."""
    x = np.random.default_rng(1).normal(0.3, 1, 8)
    level = 0.03
    lower, upper = sign_flip_bounds(x, np.ones(8), level)
    flips = np.array(list(itertools.product((-1, 1), repeat=8)))

    def p_of(v: float, side: int) -> float:
        return float((side * (flips @ (x - v)) >= side * (x - v).sum() - 1e-12).mean())

    for bound, side in ((lower, 1), (upper, -1)):
        assert p_of(bound - side * 1e-6, side) <= level < p_of(bound + side * 1e-6, side)


def test_too_few_units_have_no_bounds() -> None:
    """4 differences have 16 sign patterns: no p below 1/16."""
    assert sign_flip_bounds([1.0] * 4, [1.0] * 4, 0.05) == (-math.inf, math.inf)
    assert sign_flip_bounds([1.0, 2.0, 3.0, 4.0], [1.0] * 4, 1 / 16) == (1.0, 4.0)


@pytest.mark.parametrize(("sums", "sizes"), [([], []), ([1.0], [1.0, 1.0])])
def test_units_without_sizes(sums: list[float], sizes: list[float]) -> None:
    with pytest.raises(ValueError, match="sums have"):
        sign_flip_bounds(sums, sizes, 0.05)


def test_sign_flip_bounds_agree_with_t_for_many_documents() -> None:
    x = np.random.default_rng(2).normal(0.01, 0.2, 5000)
    interval = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    found = verdict(list(x), [0.0] * 5000, tolerance=0.5, looks=ALL)
    assert found.method == "sign-flip"
    width = float(interval.high - interval.low)
    assert (found.lower, found.upper) == pytest.approx((interval.low, interval.high), abs=0.1 * width)
    assert found.upper - found.lower == pytest.approx(width, rel=0.1)


def test_sign_flip_is_seeded_and_scale_free() -> None:
    generator = np.random.default_rng(3)
    old, new = generator.normal(2, 1, 300), generator.normal(2, 1, 300)
    one = verdict(list(old), list(new), tolerance=10.0, looks=ALL)
    assert one == verdict(list(old), list(new), tolerance=10.0, looks=ALL)
    other = verdict(list(old), list(new), tolerance=10.0, looks=ALL, seed=1)
    assert (one.loss, one.upper != other.upper) == (other.loss, True)
    large = verdict(list(1e6 * old), list(1e6 * new), tolerance=1e7, looks=ALL)
    assert (large.lower, large.upper) == pytest.approx((1e6 * one.lower, 1e6 * one.upper), rel=1e-4)


def test_lower_is_better_turns_the_loss_around() -> None:
    generator = np.random.default_rng(4)
    old, new = list(generator.normal(2, 0.1, 200)), list(generator.normal(2.5, 0.1, 200))
    worse = verdict(old, new, tolerance=0.1, higher_is_better=False)
    assert worse.status is Decision.FAIL
    assert worse.loss == pytest.approx(0.5, abs=0.05)
    assert verdict(old, new, tolerance=0.1).status is Decision.PASS


def test_one_error_rate_of_the_sign_flip_bound() -> None:
    """Averages over 4 samples of 60 questions, 1,200 runs; .05 plus four Monte Carlo errors."""
    generator = np.random.default_rng(5)
    missed = 0
    for _ in range(1200):
        ability = generator.random(60)
        old, new = (generator.binomial(4, ability) / 4 for _ in range(2))
        missed += sign_flip_bounds(old - new, np.ones(60), 0.05)[1] < 0
    assert 0.025 < missed / 1200 < 0.075


def test_documents_of_a_group_count_once() -> None:
    """Ten copies of every answer, told apart by group, are as sure as one copy; not told apart, as ten times as many."""
    old, new = pairs(60, 40, 400)
    groups = [index // 10 for index in range(4000)]
    old10, new10 = (np.repeat(side, 10).tolist() for side in (old, new))
    single = verdict(old, new, tolerance=0.2, looks=ALL)
    grouped = verdict(old10, new10, tolerance=0.2, looks=ALL, groups=groups)
    naive = verdict(old10, new10, tolerance=0.2, looks=ALL)
    assert (single.method, grouped.method, naive.method) == ("score", "sign-flip", "score")
    assert grouped.loss == naive.loss == single.loss
    assert grouped.upper - grouped.lower == pytest.approx(single.upper - single.lower, rel=0.1)
    assert naive.upper - naive.lower == pytest.approx((single.upper - single.lower) / math.sqrt(10), rel=0.05)
    assert grouped.detectable == pytest.approx(single.detectable, rel=0.02)


def test_few_differences_that_are_not_binary_are_not_trusted_too_far() -> None:
    """Three of 1,000 documents lost half an answer: at least half of what three flips would say."""
    old = [0.5] * 3 + [0.0] * 997
    found = verdict(old, [0.0] * 1000, tolerance=0.5, looks=ALL)
    assert found.method == "sign-flip"
    assert found.upper == pytest.approx(exact_bounds(3, 0, 1000, 0.05)[1] / 2)


def test_equal_scores_that_are_not_binary() -> None:
    found = verdict([0.25] * 100, [0.25] * 100)
    assert (found.status, found.lower, found.upper, found.detectable) == (Decision.PASS, 0.0, 0.0, math.inf)


def test_equal_answers_in_groups_keep_a_width() -> None:
    found = verdict([1.0] * 1000, [1.0] * 1000, tolerance=0.1, looks=ALL, groups=[i // 10 for i in range(1000)])
    assert found.upper == pytest.approx(1 - 0.05 ** (1 / 100))


def test_zero_flips_pass_where_the_questions_suffice() -> None:
    found = verdict([1.0] * 1000, [1.0] * 1000)
    assert (found.status, found.method, found.used, found.flips) == (Decision.PASS, "exact", 250, 0.0)
    assert (found.mcnemar_p, found.lost, found.gained) == (0.5, 0, 0)


def test_all_wrong_fails_at_the_first_look() -> None:
    found = verdict([1.0, 0.0] * 50, [0.0] * 100, tolerance=0.1)
    assert (found.status, found.used, found.lost, found.gained) == (Decision.FAIL, 25, 13, 0)


def test_a_reference_that_is_all_wrong_cannot_lose() -> None:
    with pytest.raises(ValueError, match="the reference is wrong on all 100 questions"):
        judge_paired([0.0] * 100, [0.0] * 100, tolerance=0.1)
    with pytest.raises(ValueError, match="the reference is wrong on all 100 questions"):
        judge_paired([1.0] * 100, [0.0] * 100, tolerance=0.1, higher_is_better=False)


@pytest.mark.parametrize("tolerance", [0.0, -0.01, 0.01])
def test_a_tolerance_no_number_of_right_answers_proves(tolerance: float) -> None:
    """250 questions without a flip leave 1 - .0269^(1/250) = 1.44 points."""
    found = judge_paired([1.0] * 250, [1.0] * 250, tolerance=tolerance)
    assert isinstance(found, Unresolvable)
    assert found.smallest == pytest.approx(0.01436, abs=1e-5)
    assert found.reason == (
        f"a tolerance of {tolerance:g} cannot be resolved by 250 questions: the smallest is 0.01436 (0.01 is one point)"
    )
    assert verdict([1.0] * 250, [1.0] * 250, tolerance=0.01436).status is Decision.PASS


def test_a_tolerance_of_zero_for_scores_on_another_scale() -> None:
    found = judge_paired([2.0] * 10, [2.5] * 10, tolerance=0.0)
    assert isinstance(found, Unresolvable)
    assert found.smallest > 0
    nothing = judge_paired([2.0] * 10, [2.0] * 10, tolerance=0.0)
    assert isinstance(nothing, Unresolvable)
    assert "the smallest" not in nothing.reason


@pytest.mark.parametrize(
    ("reference", "candidate", "message"),
    [
        ([], [], "cannot pair 0 reference outcomes with 0"),
        ([1.0], [1.0, 0.0], "cannot pair 1 reference outcomes with 2"),
        ([1.0, math.nan], [1.0, 0.0], "not finite"),
        ([1.0, 0.0], [math.inf, 0.0], "not finite"),
    ],
)
def test_what_cannot_be_paired(reference: list[float], candidate: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge_paired(reference, candidate, tolerance=0.9)


@pytest.mark.parametrize("free_zone", [0.0, 0.02, -1.0])
def test_free_zone_out_of_order(free_zone: float) -> None:
    with pytest.raises(ValueError, match="free zone"):
        judge_paired([1.0] * 1000, [1.0] * 1000, tolerance=0.02, free_zone=free_zone)


def test_groups_of_another_length() -> None:
    with pytest.raises(ValueError, match="2 questions have 1 groups"):
        judge_paired([1.0] * 2, [1.0], tolerance=0.99, groups=[1])
    with pytest.raises(ValueError, match="2 documents have 1 groups"):
        question_order(2, seed=0, groups=[1])


def test_fewer_answers_than_the_first_look() -> None:
    old, new = pairs(0, 0, 1000)
    for answered in (0, 1, 249):
        found = verdict(old, new[:answered])
        assert (found.status, found.used, found.next_look) == (Decision.OPEN, 0, 250)
        assert (found.lower, found.upper, found.needed) == (-math.inf, math.inf, None)
        assert (found.method, found.level, found.detectable) == (None, None, math.inf)
    assert verdict(old, new[:250]).used == 250


def test_the_road_of_an_undecided_case() -> None:
    old, new = pairs(60, 45, 1000)
    road = [verdict(old, new[:count]) for count in (250, 499, 500, 750, 1000)]
    assert [step.status for step in road] == [Decision.OPEN] * 4 + [Decision.INCONCLUSIVE]
    assert [step.used for step in road] == [250, 250, 500, 750, 1000]
    assert [step.next_look for step in road] == [500, 500, 750, 1000, None]
    last = road[-1]
    z = stats.norm.isf(QUESTIONS.levels[-1])
    assert last.needed == math.ceil(4 * z**2 * 0.105 / 0.01**2) - 1000
    assert last.loss == pytest.approx(0.015)
    assert (last.lost, last.gained) == (60, 45)
    assert last.flips == pytest.approx(0.105)


def test_the_first_decision_stands() -> None:
    old = [1.0] * 1000
    new = [0.0] * 250 + [1.0] * 750
    found = verdict(old, new, tolerance=0.3, free_zone=0.29)
    assert (found.status, found.used) == (Decision.FAIL, 250)
    assert verdict(old, new, tolerance=0.3, free_zone=0.29, looks=ALL).status is Decision.PASS


def test_look_sizes() -> None:
    assert look_sizes(14_042) == ((3511, 0.0121), (7021, 0.0169), (10532, 0.0217), (14042, 0.0269))
    assert look_sizes(2) == ((1, 0.0169), (2, 0.0269))
    assert look_sizes(1) == ((1, 0.0269),)


def test_order_is_a_seeded_permutation() -> None:
    order = question_order(1000, seed=7)
    assert sorted(order) == list(range(1000))
    assert order == question_order(1000, seed=7) != question_order(1000, seed=8)
    # The same on every machine and numpy: a stored run has to be asked again in the same order.
    assert question_order(10, seed=1) == GOLDEN
    with pytest.raises(ValueError, match="no documents"):
        question_order(0, seed=0)


GOLDEN = (9, 2, 4, 7, 5, 0, 8, 6, 3, 1)


def test_order_keeps_groups_together() -> None:
    groups = ["a", "b", "a", "c", "b", "c", "c", "d"]
    order = question_order(8, seed=3, groups=groups)
    assert sorted(order) == list(range(8))
    runs = [name for name, _ in itertools.groupby(groups[document] for document in order)]
    assert len(runs) == 4


@pytest.mark.parametrize(("loss", "wrong"), [(0.01, Decision.FAIL), (0.02, Decision.PASS)])
def test_both_errors_stay_below_alpha(loss: float, wrong: Decision) -> None:
    """1,500 runs of 1,319 questions, 5 % flips, at the edge of each margin; alpha plus three Monte Carlo errors."""
    generator = np.random.default_rng(8)
    seen = 0
    for _ in range(1500):
        draw = generator.random(1319)
        new = (draw >= (0.05 + loss) / 2).astype(float)
        old = (draw < 1 - (0.05 - loss) / 2).astype(float)
        found = judge_paired(old, new, tolerance=0.02)
        assert isinstance(found, PairedVerdict)
        seen += found.status is wrong
    assert seen / 1500 < 0.067


def test_binomial_bounds_are_clopper_pearson() -> None:
    for count, questions, level in ((0, 20, 0.05), (7, 250, 0.0121), (250, 250, 0.05)):
        found = stats.binomtest(count, questions).proportion_ci(confidence_level=1 - 2 * level, method="exact")
        lower, upper = binomial_bounds(count, questions, level)
        assert lower == pytest.approx(found.low if count else 0.0)
        assert upper == pytest.approx(found.high if count < questions else 1.0)
    with pytest.raises(ValueError, match="do not fit"):
        binomial_bounds(3, 2, 0.05)


def test_paired_bounds_take_the_method_of_the_verdict() -> None:
    few, many = [1] * 5 + [-1] * 2 + [0] * 93, [1] * 30 + [-1] * 10 + [0] * 60
    assert paired_bounds(few, 0.05) == exact_bounds(5, 2, 100, 0.05)
    assert paired_bounds(many, 0.05) == score_bounds(30, 10, 100, 0.05)
    groups = [number // 10 for number in range(100)]
    assert paired_bounds(many, 0.05, groups=groups)[1] > paired_bounds(many, 0.05)[1]
    with pytest.raises(ValueError, match="0 differences"):
        paired_bounds([], 0.05)
    with pytest.raises(ValueError, match="100 differences have 99 groups"):
        paired_bounds(few, 0.05, groups=groups[1:])
