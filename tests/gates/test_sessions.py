"""Sessions and blocks: bounds against scipy, looks, directions, bad figures, and error rates by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pytest_inferperf.gates.looks import BLOCKS, SESSIONS, Decision, Unresolvable, single_look
from pytest_inferperf.gates.sessions import RESOLUTION, Block, SessionsVerdict, doubt_gain, judge_blocks, judge_sessions

Sessions = list[list[float]]


def drawn(count: int, *, seed: int, loss: float = 0.0, sd: float = 0.015, rounds: int = 3) -> Sessions:
    generator = np.random.default_rng(seed)
    logs = generator.normal(0, sd, (count, 1)) + generator.normal(0, 0.005, (count, rounds)) + math.log1p(-loss)
    listed: Sessions = (1000 * np.exp(logs)).tolist()
    return listed


def log_means(sessions: Sessions) -> list[float]:
    return [float(np.log(rounds).mean()) for rounds in sessions]


def verdict(baseline: Sessions, candidate: Sessions, tolerance: float = 0.05, **kwargs: object) -> SessionsVerdict:
    kwargs.setdefault("higher_is_better", True)
    found = judge_sessions(baseline, candidate, tolerance=tolerance, **kwargs)  # type: ignore[arg-type]
    assert isinstance(found, SessionsVerdict)
    return found


def blocks_verdict(blocks: list[Block], tolerance: float = 0.03, **kwargs: object) -> SessionsVerdict:
    kwargs.setdefault("higher_is_better", True)
    found = judge_blocks(blocks, tolerance=tolerance, **kwargs)  # type: ignore[arg-type]
    assert isinstance(found, SessionsVerdict)
    return found


def test_one_candidate_session_is_a_prediction_interval() -> None:
    baseline, candidate = drawn(10, seed=1), drawn(1, seed=2)
    found = verdict(baseline, candidate)
    y0, (y1,) = log_means(baseline), log_means(candidate)
    width = stats.t.ppf(1 - SESSIONS.levels[0], 9) * np.std(y0, ddof=1) * math.sqrt(1 + 1 / 10)
    difference = np.mean(y0) - y1
    assert (found.used, found.level) == (1, 0.0097)
    assert found.loss == pytest.approx(1 - math.exp(-difference))
    assert found.lower == pytest.approx(1 - math.exp(-(difference - width)))
    assert found.upper == pytest.approx(1 - math.exp(-(difference + width)))


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_several_sessions_are_a_pooled_t(higher_is_better: bool) -> None:
    """A single look with the whole alpha is scipy's two-sample interval on log session means."""
    baseline, candidate = drawn(10, seed=3), drawn(5, seed=4)
    found = verdict(
        baseline, candidate, higher_is_better=higher_is_better, looks=single_look("sessions", 5), tolerance=0.04
    )
    sides = log_means(baseline), log_means(candidate)
    test = stats.ttest_ind(*(sides if higher_is_better else sides[::-1]))
    interval = test.confidence_interval(0.9)
    sign = -1 if higher_is_better else 1
    expected = [sign * math.expm1(sign * float(bound)) for bound in (interval.low, interval.high)]
    assert [found.lower, found.upper] == pytest.approx(expected)


def test_blocks_are_a_paired_t() -> None:
    generator = np.random.default_rng(5)
    logs = generator.normal(0, 0.02, (5, 4))
    blocks = [Block(reference=(a, d), candidate=(b, c)) for a, b, c, d in np.exp(logs).tolist()]
    found = blocks_verdict(blocks, looks=single_look("blocks", 5))
    differences = (logs[:, 0] + logs[:, 3] - logs[:, 1] - logs[:, 2]) / 2
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
    assert found.lower == pytest.approx(1 - math.exp(-interval.low))
    assert found.upper == pytest.approx(1 - math.exp(-interval.high))
    assert found.sd == pytest.approx(np.std(differences, ddof=1))


def test_a_calm_machine_passes_at_the_first_look() -> None:
    found = verdict(drawn(10, seed=6, sd=0.003), drawn(5, seed=7, sd=0.003))
    assert (found.status, found.used, found.next_look, found.needed) == (Decision.PASS, 1, None, 0)


def test_a_regression_fails_at_the_first_look() -> None:
    found = verdict(drawn(10, seed=6, sd=0.003), drawn(1, seed=7, sd=0.003, loss=0.06))
    assert (found.status, found.used) == (Decision.FAIL, 1)
    assert found.lower > 0.01
    assert found.loss == pytest.approx(0.06, abs=0.01)


def undecided() -> tuple[Sessions, Sessions]:
    """Candidates 2.5 % worse with 1.5 % between sessions: open at every look with a free zone of 2 %."""
    return drawn(10, seed=8), [[1000 * 0.975 * factor] for factor in (1.0, 1.01, 0.99, 1.01, 0.99, 1.0)]


def test_the_road_of_an_undecided_case() -> None:
    baseline, candidate = undecided()
    kwargs = {"tolerance": 0.03, "free_zone": 0.02}
    road = [verdict(baseline, candidate[:count], **kwargs) for count in range(1, 7)]
    assert [step.status for step in road] == [Decision.OPEN] * 4 + [Decision.INCONCLUSIVE] * 2
    assert [step.used for step in road] == [1, 2, 3, 3, 5, 5]
    assert [step.next_look for step in road] == [2, 3, 5, 5, None, None]
    assert replace(road[3], needed=None) == replace(road[2], needed=None)


def test_after_the_last_look_more_sessions_change_nothing() -> None:
    baseline, candidate = undecided()
    five = verdict(baseline, candidate[:5], tolerance=0.03, free_zone=0.02)
    more = verdict(baseline, candidate[:5] + [[500.0]] * 20, tolerance=0.03, free_zone=0.02)
    assert more.status is Decision.INCONCLUSIVE
    assert (more.lower, more.upper) == (five.lower, five.upper)


def test_the_first_decision_stands() -> None:
    """Five good sessions after a bad one do not re-roll a FAIL."""
    baseline = drawn(10, seed=6, sd=0.003)
    assert verdict(baseline, [[900.0], *drawn(5, seed=9, sd=0.003)]).status is Decision.FAIL


def test_needed_says_what_would_decide() -> None:
    baseline, candidate = undecided()
    found = verdict(baseline, candidate[:1], tolerance=0.045, free_zone=0.015)
    assert found.status is Decision.OPEN
    total = 1 + (found.needed or 0)
    gap = -math.log1p(-0.045) + math.log1p(-0.015)

    def twice(n1: int) -> float:
        return float(2 * stats.t.ppf(1 - SESSIONS.levels[-1], 8 + n1) * found.sd * math.sqrt(1 / 10 + 1 / n1))

    assert twice(total) < gap <= twice(total - 1)
    # Ten stored sessions are too few for a gap of 1 %, however many candidates there are.
    assert verdict(baseline, candidate[:1], tolerance=0.03, free_zone=0.02).needed is None


@pytest.mark.parametrize("stored", [1, 2, 4])
def test_few_stored_sessions_leave_the_plain_tolerance(stored: int) -> None:
    baseline = drawn(stored, seed=10, sd=0.0)
    good = verdict(baseline, [[960.0, 955.0, 10.0]])
    assert (good.status, good.uncalibrated, good.level) == (Decision.PASS, True, None)
    assert (good.lower, good.upper) == (-math.inf, math.inf)
    assert verdict(baseline, [[940.0]]).status is Decision.FAIL
    assert verdict(baseline, [[1060.0]], higher_is_better=False).status is Decision.FAIL
    assert not verdict(drawn(5, seed=10), [[1000.0]]).uncalibrated


def test_the_plain_tolerance_allows_its_own_limit() -> None:
    assert verdict([[100.0]], [[95.0]]).status is Decision.PASS
    assert verdict([[100.0]], [[105.0]], higher_is_better=False).status is Decision.PASS
    assert verdict([[100.0]], [[94.99]]).status is Decision.FAIL


def test_equal_figures_keep_a_width() -> None:
    """Zero variance: 0.01 % is believed, so the interval has a width and the estimate decides."""
    baseline = [[100.0, 100.0]] * 5
    same = verdict(baseline, [[100.0]])
    assert (same.status, same.loss, same.sd) == (Decision.PASS, 0.0, RESOLUTION)
    assert same.lower < 0 < same.upper < 0.001
    assert verdict(baseline, [[94.0]]).status is Decision.FAIL
    assert verdict(baseline, [[96.0]], free_zone=0.045).status is Decision.PASS
    blocks = [Block(reference=(1.0, 1.0), candidate=(1.0, 1.0))] * 3
    assert blocks_verdict(blocks).status is Decision.PASS


@pytest.mark.parametrize("tolerance", [0.0, -0.05, 0.001])
def test_a_tolerance_below_the_noise_names_the_smallest(tolerance: float) -> None:
    baseline = drawn(10, seed=1)
    found = judge_sessions(baseline, drawn(1, seed=2), higher_is_better=True, tolerance=tolerance)
    assert isinstance(found, Unresolvable)
    named = float(found.reason.rpartition(" is ")[2].removesuffix(" %")) / 100
    assert named == pytest.approx(found.smallest, abs=1e-5)
    assert isinstance(
        judge_sessions(baseline, drawn(1, seed=2), higher_is_better=True, tolerance=named), SessionsVerdict
    )
    width = stats.t.ppf(1 - SESSIONS.levels[-1], 13) * np.std(log_means(baseline), ddof=1) * math.sqrt(1 / 10 + 1 / 5)
    assert found.smallest == pytest.approx(1 - math.exp(-width))


def test_a_tolerance_of_zero_with_one_stored_session() -> None:
    found = judge_sessions([[100.0]], [[100.0]], higher_is_better=True, tolerance=0.0)
    assert isinstance(found, Unresolvable)
    assert found.reason == (
        "a tolerance of 0 % cannot be resolved by 1 stored session: one alone says nothing about its spread"
    )
    assert found.smallest == math.inf


def test_the_message_of_an_unresolvable_tolerance() -> None:
    found = judge_sessions([[100.0]] * 5, [[100.0]], higher_is_better=True, tolerance=0.0)
    assert isinstance(found, Unresolvable)
    assert found.reason == (
        "a tolerance of 0 % cannot be resolved by 5 stored sessions that vary by 0.01 %: the smallest is 0.014 %"
    )


def test_blocks_with_a_tolerance_of_zero() -> None:
    block = Block(reference=(1.0, 1.0), candidate=(1.0, 1.0))
    one = judge_blocks([block], higher_is_better=True, tolerance=0.0)
    three = judge_blocks([block] * 3, higher_is_better=True, tolerance=0.0)
    assert isinstance(one, Unresolvable)
    assert isinstance(three, Unresolvable)
    assert (one.smallest, three.smallest < 0.001) == (math.inf, True)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_impossible_figures(value: float) -> None:
    good = [[100.0]] * 5
    message = "a figure has to be finite and above 0"
    with pytest.raises(ValueError, match=f"candidate session 2 measured {value}: {message}"):
        judge_sessions(good, [[100.0], [100.0, value]], higher_is_better=True, tolerance=0.05)
    with pytest.raises(ValueError, match=f"stored session 6 measured {value}: {message}"):
        judge_sessions([*good, [value]], [[100.0]], higher_is_better=True, tolerance=0.05)
    with pytest.raises(ValueError, match=message):
        judge_blocks([Block(reference=(1.0,), candidate=(value,))], higher_is_better=True, tolerance=0.05)


def test_absent_sessions() -> None:
    with pytest.raises(ValueError, match="there is no candidate session"):
        judge_sessions([[1.0]] * 5, [], higher_is_better=True, tolerance=0.05)
    with pytest.raises(ValueError, match="there is no stored session"):
        judge_sessions([], [[1.0]], higher_is_better=True, tolerance=0.05)
    with pytest.raises(ValueError, match="candidate session 1 has no rounds"):
        judge_sessions([[1.0]] * 5, [[]], higher_is_better=True, tolerance=0.05)
    with pytest.raises(ValueError, match="there is no reference session"):
        judge_blocks([], higher_is_better=True, tolerance=0.05)


@pytest.mark.parametrize("free_zone", [0.0, 0.05, 0.06])
def test_free_zone_out_of_order(free_zone: float) -> None:
    with pytest.raises(ValueError, match="free zone"):
        judge_sessions([[1.0]] * 5, [[1.0]], higher_is_better=True, tolerance=0.05, free_zone=free_zone)


def test_nothing_can_lose_more_than_everything() -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        judge_sessions([[1.0]] * 5, [[1.0]], higher_is_better=True, tolerance=1.0)
    assert verdict([[1.0]] * 5, [[2.9]], higher_is_better=False, tolerance=2.0).status is Decision.PASS


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio has to be above 0"):
        judge_blocks([], higher_is_better=True, tolerance=0.05, ratio=ratio)


@pytest.mark.parametrize(("higher_is_better", "candidate"), [(True, 150.0), (False, 100 / 1.5)])
def test_ratio(higher_is_better: bool, candidate: float) -> None:
    """1.5 times as good is no loss at a ratio of 1.5, and a loss of a sixth at 1.8."""
    blocks = [Block(reference=(100.0, 100.0), candidate=(candidate, candidate))] * 3
    even = blocks_verdict(blocks, higher_is_better=higher_is_better, ratio=1.5)
    assert even.status is Decision.PASS
    assert even.loss == pytest.approx(0.0)
    short = blocks_verdict(blocks, higher_is_better=higher_is_better, ratio=1.8)
    assert short.status is Decision.FAIL
    assert short.loss == pytest.approx(1 / 6 if higher_is_better else 0.2)


def test_two_blocks_are_no_look() -> None:
    block = Block(reference=(1.0, 1.0), candidate=(0.5, 0.5))
    found = blocks_verdict([block] * 2)
    assert (found.status, found.used, found.next_look, found.level) == (Decision.OPEN, 0, 3, None)
    assert (found.lower, found.upper, math.isnan(found.loss)) == (-math.inf, math.inf, True)
    assert blocks_verdict([block]).needed is None
    assert blocks_verdict([block] * 3).status is Decision.FAIL


def test_undecided_blocks_end_inconclusive() -> None:
    blocks = [Block(reference=(1.0, 1.0), candidate=(factor, factor)) for factor in (0.9, 1.06) * 6]
    road = [blocks_verdict(blocks[:count]) for count in (3, 4, 5, 10, 12)]
    assert [step.status for step in road] == [Decision.OPEN] * 3 + [Decision.INCONCLUSIVE] * 2
    assert [step.used for step in road] == [3, 3, 5, 10, 10]
    assert (road[-1].needed or 0) > 10


def test_directions_mirror_each_other() -> None:
    """Reciprocal figures with the other direction have the same bounds in logs."""
    baseline, candidate = drawn(8, seed=11), drawn(2, seed=12, loss=0.02)

    def turned(sessions: Sessions) -> Sessions:
        return [[1e6 / value for value in rounds] for rounds in sessions]

    up = verdict(baseline, candidate, free_zone=0.02)
    down = verdict(turned(baseline), turned(candidate), higher_is_better=False, free_zone=0.02)
    for name in ("loss", "lower", "upper"):
        assert -math.log1p(-getattr(up, name)) == pytest.approx(math.log1p(getattr(down, name)))


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_worse_candidates_lose_more(higher_is_better: bool) -> None:
    baseline = drawn(10, seed=13)
    sign = -1 if higher_is_better else 1
    road = [
        verdict(baseline, [[1000 * (1 + sign * loss)]], higher_is_better=higher_is_better)
        for loss in (-0.5, 0.0, 0.02, 0.05, 0.2, 0.9)
    ]
    assert [step.lower for step in road] == sorted(step.lower for step in road)
    assert [step.upper for step in road] == sorted(step.upper for step in road)
    assert (road[0].status, road[-1].status) == (Decision.PASS, Decision.FAIL)


def test_absurd_figures_do_not_overflow() -> None:
    baseline, low = [[1e-300]] * 4 + [[1e300]] * 4, {"higher_is_better": False}
    found = judge_sessions(baseline, [[1.0]], tolerance=1e300, higher_is_better=False)
    assert isinstance(found, Unresolvable)
    assert found.smallest > 1e300
    assert verdict([[1e-300]] * 8, [[1e300]], **low).status is Decision.FAIL
    assert verdict([[1e300]] * 8, [[1e-300]], **low).status is Decision.PASS
    assert verdict([[1e-300]] * 8, [[1e300]]).status is Decision.PASS


def test_a_smaller_alpha_is_wider() -> None:
    baseline, candidate = drawn(10, seed=1), drawn(1, seed=2)
    wide, narrow = verdict(baseline, candidate, alpha=0.001), verdict(baseline, candidate)
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


@pytest.mark.parametrize(
    ("loss", "status"), [(0.01, Decision.FAIL), (0.05, Decision.PASS)], ids=["harmless loss fails", "tolerance passes"]
)
@pytest.mark.parametrize("stored", [5, 10])
def test_both_errors_stay_below_alpha(stored: int, loss: float, status: Decision) -> None:
    """1,500 replicates at the edge of each margin; .067 is alpha plus three Monte Carlo errors."""
    runs = 1500
    before = drawn(stored * runs, seed=14, rounds=1)
    after = drawn(5 * runs, seed=15, rounds=1, loss=loss)
    wrong = 0
    for run in range(runs):
        found = judge_sessions(
            before[stored * run : stored * (run + 1)],
            after[5 * run : 5 * (run + 1)],
            higher_is_better=True,
            tolerance=0.05,
            free_zone=0.01,
        )
        # An unresolvable tolerance is neither error.
        wrong += isinstance(found, SessionsVerdict) and found.status is status
    assert wrong / runs < 0.067


@pytest.mark.parametrize(("loss", "status"), [(0.006, Decision.FAIL), (0.03, Decision.PASS)])
def test_both_errors_of_blocks_stay_below_alpha(loss: float, status: Decision) -> None:
    runs = 1500
    logs = np.random.default_rng(16).normal(0, 0.012, (runs, BLOCKS.cap, 2))
    logs[:, :, 1] += math.log1p(-loss)
    wrong = sum(
        blocks_verdict([Block(reference=(a,), candidate=(b,)) for a, b in run]).status is status
        for run in np.exp(logs).tolist()
    )
    assert wrong / runs < 0.067


STORED = [[100.0 + shift] for shift in (-2.0, -1.0, 0.0, 1.0, 2.0)]


@pytest.mark.parametrize(
    ("stored", "measured", "doubt"),
    [
        (STORED, [[110.0], [111.0], [112.0], [110.0], [111.0]], ""),
        (STORED, [[101.0], [103.0], [100.0], [102.0], [101.0]], "the gain may be noise: loss at most "),
        (STORED, [[200.0]] * 4, "4 sessions would replace 5; 5 or more are needed to judge by"),
        (STORED[:4], [[101.0]], ""),
    ],
)
def test_only_a_proven_gain_is_without_doubt(
    stored: list[list[float]], measured: list[list[float]], doubt: str
) -> None:
    found = doubt_gain(stored, measured, True)
    assert found.startswith(doubt) if doubt else found == ""
    upside_down = [[10_000 / value for value in rounds] for rounds in measured]
    found = doubt_gain([[10_000 / value for value in rounds] for rounds in stored], upside_down, False)
    assert found.startswith(doubt) if doubt else found == ""
