"""How often is each verdict given? Simulates the product's own judges and the rules of its peers, side by side.

Performance: log(metric) of session s, round r = shift + B_s + D + e - O. B: between sessions (sd 0, 1 or 2 %). D + e: within
a session (CV 1, 2 or 3 %), half of the variance AR(1) with rho .8, half white. O: 3 % of the rounds are slow, exponential,
mean 4 %. A loss of x multiplies throughput by 1 - x. The model is an assumption: absolute rates move with it. Our stored
rule sees 10 stored sessions of 5 rounds and candidate sessions of 5 rounds; the interleaved rule A B B A blocks that share
one session; the peers one session of 10 rounds against one, or against 20 of history (Bencher, TensorRT-LLM).

Accuracy: the reference is right on 75 %; 5 or 10 % of the answers flip; the loss is in points.

`python benchmarks/operating_characteristics.py --quick` takes some seconds; the default a few minutes on one core.
FAIL / PASS / INCONCLUSIVE are shares of the replicates; Monte Carlo error is at most 0.5 / sqrt(replicates).
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pytest_inferperf.gates.looks import ALPHA, Decision, Unresolvable
from pytest_inferperf.gates.paired import PairedVerdict, judge_paired
from pytest_inferperf.gates.sessions import Block, SessionsVerdict, judge_blocks, judge_sessions

Array = NDArray[np.float64]

LOSSES = (0.0, 0.01, 0.02, 0.03, 0.05)
POINTS = (0.0, 0.005, 0.01, 0.02)
ROUNDS = 5
STORED_SESSIONS = 10
ACCURACY = 0.75
RHO = 0.8


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A cell of the noise model, as shares."""

    within: float
    """Standard deviation of the rounds of one session."""

    between: float
    """Standard deviation of sessions."""


CELLS = (
    Noise(within=0.01, between=0.0),
    Noise(within=0.02, between=0.01),
    Noise(within=0.02, between=0.02),
    Noise(within=0.03, between=0.01),
)
PROMISED = CELLS[1]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a rule did at one true loss."""

    fail: float
    passed: float
    inconclusive: float
    used: float
    """Mean sessions, rounds or questions of the candidate."""

    refused: float = 0.0
    """Share of baselines that cannot resolve the tolerance, so that nothing is judged; part of `inconclusive`."""

    def __str__(self) -> str:
        shares = f"{self.fail:.3f}/{self.passed:.3f}/{self.inconclusive:.3f} ({self.used:,.1f})"
        return f"{shares} {self.refused:.3f} refused" if self.refused else shares


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


def stored_rule(
    generator: np.random.Generator,
    replicates: int,
    *,
    noise: Noise,
    tolerance: float,
    free_zone: float | None,
    loss: float,
    stored: int = STORED_SESSIONS,
    alpha: float = ALPHA,
) -> Rates:
    """Run `judge_sessions` against stored sessions."""
    before = as_sessions(log_rounds(generator, (replicates, stored), ROUNDS, noise))
    shifted = log_rounds(generator, (replicates, 5), ROUNDS, noise) + math.log1p(-loss)
    return tally(
        judge_sessions(old, new, higher_is_better=True, tolerance=tolerance, free_zone=free_zone, alpha=alpha)
        for old, new in zip(before, as_sessions(shifted), strict=True)
    )


def interleaved_rule(
    generator: np.random.Generator,
    replicates: int,
    *,
    noise: Noise,
    tolerance: float,
    free_zone: float | None,
    loss: float,
) -> Rates:
    """Run `judge_blocks` on 10 A B B A blocks that share one session; `used` is candidate rounds."""
    logs = log_rounds(generator, (replicates,), 40, noise).reshape(replicates, 10, 4)
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


def peer_performance(
    generator: np.random.Generator, replicates: int, *, noise: Noise, loss: float, rounds: int = 10
) -> dict[str, Rates]:
    """Run the peers' one-shot rules on the same noise."""

    def draw(sessions: int) -> Array:
        return np.exp(log_rounds(generator, (replicates, sessions), rounds, noise))

    history = draw(20).mean(axis=2)
    old, new = draw(1)[:, 0], draw(1)[:, 0] * (1 - loss)
    before, after = old.mean(axis=1), new.mean(axis=1)
    spread = history.std(axis=1, ddof=1) * math.sqrt(1 + 1 / 20)
    # Their history is the 3-point rolling mean of daily means.
    rolling = (history[:, :-2] + history[:, 1:-1] + history[:, 2:]) / 3
    limits = {
        "fixed 5 % on the mean": after < 0.95 * before,
        # It judges times: a time of 1/throughput that rose by more than 5 %.
        "pytest-benchmark mean:5%": (1 / new).mean(axis=1) > 1.05 * (1 / old).mean(axis=1),
        "Bencher t .99": after < history.mean(axis=1) - stats.t.ppf(0.99, 19) * spread,
        "TensorRT-LLM 5 % against P95": after < 0.95 * np.quantile(rolling, 0.95, axis=1),
    }
    return {
        name: Rates(fail=float(failed.mean()), passed=1 - float(failed.mean()), inconclusive=0.0, used=float(rounds))
        for name, failed in limits.items()
    }


def answers(
    generator: np.random.Generator, questions: int, *, flips: float, loss: float, replicates: int
) -> Iterator[tuple[Array, Array]]:
    """Draw reference and candidate answers with a given share of flips and a given loss."""
    lost, gained = (flips + loss) / 2, (flips - loss) / 2
    for _ in range(replicates):
        draw = generator.random(questions)
        old = (draw < ACCURACY).astype(np.float64)
        new = old.copy()
        new[draw < lost] = 0.0
        new[draw > 1 - gained] = 1.0
        yield old, new


def paired_rule(
    generator: np.random.Generator,
    replicates: int,
    *,
    questions: int,
    flips: float,
    tolerance: float,
    free_zone: float,
    loss: float,
) -> Rates:
    """Run `judge_paired`. Answers are drawn independently, so they are in random order already."""
    return tally(
        judge_paired(old, new, tolerance=tolerance, free_zone=free_zone)
        for old, new in answers(generator, questions, flips=flips, loss=loss, replicates=replicates)
    )


def peer_accuracy(
    generator: np.random.Generator, replicates: int, *, questions: int, flips: float, loss: float
) -> dict[str, Rates]:
    """Run the peers' rules on counts; the reference is what was measured once, as with them."""
    lost, gained = (flips + loss) / 2, (flips - loss) / 2
    cells = generator.multinomial(questions, [lost, ACCURACY - lost, gained, 1 - ACCURACY - gained], size=replicates)
    old, new = (cells[:, 0] + cells[:, 1]) / questions, (cells[:, 1] + cells[:, 2]) / questions
    limits = {
        "TensorRT-LLM sigma=50, unpaired": 100 * (old - new) > 1.6449 * 50 * math.sqrt(2 / questions),
        "vLLM 5 % relative": abs(new - old) > 0.05 * old,
        "MLPerf 99 %": new < 0.99 * old,
    }
    return {
        name: Rates(fail=float(failed.mean()), passed=1 - float(failed.mean()), inconclusive=0.0, used=float(questions))
        for name, failed in limits.items()
    }


def table(title: str, unit: str, losses: tuple[float, ...], rows: Iterable[tuple[str, list[Rates]]]) -> None:
    """Print one table as Markdown."""
    heads = " | ".join("0" if loss == 0 else f"{100 * loss:g} {unit}" for loss in losses)
    print(f"\n{title}\n\n| rule | {heads} |\n|{' --- |' * (len(losses) + 1)}", flush=True)
    for name, rates in rows:
        print(f"| {name} | {' | '.join(map(str, rates))} |", flush=True)


def at_each(losses: tuple[float, ...], run: Callable[[float], Rates]) -> list[Rates]:
    return [run(loss) for loss in losses]


def performance_rows(seed: int, replicates: int, noise: Noise) -> Iterator[tuple[str, list[Rates]]]:
    """Ours, then the peers', in one cell of noise."""
    for tolerance, zone, stored in ((0.05, 0.01, 10), (0.05, 0.01, 20), (0.05, 0.025, 10), (0.03, 0.006, 10)):
        yield (
            f"**stored**, {stored} sessions, tolerance {100 * tolerance:g} %, free zone {100 * zone:g} %",
            at_each(
                LOSSES,
                lambda loss, tolerance=tolerance, zone=zone, stored=stored: stored_rule(  # type: ignore[misc]
                    np.random.default_rng([seed, 1]),
                    replicates,
                    tolerance=tolerance,
                    free_zone=zone,
                    loss=loss,
                    stored=stored,
                    noise=noise,
                ),
            ),
        )
    for tolerance, zone in ((0.03, 0.006), (0.03, 0.015), (0.05, 0.01)):
        yield (
            f"**interleaved**, tolerance {100 * tolerance:g} %, free zone {100 * zone:g} %",
            at_each(
                LOSSES,
                lambda loss, tolerance=tolerance, zone=zone: interleaved_rule(  # type: ignore[misc]
                    np.random.default_rng([seed, 2]),
                    replicates,
                    tolerance=tolerance,
                    free_zone=zone,
                    loss=loss,
                    noise=noise,
                ),
            ),
        )
    peers = [peer_performance(np.random.default_rng([seed, 3]), replicates, loss=loss, noise=noise) for loss in LOSSES]
    for name in peers[0]:
        yield name, [column[name] for column in peers]


def accuracy_rows(seed: int, replicates: int, questions: int, flips: float) -> Iterator[tuple[str, list[Rates]]]:
    """Ours, then the peers', at one number of questions and share of flips."""
    for tolerance in (0.01, 0.02):
        yield (
            f"**paired**, tolerance {100 * tolerance:g} points, free zone {50 * tolerance:g}",
            at_each(
                POINTS,
                lambda loss, tolerance=tolerance: paired_rule(  # type: ignore[misc]
                    np.random.default_rng([seed, 4]),
                    replicates,
                    questions=questions,
                    flips=flips,
                    tolerance=tolerance,
                    free_zone=tolerance / 2,
                    loss=loss,
                ),
            ),
        )
    peers = [
        peer_accuracy(np.random.default_rng([seed, 5]), 20 * replicates, questions=questions, flips=flips, loss=loss)
        for loss in POINTS
    ]
    for name in peers[0]:
        yield name, [column[name] for column in peers]


def suite(seed: int, replicates: int, gates: int = 40) -> None:
    """Print how often any of many unchanged, independent gates fails, by the alpha of one gate."""
    print(f"\n{gates} gates, stored, tolerance 5 %, CV 2 %, between sessions 1 %: any FAIL is 1 - (1 - p)^{gates}\n")
    print("| alpha | free zone | any FAIL, unchanged | one gate, unchanged | one gate, 5 % loss |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for alpha in (ALPHA, 0.01, ALPHA / gates):
        for zone in (0.01, 0.025):
            calm, bad = (
                stored_rule(
                    np.random.default_rng([seed, 9]),
                    replicates,
                    noise=PROMISED,
                    tolerance=0.05,
                    free_zone=zone,
                    loss=loss,
                    alpha=alpha,
                )
                for loss in (0.0, 0.05)
            )
            print(f"| {alpha:g} | {100 * zone:g} % | {1 - (1 - calm.fail) ** gates:.3f} | {calm} | {bad} |", flush=True)


def acceptance(seed: int, replicates: int, paired_replicates: int) -> bool:
    """Print the promised rates beside what is measured; return whether all are kept."""

    def stored(loss: float) -> Rates:
        generator = np.random.default_rng([seed, 6])
        return stored_rule(generator, replicates, tolerance=0.05, free_zone=0.01, loss=loss, noise=PROMISED)

    def blocks(loss: float) -> Rates:
        generator = np.random.default_rng([seed, 7])
        return interleaved_rule(generator, replicates, tolerance=0.03, free_zone=None, loss=loss, noise=PROMISED)

    calm, bad = stored(0.0), stored(0.05)
    calm_blocks, bad_blocks = blocks(0.0), blocks(0.03)
    paired = paired_rule(
        np.random.default_rng([seed, 8]),
        paired_replicates,
        questions=14_042,
        flips=0.05,
        tolerance=0.02,
        free_zone=0.01,
        loss=0.0,
    )
    promises = (
        ("stored 5 %: FAIL of unchanged runs", calm.fail, "<=", 0.01),
        ("stored 5 %: FAIL of 5 % regressions", bad.fail, ">=", 0.94),
        ("stored 5 %: PASS of 5 % regressions", bad.passed, "<=", 0.05),
        ("stored 5 %: mean candidate sessions, unchanged", calm.used, "<=", 2.5),
        ("stored 5 %: mean candidate sessions, regressed", bad.used, "<=", 2.5),
        ("interleaved 3 %: FAIL of unchanged runs", calm_blocks.fail, "<=", 0.01),
        ("interleaved 3 %: FAIL of 3 % regressions", bad_blocks.fail, ">=", 0.7),
        ("interleaved 3 %: mean candidate rounds", max(calm_blocks.used, bad_blocks.used), "<=", 20.0),
        ("paired 2 points: PASS without a loss", paired.passed, ">=", 0.98),
        ("paired 2 points: mean share of the questions", paired.used / 14_042, "<=", 1 / 3),
    )
    print(
        "\nPromised at CV 2 %, between sessions 1 %\n\n| what | measured | promised | kept |\n| --- | --- | --- | --- |"
    )
    kept = [value <= limit if side == "<=" else value >= limit for _, value, side, limit in promises]
    for (what, value, side, limit), good in zip(promises, kept, strict=True):
        print(f"| {what} | {value:.4f} | {side} {limit:.3g} | {'yes' if good else '**no**'} |")
    return all(kept)


def main() -> int:
    """Print the tables; return 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--replicates",
        type=int,
        default=4000,
        help="Replicates per performance cell; a quarter of it for 14,042 questions",
    )
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--quick", action="store_true", help="One cell, 500 replicates")
    parser.add_argument("--acceptance", action="store_true", help="Print only what is promised")
    options = parser.parse_args()
    replicates = 500 if options.quick else options.replicates
    start = time.perf_counter()
    print(
        f"{replicates} replicates, seed {options.seed}: FAIL/PASS/INCONCLUSIVE (mean sessions, rounds or questions used)"
    )
    kept = acceptance(options.seed, replicates if options.quick else 5 * replicates, replicates)
    if not options.acceptance:
        for noise in (PROMISED,) if options.quick else CELLS:
            title = f"Performance, CV {100 * noise.within:g} %, between sessions {100 * noise.between:g} %"
            table(title, "%", LOSSES, performance_rows(options.seed, replicates, noise))
        suite(options.seed, replicates)
        for questions, count in ((1_319, replicates), (14_042, max(1, replicates // 4))):
            for flips in (0.05,) if options.quick else (0.05, 0.1):
                title = f"Accuracy, {questions:,} questions, {100 * flips:g} % flips"
                table(title, "pt", POINTS, accuracy_rows(options.seed, count, questions, flips))
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
