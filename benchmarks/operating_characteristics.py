"""How often is each verdict given? Simulates the product's own judges and the rules of its peers, side by side.

Performance: log(metric) of session s, round r = shift + B_s + D + e - O. B: between sessions (sd 0, 0.5, 1 or 2 %). D + e:
within a session (CV 1, 2 or 3 %), half of the variance AR(1) with rho .8, half white. O: 3 % of the rounds are slow,
exponential, mean 4 %. A loss of x multiplies throughput by 1 - x. The model is an assumption: absolute rates move with it.
Our stored rule sees 10 stored sessions of 5 rounds and candidate sessions of 5 rounds; the interleaved rule A B B A blocks
that share one session; the peers one session of 10 rounds against one, or against 20 of history (Bencher, TensorRT-LLM).

Accuracy: the reference is right on 75 %; 5 or 10 % of the answers flip; the loss is in points.

A cell reads FAIL/PASS/INCONCLUSIVE (mean sessions, rounds or questions used); a peer has one outcome to count: FAIL. Monte
Carlo error is at most 0.5 / sqrt(replicates). The same seed and replicates print the same tables, whatever `--jobs` is.
Returns 1 when a promise is not kept.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pytest_inferperf.baselines.entries import AccuracyEntry, MetricBaseline, PerformanceEntry, Provenance, ScoreEntry
from pytest_inferperf.gates.judge import Baselines, judge
from pytest_inferperf.gates.looks import ALPHA, QUESTIONS, Decision, Unresolvable, single_look
from pytest_inferperf.gates.paired import PairedVerdict, judge_paired, mcnemar_mid_p, question_order
from pytest_inferperf.gates.sessions import Block, SessionsVerdict, judge_blocks, judge_sessions
from pytest_inferperf.model.case import Case, EngineSpec, Task, Workload
from pytest_inferperf.model.gates import AccuracyLossCeiling, PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import AccuracyResult, CaseResult, PerformanceResult, Round, Session
from pytest_inferperf.model.verdicts import Status

Array = NDArray[np.float64]

LOSSES = (0.0, 0.01, 0.02, 0.03, 0.05)
POINTS = (0.0, 0.005, 0.01, 0.02)
ROUNDS = 5
STORED_SESSIONS = 10
CANDIDATES = 5
ACCURACY = 0.75
RHO = 0.8


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A cell of the noise model, as shares."""

    within: float
    """Standard deviation of the rounds of one session."""

    between: float
    """Standard deviation of sessions."""

    def __str__(self) -> str:
        return f"CV {100 * self.within:g} %, between {100 * self.between:g} %"


GRID = tuple(Noise(within=cv, between=sd) for cv in (0.01, 0.02, 0.03) for sd in (0.0, 0.005, 0.01, 0.02))
PROMISED = Noise(within=0.02, between=0.01)
SIDE_BY_SIDE = (PROMISED, Noise(within=0.01, between=0.0), Noise(within=0.03, between=0.01))


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a rule did at one true loss."""

    fail: float
    passed: float = math.nan
    """NaN for a rule that knows only fail or not."""

    inconclusive: float = 0.0
    used: float = math.nan
    """Mean sessions, rounds or questions of the candidate."""

    refused: float = 0.0
    """Share of baselines that cannot resolve the tolerance, so that nothing is judged; part of `inconclusive`."""

    def __str__(self) -> str:
        if math.isnan(self.passed):
            return share(self.fail)
        text = "/".join(map(share, (self.fail, self.passed, self.inconclusive)))
        used = f"{self.used:.1f}" if self.used < 100 else f"{self.used:,.0f}"
        return f"{text} ({used})" + (f" {share(self.refused)} refused" if self.refused else "")


def share(value: float) -> str:
    """Write a share as the tables do: `.011`, `1.00`."""
    return "1.00" if value >= 0.9995 else f"{value:.3f}".removeprefix("0")


def tally(verdicts: Iterable[SessionsVerdict | PairedVerdict | Unresolvable], per: int = 1) -> Rates:
    """Count verdicts; an unresolvable tolerance counts as inconclusive and uses nothing."""
    counts: Counter[Decision] = Counter()
    used = refused = 0
    for verdict in verdicts:
        if isinstance(verdict, Unresolvable):
            refused += 1
        else:
            counts[verdict.status] += 1
            used += per * verdict.used
    assert counts[Decision.OPEN] == 0
    judged = sum(counts.values())
    total = judged + refused
    return Rates(
        fail=counts[Decision.FAIL] / total,
        passed=counts[Decision.PASS] / total,
        inconclusive=(counts[Decision.INCONCLUSIVE] + refused) / total,
        used=used / max(1, judged),
        refused=refused / total,
    )


# Ours: performance.


def log_rounds(generator: np.random.Generator, shape: tuple[int, ...], rounds: int, noise: Noise) -> Array:
    """Draw log(metric) around 0: `shape` sessions of `rounds` rounds each."""
    size = (*shape, rounds)
    scale = noise.within / math.sqrt(2)
    drift = generator.normal(0, scale, size)
    for index in range(1, rounds):
        drift[..., index] = RHO * drift[..., index - 1] + math.sqrt(1 - RHO**2) * drift[..., index]
    slow = np.where(generator.random(size) < 0.03, generator.exponential(0.04, size), 0.0)
    white = generator.normal(0, scale, size)
    session: Array = generator.normal(0, 1, (*shape, 1)) * noise.between
    return session + drift + white - slow


def as_sessions(values: Array) -> list[list[list[float]]]:
    """Turn (replicate, session, round) logs into tok/s."""
    listed: list[list[list[float]]] = (1000 * np.exp(values)).tolist()
    return listed


def drawn_sessions(
    seed: Sequence[int], replicates: int, *, noise: Noise, loss: float, stored: int = STORED_SESSIONS
) -> Iterator[tuple[list[list[float]], list[list[float]]]]:
    """Draw stored sessions and the candidate's, in tok/s, replicate by replicate."""
    generator = np.random.default_rng(seed)
    before = log_rounds(generator, (replicates, stored), ROUNDS, noise)
    after = log_rounds(generator, (replicates, CANDIDATES), ROUNDS, noise) + math.log1p(-loss)
    yield from zip(as_sessions(before), as_sessions(after), strict=True)


def stored_rule(
    seed: Sequence[int],
    replicates: int,
    *,
    noise: Noise,
    tolerance: float,
    loss: float,
    free_zone: float | None = None,
    stored: int = STORED_SESSIONS,
    alpha: float = ALPHA,
) -> Rates:
    """Run `judge_sessions` against stored sessions."""
    return tally(
        judge_sessions(old, new, higher_is_better=True, tolerance=tolerance, free_zone=free_zone, alpha=alpha)
        for old, new in drawn_sessions(seed, replicates, noise=noise, loss=loss, stored=stored)
    )


def interleaved_rule(
    seed: Sequence[int],
    replicates: int,
    *,
    noise: Noise,
    tolerance: float,
    loss: float,
    free_zone: float | None = None,
) -> Rates:
    """Run `judge_blocks` on 10 A B B A blocks that share one session; `used` is candidate rounds."""
    logs = log_rounds(np.random.default_rng(seed), (replicates,), 40, noise).reshape(replicates, 10, 4)
    logs[:, :, 1:3] += math.log1p(-loss)
    runs = as_sessions(logs)
    return tally(
        (
            judge_blocks(
                [Block(reference=(a, d), candidate=(b, c)) for a, b, c, d in run],
                higher_is_better=True,
                tolerance=tolerance,
                free_zone=free_zone,
            )
            for run in runs
        ),
        per=2,
    )


def whole_road(
    seed: Sequence[int], replicates: int, *, noise: Noise, tolerance: float, loss: float
) -> tuple[Rates, float]:
    """Walk gates through `gates.judge.judge`, session by session, as a run does.

    Returns the rates, and the share of runs with the status and the sessions of `judge_sessions`. A tolerance that cannot
    be resolved fails its gate.
    """
    gate = PerformanceGate(metric=parse_metric("output_throughput"), tolerance=tolerance)
    case = Case(engine=EngineSpec(model="m", served_model_name="m"), workload=Workload(isl=1, osl=1))
    counts: Counter[Status] = Counter()
    agreed = sessions = 0
    for old, new in drawn_sessions(seed, replicates, noise=noise, loss=loss):
        entry = PerformanceEntry(
            path="baselines/performance/m.json",
            key="BF16",
            metrics={gate.name: MetricBaseline(sessions=tuple(map(tuple, old)))},
            warmup_rounds=1,
            provenance=Provenance(kind="measured"),
        )
        measured = [
            Session(
                rounds=tuple(
                    Round(
                        duration_s=1.0,
                        num_requests=1,
                        num_failed_requests=0,
                        input_tokens=1,
                        output_tokens=1,
                        metrics={gate.name: value},
                    )
                    for value in rounds
                ),
                warmup_rounds=1,
            )
            for rounds in new
        ]
        look: int | None = 1
        while look is not None:
            used = look
            result = CaseResult(case=case, performance=PerformanceResult(sessions=tuple(measured[:used])))
            (verdict,) = judge((gate,), result, Baselines(performance=entry))
            look = verdict.next_look
        expected = judge_sessions(old, new, higher_is_better=True, tolerance=tolerance)
        counts[verdict.status] += 1
        sessions += used
        if isinstance(expected, Unresolvable):
            agreed += verdict.status is Status.FAIL and expected.reason in verdict.reason
        else:
            agreed += (verdict.status.value, used) == (expected.status.value, expected.used)
    rates = Rates(
        fail=counts[Status.FAIL] / replicates,
        passed=counts[Status.PASS] / replicates,
        inconclusive=counts[Status.INCONCLUSIVE] / replicates,
        used=sessions / replicates,
    )
    return rates, agreed / replicates


# Ours: accuracy.


def answers(
    seed: Sequence[int], questions: int, *, flips: float, loss: float, replicates: int
) -> Iterator[tuple[Array, Array]]:
    """Draw reference and candidate answers with a given share of flips and a given loss."""
    generator = np.random.default_rng(seed)
    lost, gained = (flips + loss) / 2, (flips - loss) / 2
    for _ in range(replicates):
        draw = generator.random(questions)
        old = (draw < ACCURACY).astype(np.float64)
        new = old.copy()
        new[draw < lost] = 0.0
        new[draw > 1 - gained] = 1.0
        yield old, new


def paired_rule(
    seed: Sequence[int],
    replicates: int,
    *,
    questions: int,
    flips: float,
    tolerance: float,
    loss: float,
    free_zone: float | None = None,
) -> Rates:
    """Run `judge_paired`. Answers are drawn independently, so they are in random order already."""
    return tally(
        judge_paired(old, new, tolerance=tolerance, free_zone=free_zone)
        for old, new in answers(seed, questions, flips=flips, loss=loss, replicates=replicates)
    )


SCORES = {
    "means of 16 samples, 300 questions": (300, 0.03),
    "0/1 in groups of 5, 1,320 questions": (1_320, 0.03),
    "exponential differences, 300 documents": (300, 0.04),
}
"""Scores that the sign-flip bound judges: documents, tolerance."""


def scores_rule(seed: Sequence[int], replicates: int, *, kind: str, loss: float) -> Rates:
    """Run `judge_paired` on scores that are not 0/1, or not independent."""
    generator = np.random.default_rng(seed)
    count, tolerance = SCORES[kind]
    groups = [index // 5 for index in range(count)] if "groups" in kind else None

    def draw() -> tuple[Array, Array]:
        if "samples" in kind:
            ability = generator.uniform(0.1, 0.9, count)
            return generator.binomial(16, ability) / 16, generator.binomial(16, ability - loss) / 16
        if "groups" in kind:
            # Passages differ in how much they change: the flips of one come together.
            rate = np.repeat(generator.exponential(1, (2, count // 5)), 5, axis=1)
            lost, gained = (0.05 + loss) / 2 * rate[0], (0.05 - loss) / 2 * rate[1]
            chance = generator.random(count)
            return (chance < 1 - gained).astype(np.float64), (chance >= lost).astype(np.float64)
        # Most documents lose nothing, a few lose much: the worst case for a test of symmetric differences.
        return np.full(count, 0.5), 0.5 - loss - 0.3 * (generator.exponential(1, count) - 1)

    return tally(judge_paired(*draw(), tolerance=tolerance, groups=groups) for _ in range(replicates))


def whole_evaluation(
    seed: Sequence[int], replicates: int, *, questions: int, flips: float, tolerance: float, loss: float
) -> float:
    """Return the share of evaluations to which `gates.judge.judge` gives the verdict of `judge_paired`.

    Every second one may stop early and is judged at its looks; nobody looks into the others before the end, so they
    have one look with all of alpha.
    """
    gate = AccuracyLossCeiling(reference="BF16", points=100 * tolerance)
    case = Case(engine=EngineSpec(model="m", served_model_name="m", quant="NVFP4"), task=Task(name="t"))
    agreed = 0
    order = np.array(question_order(questions, seed=0))
    for number, (old, new) in enumerate(answers(seed, questions, flips=flips, loss=loss, replicates=replicates)):
        sequential = number % 2 == 0
        score = ScoreEntry(
            score=float(old.mean()),
            outcomes=tuple(old.tolist()),
            unparseable=None,
            provenance=Provenance(kind="measured"),
        )
        entry = AccuracyEntry(
            path="baselines/accuracy/m.json",
            key="t-acc",
            metric="acc",
            higher_is_better=True,
            documents_digest="d",
            num_documents=questions,
            scores={"BF16": score},
        )
        measured = AccuracyResult(
            task="t",
            metric="acc",
            higher_is_better=True,
            score=float(new.mean()),
            outcomes=tuple(new.tolist()),
            documents_digest="d",
            sequential=sequential,
        )
        (verdict,) = judge((gate,), CaseResult(case=case, accuracy=measured), Baselines(accuracy=entry))
        looks = QUESTIONS if sequential else single_look("percent of the questions", 100)
        expected = judge_paired(old[order], new[order], tolerance=tolerance, looks=looks)
        agreed += isinstance(expected, PairedVerdict) and verdict.status.value == expected.status.value
    return agreed / replicates


# The peers.


def peer_performance(
    seed: Sequence[int], replicates: int, *, noise: Noise, loss: float, rounds: int = 10
) -> dict[str, Rates]:
    """Run the peers' one-shot rules on the same noise."""
    generator = np.random.default_rng(seed)

    def draw(sessions: int) -> Array:
        return np.exp(log_rounds(generator, (replicates, sessions), rounds, noise))

    history = draw(20).mean(axis=2)
    old, new = draw(1)[:, 0], draw(1)[:, 0] * (1 - loss)
    before, after = old.mean(axis=1), new.mean(axis=1)
    spread = history.std(axis=1, ddof=1) * math.sqrt(1 + 1 / 20)
    # Their history is the 3-point rolling mean of daily means.
    best = np.quantile((history[:, :-2] + history[:, 1:-1] + history[:, 2:]) / 3, 0.95, axis=1)
    welch = stats.ttest_ind(old, new, axis=1, equal_var=False, alternative="greater")
    ranks = stats.mannwhitneyu(old, new, axis=1, method="asymptotic", alternative="greater")
    limits = {
        "fixed 3 % on the mean": after < 0.97 * before,
        "fixed 5 % on the mean": after < 0.95 * before,
        # It judges times: a time of 1/throughput that rose by more than 5 %.
        "pytest-benchmark mean:5%": (1 / new).mean(axis=1) > 1.05 * (1 / old).mean(axis=1),
        "pytest-benchmark min:5%": (1 / new).min(axis=1) > 1.05 * (1 / old).min(axis=1),
        "Bencher t .99": after < history.mean(axis=1) - stats.t.ppf(0.99, 19) * spread,
        "Bencher t .977": after < history.mean(axis=1) - stats.t.ppf(0.977, 19) * spread,
        "TensorRT-LLM P95 -5 %": after < 0.95 * best,
        "TensorRT-LLM P95 -10 %": after < 0.9 * best,
        "Welch .05 over rounds": welch.pvalue < 0.05,
        "Mann-Whitney .05 over rounds": ranks.pvalue < 0.05,
    }
    return {name: Rates(fail=float(failed.mean())) for name, failed in limits.items()}


def peer_accuracy(
    seed: Sequence[int], replicates: int, *, questions: int, flips: float, loss: float
) -> dict[str, Rates]:
    """Run the peers' rules on counts; the reference is what was measured once, as with them."""
    generator = np.random.default_rng(seed)
    lost, gained = (flips + loss) / 2, (flips - loss) / 2
    cells = generator.multinomial(questions, [lost, ACCURACY - lost, gained, 1 - ACCURACY - gained], size=replicates)
    old, new = (cells[:, 0] + cells[:, 1]) / questions, (cells[:, 1] + cells[:, 2]) / questions
    z = stats.norm.isf(0.05)
    center, half = new + z**2 / (2 * questions), z * np.sqrt(new * (1 - new) / questions + z**2 / (4 * questions**2))
    wilson = (center - half) / (1 + z**2 / questions)
    error = np.sqrt((old * (1 - old) + new * (1 - new)) / (questions - 1))
    pairs, which = np.unique(cells[:, [0, 2]], axis=0, return_inverse=True)
    mid_p = np.array([mcnemar_mid_p(int(b), int(c)) for b, c in pairs])[which.ravel()]
    limits = {
        "TensorRT-LLM sigma = 50, one-sided z": 100 * (old - new) > z * 50 * math.sqrt(2 / questions),
        "lm-eval unpaired z, two-sided .05": abs(old - new) > stats.norm.isf(0.025) * error,
        "vLLM 5 % relative": abs(new - old) > 0.05 * old,
        "vLLM Wilson lower bound, -8 %": wilson < 0.92 * old,
        "MLPerf 99 %": new < 0.99 * old,
        "MLPerf 99.9 %": new < 0.999 * old,
        "McNemar mid-p .05": mid_p < 0.05,
    }
    return {name: Rates(fail=float(failed.mean())) for name, failed in limits.items()}


# Tables. A section hands its work to the pool at once, and prints when it is asked to.

Section = Callable[[], None]


def table(title: str, heads: Sequence[str], rows: Iterable[tuple[str, Iterable[object]]]) -> None:
    """Print one table as Markdown; the first head is that of the rows."""
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for name, cells in rows:
        print(f"| {name} | {' | '.join(map(str, cells))} |", flush=True)


def percent(value: float) -> str:
    return f"{100 * value:g} %"


def points(value: float) -> str:
    return f"{100 * value:g} pt"


def got(futures: Iterable[Future[Rates]]) -> list[Rates]:
    return [future.result() for future in futures]


def ours(pool: Executor, seed: int, replicates: int, noise: Noise) -> dict[str, list[Future[Rates]]]:
    """Start our performance rules at every loss."""
    rows = {}
    for tolerance, zone, stored in ((0.05, 0.01, 10), (0.05, 0.01, 20), (0.05, 0.025, 10), (0.03, 0.006, 10)):
        name = f"**stored**, {stored} sessions, tolerance {percent(tolerance)}, free zone {percent(zone)}"
        rule = partial(stored_rule, noise=noise, tolerance=tolerance, free_zone=zone, stored=stored)
        rows[name] = [pool.submit(rule, [seed, 1], replicates, loss=loss) for loss in LOSSES]
    for tolerance, zone in ((0.03, 0.006), (0.03, 0.015), (0.05, 0.01)):
        name = f"**interleaved**, tolerance {percent(tolerance)}, free zone {percent(zone)}"
        rule = partial(interleaved_rule, noise=noise, tolerance=tolerance, free_zone=zone)
        rows[name] = [pool.submit(rule, [seed, 2], replicates, loss=loss) for loss in LOSSES]
    return rows


def performance(pool: Executor, seed: int, replicates: int, noise: Noise) -> Section:
    """Ours and the peers' rules at every loss, in one cell of noise."""
    rows = ours(pool, seed, replicates, noise)
    peers = [pool.submit(peer_performance, [seed, 3], replicates, noise=noise, loss=loss) for loss in LOSSES]

    def show() -> None:
        columns = [peer.result() for peer in peers]
        table(
            f"Performance, {noise}",
            ["rule", *map(percent, LOSSES)],
            [
                *((name, got(futures)) for name, futures in rows.items()),
                *((name, [column[name] for column in columns]) for name in columns[0]),
            ],
        )

    return show


def every_cell(pool: Executor, seed: int, replicates: int, grid: Sequence[Noise]) -> Section:
    """Our defaults in every cell of noise, and what each peer does to unchanged runs and to 5 % regressions there."""
    rules = (("stored, 10 sessions", stored_rule, 0.05), ("interleaved", interleaved_rule, 0.03))

    def key(rule: object, noise: Noise) -> Noise:
        """Interleaved engines share their session: what is between sessions cancels."""
        return Noise(within=noise.within, between=0.0) if rule is interleaved_rule else noise

    mine = [
        {
            noise: [pool.submit(rule, [seed, 1], replicates, noise=noise, tolerance=margin, loss=at) for at in LOSSES]
            for noise in dict.fromkeys(key(rule, noise) for noise in grid)
        }
        for _, rule, margin in rules
    ]
    peers = [
        [pool.submit(peer_performance, [seed, 3], replicates, noise=noise, loss=loss) for loss in (0.0, 0.05)]
        for noise in grid
    ]

    def show() -> None:
        found = [[peer.result() for peer in pair] for pair in peers]
        summary = {}
        for (name, rule, margin), cells in zip(rules, mine, strict=True):
            rates = {noise: got(futures) for noise, futures in cells.items()}
            title = f"Ours in every cell: {name}, tolerance {percent(margin)}, default free zone"
            table(title, ["noise", *map(percent, LOSSES)], ((str(noise), row) for noise, row in rates.items()))
            rows = [rates[key(rule, noise)] for noise in grid]
            summary[f"**{name}, tolerance {percent(margin)}**"] = [
                f"{share(row[0].fail)} {share(row[-1].fail)}" for row in rows
            ]
        for name in found[0][0]:
            summary[name] = [f"{share(calm[name].fail)} {share(bad[name].fail)}" for calm, bad in found]
        heads = ["rule", *map(short, grid)]
        table("FAIL of unchanged runs and of 5 % regressions, by CV / between", heads, summary.items())

    return show


def short(noise: Noise) -> str:
    return f"{100 * noise.within:g} / {100 * noise.between:g} %"


def accuracy(pool: Executor, seed: int, replicates: int, questions: int, flips: float) -> Section:
    """Ours and the peers' rules at every loss, at one number of questions and share of flips."""
    tolerances = (0.01, 0.02)
    mine = [
        [
            pool.submit(
                paired_rule,
                [seed, 4],
                replicates,
                questions=questions,
                flips=flips,
                tolerance=tolerance,
                loss=loss,
            )
            for loss in POINTS
        ]
        for tolerance in tolerances
    ]
    peers = [
        pool.submit(peer_accuracy, [seed, 5], 20_000, questions=questions, flips=flips, loss=loss) for loss in POINTS
    ]

    def show() -> None:
        columns = [peer.result() for peer in peers]
        names = [f"**paired**, tolerance {points(limit)}, free zone {points(limit / 2)}" for limit in tolerances]
        table(
            f"Accuracy, {questions:,} questions, {percent(flips)} flips",
            ["rule", *map(points, POINTS)],
            [
                *zip(names, map(got, mine), strict=True),
                *((name, [column[name] for column in columns]) for name in columns[0]),
            ],
        )

    return show


def scores(pool: Executor, seed: int, replicates: int) -> Section:
    """The two errors of the sign-flip bound at the edges of the margins, and what it finds."""
    losses = ("no loss", "free zone", "tolerance", "twice the tolerance")
    factors = (0.0, 0.5, 1.0, 2.0)
    runs = {
        f"{kind}, tolerance {points(tolerance)}": [
            pool.submit(scores_rule, [seed, 12], replicates, kind=kind, loss=factor * tolerance) for factor in factors
        ]
        for kind, (_, tolerance) in SCORES.items()
    }

    def show() -> None:
        title = "Sign-flip bound: FAIL at the free zone and PASS at the tolerance are its errors, .05 each by design"
        table(title, ["scores", *losses], ((name, got(futures)) for name, futures in runs.items()))

    return show


def suite(pool: Executor, seed: int, replicates: int, gates: int = 40) -> Section:
    """How often any of many unchanged, independent gates fails, by the alpha of one gate, and what that costs."""
    plans = [
        (stored, zone, alpha)
        for stored, zone in ((10, 0.01), (10, 0.025), (20, 0.01))
        for alpha in (ALPHA, 0.01, ALPHA / gates)
    ]
    runs = [
        [
            pool.submit(
                stored_rule,
                [seed, 9],
                replicates,
                noise=PROMISED,
                tolerance=0.05,
                free_zone=zone,
                loss=loss,
                stored=stored,
                alpha=alpha,
            )
            for loss in (0.0, 0.05)
        ]
        for stored, zone, alpha in plans
    ]

    def show() -> None:
        rows = []
        full = 0.0
        for (stored, zone, alpha), futures in zip(plans, runs, strict=True):
            calm, bad = got(futures)
            full = bad.fail if alpha == ALPHA else full
            any_fail, any_other = (1 - (1 - rate) ** gates for rate in (calm.fail, 1 - calm.passed))
            lost = share(full - bad.fail) if alpha != ALPHA else ""
            rows.append(
                (str(stored), (percent(zone), f"{alpha:g}", share(any_fail), share(any_other), calm, bad, lost))
            )
        heads = [
            "stored",
            "free zone",
            "alpha",
            "any FAIL",
            "any but PASS",
            "one gate, unchanged",
            "one gate, 5 % loss",
        ]
        table(
            f"{gates} unchanged, independent gates, stored sessions, tolerance 5 %, {PROMISED}",
            [*heads, "power lost"],
            rows,
        )

    return show


SPREADS = (0.0025, 0.005, 0.01, 0.015, 0.02)
TOLERANCES = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15)
POINT_TOLERANCES = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.08, 0.1, 0.15)


def smallest(tried: Sequence[float], rates: Callable[[float, float], Rates]) -> float:
    """Find the first tolerance that passes 95 % of unchanged runs and fails 90 % of losses of its own size; else NaN.

    `rates` takes tolerance and loss. A wider tolerance does not do worse, so the search halves what is left.
    """

    def good(tolerance: float) -> bool:
        return rates(tolerance, 0.0).passed >= 0.95 and rates(tolerance, tolerance).fail >= 0.9

    found = bisect_left(tried, True, key=good)
    return tried[found] if found < len(tried) else math.nan


def smallest_of_sessions(seed: Sequence[int], replicates: int, *, sd: float, stored: int) -> float:
    """Find the smallest tolerance that stored sessions resolve.

    `sd` is that of log session means. No `stored` sessions: 10 interleaved blocks, `sd` is that of their differences.
    """

    def rates(tolerance: float, loss: float) -> Rates:
        logs = np.random.default_rng(seed).normal(0, sd, (replicates, (stored or CANDIDATES) + CANDIDATES))
        logs[:, -CANDIDATES if stored else 0 :] += math.log1p(-loss)
        runs = np.exp(logs).tolist()
        if not stored:
            return tally(
                judge_blocks(
                    [Block(reference=(1.0,), candidate=(value,)) for value in run],
                    higher_is_better=True,
                    tolerance=tolerance,
                )
                for run in runs
            )
        return tally(
            judge_sessions(
                [[value] for value in run[:stored]],
                [[value] for value in run[stored:]],
                higher_is_better=True,
                tolerance=tolerance,
            )
            for run in runs
        )

    return smallest(TOLERANCES, rates)


def smallest_of_questions(seed: Sequence[int], replicates: int, *, questions: int, flips: float) -> float:
    """Find the smallest tolerance that so many questions resolve."""

    def rates(tolerance: float, loss: float) -> Rates:
        # A loss is made of flips: there are at least as many.
        share_of_flips = max(flips, loss)
        return paired_rule(seed, replicates, questions=questions, flips=share_of_flips, tolerance=tolerance, loss=loss)

    return smallest(POINT_TOLERANCES, rates)


def which_tolerance(pool: Executor, seed: int, replicates: int) -> Section:
    """Which tolerance the sessions, blocks or questions at hand can resolve."""
    sessions = {
        f"{stored} stored sessions" if stored else "interleaved, 10 blocks": [
            pool.submit(smallest_of_sessions, [seed, 10], replicates, sd=sd, stored=stored) for sd in SPREADS
        ]
        for stored in (5, 10, 20, 0)
    }
    flips = (0.01, 0.03, 0.05, 0.1)
    questions = {
        f"{count:,} questions": [
            pool.submit(
                smallest_of_questions,
                [seed, 11],
                replicates if count < 10_000 else max(200, replicates // 4),
                questions=count,
                flips=rate,
            )
            for rate in flips
        ]
        for count in (250, 1_319, 5_000, 14_042)
    }

    def show() -> None:
        title = "Smallest tolerance at which 95 % of unchanged runs PASS and 90 % of losses of that size FAIL"
        table(
            f"{title}, by the spread of log session means, or of block differences",
            ["at hand", *map(percent, SPREADS)],
            ((name, [at_most(item.result(), percent, TOLERANCES) for item in row]) for name, row in sessions.items()),
        )
        table(
            f"{title}, by the share of answers that flip",
            ["at hand", *map(percent, flips)],
            (
                (name, [at_most(item.result(), points, POINT_TOLERANCES) for item in row])
                for name, row in questions.items()
            ),
        )

    return show


def at_most(value: float, write: Callable[[float], str], tried: Sequence[float]) -> str:
    return f"above {write(tried[-1])}" if math.isnan(value) else write(value)


def promises(pool: Executor, seed: int, replicates: int, paired_replicates: int) -> Callable[[], bool]:
    """Measure what is promised; print it, and return whether all is kept."""
    stored = [
        pool.submit(stored_rule, [seed, 6], replicates, noise=PROMISED, tolerance=0.05, loss=loss)
        for loss in (0.0, 0.05)
    ]
    blocks = [
        pool.submit(interleaved_rule, [seed, 7], replicates, noise=PROMISED, tolerance=0.03, loss=loss)
        for loss in (0.0, 0.03)
    ]
    answered = pool.submit(
        paired_rule, [seed, 8], paired_replicates, questions=14_042, flips=0.05, tolerance=0.02, loss=0.0
    )
    road = pool.submit(whole_road, [seed, 6], min(replicates, 1000), noise=PROMISED, tolerance=0.05, loss=0.03)
    evaluated = pool.submit(whole_evaluation, [seed, 8], 300, questions=1_319, flips=0.05, tolerance=0.02, loss=0.01)

    def show() -> bool:
        (calm, bad), (calm_blocks, bad_blocks), paired = got(stored), got(blocks), answered.result()
        rows = (
            ("stored, tolerance 5 %: FAIL of unchanged runs", calm.fail, "<=", 0.01),
            ("stored, tolerance 5 %: FAIL of 5 % regressions", bad.fail, ">=", 0.94),
            ("stored, tolerance 5 %: PASS of 5 % regressions", bad.passed, "<=", 0.05),
            ("stored, tolerance 5 %: mean candidate sessions, unchanged", calm.used, "<=", 2.5),
            ("stored, tolerance 5 %: mean candidate sessions, 5 % regressions", bad.used, "<=", 2.5),
            ("interleaved, tolerance 3 %: FAIL of unchanged runs", calm_blocks.fail, "<=", 0.01),
            ("interleaved, tolerance 3 %: FAIL of 3 % regressions", bad_blocks.fail, ">=", 0.7),
            ("interleaved, tolerance 3 %: mean candidate rounds", max(calm_blocks.used, bad_blocks.used), "<=", 20.0),
            ("paired, tolerance 2 points: PASS without a loss", paired.passed, ">=", 0.98),
            ("paired, tolerance 2 points: mean share of the questions", paired.used / 14_042, "<=", 1 / 3),
            ("stored: `judge()` gives the simulated verdict", road.result()[1], ">=", 1.0),
            ("paired: `judge()` gives the simulated verdict", evaluated.result(), ">=", 1.0),
        )
        kept = [value <= limit if side == "<=" else value >= limit for _, value, side, limit in rows]
        table(
            f"Promised at {PROMISED}, 10 stored sessions; 14,042 questions, 5 % flips. Default free zones:"
            " 1 %, 0.6 %, 1 point",
            ["what", "measured", "promised", "kept"],
            (
                (what, (f"{value:.4f}", f"{side} {limit:.3g}", "yes" if kept_it else "**no**"))
                for (what, value, side, limit), kept_it in zip(rows, kept, strict=True)
            ),
        )
        return all(kept)

    return show


def main() -> int:
    """Print the tables; return 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--replicates",
        type=int,
        default=4000,
        help="Replicates per performance cell; 5 times as many for what is promised, a quarter for 14,042 questions",
    )
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="Processes")
    parser.add_argument("--quick", action="store_true", help="One cell of each, 500 replicates: some seconds")
    parser.add_argument("--acceptance", action="store_true", help="Print only what is promised")
    options = parser.parse_args()
    seed, count = options.seed, 500 if options.quick else options.replicates
    few = max(1, count // 4)
    start = time.perf_counter()
    print(f"{count} replicates, seed {seed}: FAIL/PASS/INCONCLUSIVE (mean sessions, rounds or questions used)")
    with ProcessPoolExecutor(options.jobs) as pool:
        kept = promises(pool, seed, count if options.quick else 5 * count, count)
        sections: list[Section] = []
        if not options.acceptance:
            grid = (PROMISED,) if options.quick else GRID
            sections += [
                performance(pool, seed, count, noise) for noise in (SIDE_BY_SIDE[:1] if options.quick else SIDE_BY_SIDE)
            ]
            sections += [every_cell(pool, seed, count, grid), suite(pool, seed, 5 * count)]
            sections += [
                accuracy(pool, seed, number, questions, flips)
                for questions, number in ((1_319, count), (14_042, few))
                for flips in ((0.05,) if options.quick else (0.05, 0.1))
            ]
            sections.append(scores(pool, seed, max(200, count // 2)))
            sections.append(which_tolerance(pool, seed, max(200, count // 2)))
        good_enough = kept()
        for show in sections:
            show()
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0 if good_enough else 1


if __name__ == "__main__":
    raise SystemExit(main())
