"""How often is a frontier gate wrong? Simulates the product's own judge on the noise of `operating_characteristics`.

A sweep of P loads, each with a throughput that doubles from load to load and a speed per user that falls by a third, so
that no point covers another within the tolerance. 10 or 20 stored sessions of 5 rounds, up to 5 candidate sessions.
Noise of every point, figure and session is drawn on its own: what points share can only make their gate alarm less often.
A loss takes as much of both figures, at the middle point or at all.

A cell reads FAIL/PASS/INCONCLUSIVE (mean candidate sessions). "Gates apart" is what the same sessions say to a floor on
each figure of each point at alpha .05 each: the share of runs in which any of the 2 P fails. Returns 1 when an error that
is held at .05 is measured above it by more than three Monte Carlo errors.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from benchmarks.operating_characteristics import (
    CANDIDATES,
    PROMISED,
    ROUNDS,
    Noise,
    Rates,
    log_rounds,
    percent,
    share,
    table,
)
from pytest_inferperf.gates.dominance import frontier_of, judge_dominance
from pytest_inferperf.gates.looks import ALPHA, Decision
from pytest_inferperf.gates.sessions import SessionsVerdict, judge_sessions

LOSSES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08)
BOTH_HIGHER = (True, True)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the gate said, and what gates on each figure would have."""

    frontier: Rates
    apart: float
    """Share of runs in which any of the separate gates fails."""

    blamed: float
    """Share of the FAILs that name a point without a loss."""


def places(points: int) -> list[tuple[float, float]]:
    """Return throughput and speed per user of every load."""
    return [(100.0 * 2**index, 100.0 * 0.67**index) for index in range(points)]


def simulate(
    seed: Sequence[int],
    replicates: int,
    *,
    points: int,
    stored: int,
    loss: float,
    everywhere: bool = False,
    noise: Noise = PROMISED,
    tolerance: float = 0.05,
    apart: bool = True,
) -> Found:
    """Judge sweeps that lost as much at the middle point, or `everywhere`."""
    generator = np.random.default_rng(seed)
    worse = set(range(points)) if everywhere else {points // 2}
    counts: Counter[Decision] = Counter()
    used = alarms = blamed = 0
    levels = np.log(np.array(places(points)))[:, :, None, None]
    cost = np.array([math.log1p(-loss) if index in worse else 0.0 for index in range(points)])[:, None, None, None]
    for _ in range(replicates):
        before = np.exp(levels + log_rounds(generator, (points, 2, stored), ROUNDS, noise)).tolist()
        after = np.exp(levels + cost + log_rounds(generator, (points, 2, CANDIDATES), ROUNDS, noise)).tolist()
        medians = [(float(np.median(x)), float(np.median(y))) for x, y in before]
        frontier = frontier_of(medians, BOTH_HIGHER)
        found = judge_dominance(
            before, after, frontier=frontier, directions=BOTH_HIGHER, tolerances=[tolerance] * len(frontier)
        )
        counts[found.status] += 1
        used += found.used
        if found.status is Decision.FAIL:
            blamed += any(item.fell and (item.point not in worse or not loss) for item in found.standings)
        if apart:
            verdicts = (
                judge_sessions(old, new, higher_is_better=True, tolerance=tolerance)
                for one, other in zip(before, after, strict=True)
                for old, new in zip(one, other, strict=True)
            )
            alarms += any(isinstance(item, SessionsVerdict) and item.status is Decision.FAIL for item in verdicts)
    return Found(
        frontier=Rates(
            fail=counts[Decision.FAIL] / replicates,
            passed=counts[Decision.PASS] / replicates,
            inconclusive=counts[Decision.INCONCLUSIVE] / replicates,
            used=used / replicates,
        ),
        apart=alarms / replicates if apart else math.nan,
        blamed=blamed / max(1, counts[Decision.FAIL]),
    )


def main() -> int:
    """Print the tables; return 1 when an error is above what it is held at."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2000, help="Replicates per cell")
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="Processes")
    options = parser.parse_args()
    start = time.perf_counter()
    shapes = [(points, stored) for points in (3, 5, 8) for stored in (10, 20)]
    with ProcessPoolExecutor(options.jobs) as pool:
        cells = {
            shape: [
                pool.submit(
                    simulate, [options.seed, 20], options.replicates, points=shape[0], stored=shape[1], loss=loss
                )
                for loss in LOSSES
            ]
            for shape in shapes
        }
        edges = {
            shape: pool.submit(
                simulate,
                [options.seed, 21],
                options.replicates,
                points=shape[0],
                stored=shape[1],
                loss=0.01,
                everywhere=True,
            )
            for shape in shapes
        }
        rows = {shape: [item.result() for item in row] for shape, row in cells.items()}
        edge = {shape: item.result() for shape, item in edges.items()}
    print(f"{options.replicates} replicates, seed {options.seed}, {PROMISED}, tolerance 5 %, free zone 1 %")
    names = {shape: f"{shape[0]} points, {shape[1]} stored sessions" for shape in shapes}
    heads = ["at one point", *map(percent, LOSSES), "1 % at every point"]
    table(
        "The gate",
        heads,
        [(names[at], [*(item.frontier for item in row), edge[at].frontier]) for at, row in rows.items()],
    )
    table(
        "Gates apart: any fails",
        heads,
        [(names[at], [*(share(item.apart) for item in row), share(edge[at].apart)]) for at, row in rows.items()],
    )
    table(
        "FAILs that name a point without a loss",
        ["at one point", *map(percent, LOSSES[1:])],
        [(names[at], [share(item.blamed) for item in row[1:]]) for at, row in rows.items()],
    )
    most = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / options.replicates)
    kept = all(
        row[0].frontier.fail <= most
        and row[LOSSES.index(0.05)].frontier.passed <= most
        and edge[at].frontier.fail <= most
        for at, row in rows.items()
    )
    print(f"\nerrors held at {ALPHA}: {'yes' if kept else 'NO'}; {time.perf_counter() - start:.0f} s")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
