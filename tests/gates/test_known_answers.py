"""Known answers: every bound, p-value, level and power against statsmodels, scipy, a textbook or full enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import signal, stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestIndPower, normal_sample_size_one_tail
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from pytest_inferperf.gates.looks import BLOCKS, QUESTIONS, SESSIONS, Decision, LookSchedule, decide, single_look
from pytest_inferperf.gates.paired import (
    FEW_FLIPS,
    PairedVerdict,
    exact_bounds,
    judge_paired,
    look_sizes,
    mcnemar_mid_p,
    score_bounds,
    sign_flip_bounds,
)
from pytest_inferperf.gates.power import (
    log_margin,
    questions_to_detect,
    questions_to_prove,
    questions_unpaired,
    session_power,
)
from pytest_inferperf.gates.sessions import Block, SessionsVerdict, judge_blocks, judge_sessions

Array = NDArray[np.float64]
# Its stubs reject what it documents: an infinite number of resamples, and arrays of probabilities.
SCIPY: Any = stats


# Levels of the looks.


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 40])
@pytest.mark.parametrize("schedule", [SESSIONS, BLOCKS, QUESTIONS], ids=lambda schedule: schedule.unit)
def test_levels_against_the_multivariate_normal(schedule: LookSchedule, alpha: float) -> None:
    """After each look, the chance of having crossed at any so far is the share of alpha that is due by then."""
    levels = schedule.at(alpha).levels
    times = np.array(schedule.looks) / schedule.cap
    correlation = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    bounds = [float(stats.norm.isf(level)) for level in levels]
    for count in range(1, len(times) + 1):
        inside = SCIPY.multivariate_normal(
            cov=correlation[:count, :count], seed=np.random.default_rng(0), abseps=1e-7, releps=1e-7, maxpts=10**6
        ).cdf(bounds[:count])
        # The levels shipped for .05 come from 400,000 simulated paths.
        assert 1 - float(inside) == pytest.approx(alpha * times[count - 1], abs=9e-4 if alpha == 0.05 else 1e-5)


# Performance.


def drawn(count: int, seed: int, loss: float = 0.0) -> Array:
    values: Array = 1000 * np.exp(np.random.default_rng(seed).normal(math.log1p(-loss), 0.015, count))
    return values


def judged(before: Array, after: Array, *, looks: LookSchedule = SESSIONS, tolerance: float = 0.05) -> SessionsVerdict:
    found = judge_sessions(
        [[value] for value in before.tolist()],
        [[value] for value in after.tolist()],
        higher_is_better=True,
        tolerance=tolerance,
        free_zone=0.01,
        looks=looks,
    )
    assert isinstance(found, SessionsVerdict)
    return found


def test_one_session_is_the_prediction_interval_of_a_regression_on_a_constant() -> None:
    before, after = drawn(10, 1), drawn(1, 2)
    found = judged(before, after)
    model = OLS(np.log(before), np.ones(10)).fit()
    ((low, high),) = model.get_prediction(np.ones((1, 1))).conf_int(obs=True, alpha=2 * SESSIONS.levels[0])
    expected = [1 - math.exp(math.log(after[0]) - bound) for bound in (low, high)]
    assert [found.lower, found.upper] == pytest.approx(expected)


@pytest.mark.parametrize("loss", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("seed", range(4))
def test_the_decision_is_that_of_two_one_sided_t_tests(seed: int, loss: float) -> None:
    """PASS where TOST rejects "the loss is the tolerance or more"; FAIL where it rejects "the free zone or less"."""
    before, after = drawn(10, 10 + seed), drawn(5, 20 + seed, loss)
    found = judged(before, after, looks=single_look("sessions", 5), tolerance=0.04)
    low, high = (log_margin(margin, higher_is_better=True) for margin in (0.01, 0.04))
    _, above, below = ttost_ind(np.log(before), np.log(after), low, high, usevar="pooled")
    expected = Decision.PASS if below[1] < 0.05 else Decision.FAIL if above[1] < 0.05 else Decision.INCONCLUSIVE
    assert found.status is expected


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("seed", range(4))
def test_blocks_decide_as_two_one_sided_paired_t_tests(seed: int, loss: float) -> None:
    reference, candidate = drawn(10, 30 + seed), drawn(10, 40 + seed, loss)
    found = judge_blocks(
        [Block(reference=(a,), candidate=(b,)) for a, b in zip(reference.tolist(), candidate.tolist(), strict=True)],
        higher_is_better=True,
        tolerance=0.03,
        free_zone=0.006,
        looks=single_look("blocks", 10),
    )
    assert isinstance(found, SessionsVerdict)
    low, high = (log_margin(margin, higher_is_better=True) for margin in (0.006, 0.03))
    _, above, below = ttost_paired(np.log(reference), np.log(candidate), low, high)
    expected = Decision.PASS if below[1] < 0.05 else Decision.FAIL if above[1] < 0.05 else Decision.INCONCLUSIVE
    assert found.status is expected


@pytest.mark.parametrize("candidates", [1, 3, 5])
@pytest.mark.parametrize("loss", [0.02, 0.03, 0.05])
def test_power_of_sessions(loss: float, candidates: int) -> None:
    effect = log_margin(loss, higher_is_better=True) - log_margin(0.01, higher_is_better=True)
    expected = TTestIndPower().power(
        effect_size=effect / 0.017, nobs1=candidates, ratio=10 / candidates, alpha=0.0307, alternative="larger"
    )
    found = session_power(
        sd=0.017, baseline_sessions=10, candidate_sessions=candidates, loss=loss, free_zone=0.01, level=0.0307
    )
    assert found == pytest.approx(expected, abs=1e-6)


# Accuracy.


@pytest.mark.parametrize("level", [0.0121, 0.05])
@pytest.mark.parametrize(("lost", "gained", "count"), [(0, 0, 50), (7, 0, 50), (0, 7, 50), (12, 3, 400)])
def test_exact_bounds_join_clopper_pearson_limits(lost: int, gained: int, count: int, level: float) -> None:
    def limits(hits: int) -> tuple[float, float]:
        low, high = proportion_confint(hits, count, alpha=2 * level, method="beta")
        # statsmodels says NaN where the limit is the end of the range.
        return (float(low) if hits else 0.0), (float(high) if hits < count else 1.0)

    loss = (lost - gained) / count
    (low_lost, high_lost), (low_gained, high_gained) = limits(lost), limits(gained)
    upper = loss + math.hypot(high_lost - lost / count, gained / count - low_gained)
    lower = loss - math.hypot(lost / count - low_lost, high_gained - gained / count)
    assert exact_bounds(lost, gained, count, level) == pytest.approx((lower, upper))
    if not gained:
        assert upper == pytest.approx(high_lost)


def test_a_published_score_interval_and_mid_p() -> None:
    """Cavo et al. 2012, in Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8.

    59, 6, 16 and 80 patients: Tango's 95 % interval -0.1240 to -0.0054, McNemar's two-sided mid-p 0.034690.
    """
    assert score_bounds(6, 16, 161, 0.025) == pytest.approx((-0.1240, -0.0054), abs=5e-5)
    assert 2 * mcnemar_mid_p(16, 6) == pytest.approx(0.034690, abs=5e-7)


@pytest.mark.parametrize(("lost", "gained"), [(3, 1), (10, 2), (16, 6), (60, 41)])
def test_mcnemar_mid_p_against_statsmodels(lost: int, gained: int) -> None:
    """The exact two-sided p of the same table, halved, less half of the probability of the table itself."""
    exact = mcnemar([[900, lost], [gained, 90]], exact=True).pvalue / 2
    assert mcnemar_mid_p(lost, gained) == pytest.approx(exact - stats.binom.pmf(lost, lost + gained, 0.5) / 2)


@pytest.mark.parametrize("flips", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("power", [0.8, 0.9])
@pytest.mark.parametrize("loss", [0.005, 0.01, 0.02])
def test_numbers_of_questions(loss: float, power: float, flips: float) -> None:
    root = math.sqrt(flips)
    detect = normal_sample_size_one_tail(loss, power, 0.05, root, math.sqrt(flips - loss**2))
    prove = normal_sample_size_one_tail(loss, power, 0.05, root)
    unpaired = normal_sample_size_one_tail(loss, power, 0.05, math.sqrt(2 * 0.75 * 0.25))
    assert questions_to_detect(loss=loss, spread=flips, power=power) == math.ceil(detect)
    assert questions_to_prove(margin=loss, spread=flips, power=power) == math.ceil(prove)
    assert questions_unpaired(margin=loss, accuracy=0.75, power=power) == math.ceil(unpaired)


def mean(x: Array, axis: int = -1) -> Array:
    means: Array = x.mean(axis=axis)
    return means


@pytest.mark.parametrize("level", [0.0121, 0.05])
@pytest.mark.parametrize("seed", [1, 2])
def test_sign_flip_bounds_are_the_edge_of_scipys_test(seed: int, level: float) -> None:
    """10 differences, all 1,024 sign patterns: below the lower bound scipy rejects at the level, above it does not."""
    x = np.random.default_rng(seed).normal(0.3, 1, 10)
    lower, upper = sign_flip_bounds(x, np.ones(10), level)

    def p_of(value: float, alternative: str) -> float:
        return float(
            SCIPY.permutation_test(
                (x - value,), mean, permutation_type="samples", alternative=alternative, n_resamples=np.inf
            ).pvalue
        )

    assert p_of(lower - 1e-6, "greater") <= level < p_of(lower + 1e-6, "greater")
    assert p_of(upper + 1e-6, "less") <= level < p_of(upper - 1e-6, "less")


def test_sampled_sign_flip_bounds_are_near_scipys_test() -> None:
    """300 averages over 4 samples: at the bound, scipy's sampled p is the level within both samples' errors."""
    generator = np.random.default_rng(3)
    ability = generator.random(300)
    x = (generator.binomial(4, ability) - generator.binomial(4, ability)) / 4
    lower, upper = sign_flip_bounds(x, np.ones(300), 0.05)
    for bound, alternative in ((lower, "greater"), (upper, "less")):
        found = SCIPY.permutation_test(
            (x - bound,),
            mean,
            permutation_type="samples",
            alternative=alternative,
            n_resamples=9999,
            rng=np.random.default_rng(4),
        )
        assert float(found.pvalue) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("level", [0.0121, 0.05, 0.1])
def test_coverage_of_the_sign_flip_bound_by_enumeration(level: float) -> None:
    """Given the sizes of 9 symmetric differences, all 512 samples are equally likely; the bound misses 0 in level of them.

    It misses no more, and with one more sample it would.
    """
    sizes = np.random.default_rng(5).gamma(1, 1, 9)
    samples = [sizes * signs for signs in itertools.product((-1, 1), repeat=9)]
    missed = sum(sign_flip_bounds(x, np.ones(9), level)[1] < 0 for x in samples)
    assert missed == math.floor(512 * level)


def rates_by_enumeration(questions: int, flips: float, loss: float) -> dict[Decision, float]:
    """Carry the probability of every (lost, gained) from look to look; what a look decides leaves."""
    worse, better = (flips + loss) / 2, (flips - loss) / 2
    state, before = np.ones((1, 1)), 0
    rates = dict.fromkeys((Decision.PASS, Decision.FAIL), 0.0)
    for size, level in look_sizes(questions):
        asked = size - before
        b, c = np.meshgrid(np.arange(asked + 1), np.arange(asked + 1), indexing="ij")
        outcomes = np.stack([b, c, asked - b - c], axis=-1)
        step = SCIPY.multinomial.pmf(np.where(outcomes[..., -1:] < 0, 0, outcomes), asked, [worse, better, 1 - flips])
        step[outcomes[..., -1] < 0] = 0.0
        state, before = signal.convolve2d(state, step), size
        for lost, gained in zip(*np.nonzero(state > 1e-12), strict=True):
            bounds = exact_bounds if lost + gained < FEW_FLIPS else score_bounds
            lower, upper = bounds(int(lost), int(gained), size, level)
            decision = decide(lower=lower, upper=upper, free_zone=0.05, tolerance=0.1)
            if decision is not Decision.OPEN:
                rates[decision] += float(state[lost, gained])
                state[lost, gained] = 0.0
    return rates


@pytest.mark.parametrize(("flips", "loss"), [(0.2, 0.05), (0.2, 0.1), (0.4, 0.05), (0.4, 0.1), (0.4, 0.2)])
def test_errors_of_all_four_looks_by_enumeration(flips: float, loss: float) -> None:
    """80 questions, tolerance 10 points, free zone 5: no Monte Carlo, and the simulated judge agrees."""
    rates = rates_by_enumeration(80, flips, loss)
    # The score interval's one-sided error reaches a third more than nominal.
    assert loss > 0.05 or rates[Decision.FAIL] < 1.35 * 0.05
    assert loss < 0.1 or rates[Decision.PASS] < 1.35 * 0.05
    generator = np.random.default_rng(6)
    counts = dict.fromkeys(Decision, 0)
    runs = 1000
    for _ in range(runs):
        draw = generator.random(80)
        old = (draw < 1 - (flips - loss) / 2).astype(float)
        new = (draw >= (flips + loss) / 2).astype(float)
        found = judge_paired(old, new, tolerance=0.1, free_zone=0.05)
        assert isinstance(found, PairedVerdict)
        counts[found.status] += 1
    for decision, rate in rates.items():
        assert counts[decision] / runs == pytest.approx(rate, abs=4 * math.sqrt(max(rate * (1 - rate), 1e-3) / runs))
