"""A store of many generated results: how fast `trend` answers, what it finds of planted steps, what it sees in noise.

    python benchmarks/trend_store.py --results 100000 --folder FOLDER

Two hundred cases are measured in turn, three metrics each, with a session sd of 1 % and a lag-1 correlation of 0.5
between successive results. Ten of the 600 series get one step of 4 to 8 %. FOLDER needs room for the JSON files: 2 KB each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pytest_inferperf.history.series import Trend, find_trend
from pytest_inferperf.history.store import compact, open_store
from pytest_inferperf.trend.potts import find_steps

CASES = 200
METRICS = {"output_throughput_per_gpu": 18000.0, "ttft_ms.p99": 180.0, "tpot_ms.p99": 21.0}
SD = 0.01
CORRELATION = 0.5
PLANTED = 10


def noise(rng: np.random.Generator, series: int, points: int, correlation: float) -> NDArray[np.float64]:
    """Draw stationary first-order series of sd `SD`, one in each row."""
    values = rng.normal(size=(series, points)) * SD
    for point in range(1, points):
        values[:, point] = correlation * values[:, point - 1] + math.sqrt(1 - correlation**2) * values[:, point]
    return values


def plant(rng: np.random.Generator, values: NDArray[np.float64]) -> dict[tuple[int, int], tuple[int, float]]:
    """Add one step to each of `PLANTED` series; return (case, metric) to its place and size."""
    cases, metrics, points = values.shape
    planted = {}
    for number in rng.choice(cases * metrics, PLANTED, replace=False):
        case, metric = divmod(int(number), metrics)
        at = int(rng.integers(points // 10, points - points // 10))
        size = float(rng.uniform(0.04, 0.08) * rng.choice([-1, 1]))
        values[case, metric, at:] += size
        planted[case, metric] = (at, size)
    return planted


def results(values: NDArray[np.float64]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every result file."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    cases, _, points = values.shape
    for point in range(points):
        for case in range(cases):
            created = start + timedelta(minutes=5 * (point * cases + case))
            level = {
                name: base * math.exp(values[case, column, point])
                for column, (name, base) in enumerate(METRICS.items())
            }
            yield f"{created:%Y-%m-%d}/{created:%H%M}-c{case}.json", json.dumps(result(case, point, created, level))


def result(case: int, point: int, created: datetime, metrics: dict[str, float]) -> dict[str, object]:
    """Make the result file of one run, as small as real ones come."""
    concurrency = case + 1
    context = {"git_commit": f"{point:012x}", "driver": "570.1", "torch": "2.13.0"}
    round_ = {
        "duration_s": 1.0,
        "num_requests": concurrency,
        "num_failed_requests": 0,
        "input_tokens": 1024,
        "output_tokens": 1024,
        "metrics": metrics,
    }
    engine = {
        "backend": "tensorrt-llm",
        "hardware": {"name": "Generated GPU", "count": 8, "kind": "gpu"},
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": None,
        "compute_dtype": "bfloat16",
        "simulated": False,
        "max_model_len": 4096,
        "checkpoint": "/models/llama",
        "checkpoint_hash": "c0ffee",
        "options": {},
        "versions": {},
        "load_s": 30.0,
    }
    spec = {
        "model": "/models/llama",
        "served_model_name": "llama",
        "quant": "NVFP4",
        "recipe": "",
        "kv_cache_dtype": "auto",
        "tp": 8,
        "pp": 1,
        "ep": 1,
        "backend": "auto",
        "calib_dataset": "",
        "calib_size": 128,
        "serve": "",
        "url": "",
        "api_key_env": "",
        "hardware": "",
        "engine_options": {},
    }
    load = {"isl": 1024, "osl": 1024, "num_requests": 0, "rounds": 1, "warmup_rounds": 1, "seed": 0, "sessions": 0}
    return {
        "schema_version": 1,
        "created": created.isoformat(),
        "environment": context,
        "records": [
            {
                "nodeid": f"test_it.py::test_serving[c{concurrency}]",
                "status": "PASS",
                "gates": [],
                "verdicts": [],
                "result": {
                    "case": {"engine": spec, "workload": {**load, "concurrency": concurrency}, "task": None},
                    "engine": engine,
                    "performance": {"sessions": [{"warmup_rounds": 1, "rounds": [round_], "telemetry": {}}]},
                    "accuracy": None,
                    "comparisons": [],
                    "invalid": "",
                    "context": context,
                },
            }
        ],
    }


def score(trend: Trend, planted: dict[tuple[int, int], tuple[int, float]]) -> tuple[int, int]:
    """Count the planted steps that were found, within five results and with the right sign, and the false ones."""
    names = list(METRICS)
    found, false = set(), 0
    for step in trend.steps:
        key = (int(step.series.case.rpartition("-c")[2]) - 1, names.index(step.series.metric))
        at, size = planted.get(key, (-100, 0.0))
        if abs(step.at - at) <= 5 and (step.change > 0) == (size > 0):
            found.add(key)
        else:
            false += 1
    return len(found), false


def timed(label: str, folder: Path) -> Trend:
    stop = stopwatch()
    trend = find_trend(open_store(str(folder), sealed=False))
    print(f"{label}: {stop()}, {len(trend.series)} series, {len(trend.steps)} steps")
    return trend


def stopwatch() -> Callable[[], str]:
    """Start a clock, and return what reads it: as a bystander sees it, and as this process was charged on all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    return lambda: f"{time.perf_counter() - wall:.2f} s ({time.process_time() - cpu:.2f} s of CPU)"


def false_alarms(series: int, points: int) -> None:
    """Print how many steps unchanged series show."""
    for correlation in (0.0, 0.3, 0.5):
        rng = np.random.default_rng(round(100 * correlation) + points)
        found = find_steps(list(noise(rng, series, points, correlation)))
        rate = 100 * sum(map(len, found)) / series
        print(f"  {points} points, correlation {correlation}: {rate:.2f} steps in 100 unchanged series")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=int, default=100_000, help="Result files (default: 100000)")
    parser.add_argument("--folder", type=Path, required=True, help="Where the store is made; must be empty or new")
    parser.add_argument("--seed", type=int, default=6, help="Of noise and steps (default: 6)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    rng = np.random.default_rng(arguments.seed)
    points = arguments.results // CASES
    flat = noise(rng, CASES * len(METRICS), points, CORRELATION)
    values = flat.reshape(CASES, len(METRICS), points)
    planted = plant(rng, values)
    folders = set()
    for name, text in results(values):
        path = folder / name
        if path.parent not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        path.write_text(text)
    print(f"{CASES * points} result files, {PLANTED} planted steps")
    timed("trend, JSON in place", folder)
    stop = stopwatch()
    compact(str(folder))
    print(f"compact: {stop()}")
    trend = timed("trend, compacted", folder)
    found, false = score(trend, planted)
    print(f"found {found} of {PLANTED} planted steps, {false} false ones in {len(trend.series)} series")
    for length in (20, 50, 200, 500):
        false_alarms(2000, length)
    return 0


if __name__ == "__main__":
    sys.exit(main())
