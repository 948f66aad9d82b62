"""What does Ray cost? The embedded suite plainly and with `--inferperf-ray=local`, in turns, and what one placement takes.

    python -m benchmarks.ray_cost [--repeats N] [--limit N] [--placements N]

Runs the evaluations of `suites/embedded` in three precisions, `--limit` documents each, none ended early: after one plain
run that is not counted, `--repeats` times plainly and on Ray. Then takes and gives back `--placements` places on a cluster
of this machine, one after the other, as a case does before its engine loads. Gates are judged and fail where they have no
baseline, as they have none at a limit: what is timed does not depend on it. Figures are medians over the repeats, with
the smallest and the largest. An idle machine is needed: what neighbours take is in all of it.

- start: from the command until the first case begins, its engine loaded. On Ray that holds the start of the cluster.
- engine: from the test that opens a later engine until it is loaded, the last one closed.
- case: set-up and teardown of a test whose engine is open.
- 1,000 documents: the bodies of the tests, by the documents they asked.
- end: from the end of the last test to that of the process, the end of the cluster included.
- CPU of pytest, and of Ray's head (`gcs_server`) and node (`raylet`), from the end of the first set-up on, by cases.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ray_clock import HEAD, cpu_s, read_clock
from benchmarks.ray_outcomes import ALONE, BENCHMARKS, PLUGINS, ROOT, SUITE
from pytest_inferperf.baselines.result_file import read_result_file

SELECT = "(BF16 or FP8 or W4A16) and (transform or facts or stories) and not kv_cache"
CASES = 9
ROWS = (
    # Name, unit, and the factor from what is kept.
    ("start", "s", 1.0),
    ("engine", "s", 1.0),
    ("case", "ms", 1e3),
    ("1,000 documents", "s", 1.0),
    ("end", "s", 1.0),
    ("whole run", "s", 1.0),
    ("CPU of pytest by case", "ms", 1e3),
    ("CPU of the head by case", "ms", 1e3),
    ("CPU of the node by case", "ms", 1e3),
)


def figures_of(clock: Mapping[str, Any], documents: int, begun: float, ended: float) -> dict[str, float]:
    """Return the figures of one run, in seconds, from when its phases began and ended."""
    phases = clock["phases"]
    by_test: dict[str, dict[str, tuple[float, float]]] = {}
    for test, phase, start, stop in phases:
        by_test.setdefault(test, {})[phase] = (start, stop)
    tests = list(by_test.values())

    def took(test: Mapping[str, tuple[float, float]], *names: str) -> float:
        return sum(stop - start for name, (start, stop) in test.items() if name in names)

    first, *later = tests
    # To load an engine takes far longer than whatever else a set-up does; the suite's order puts equal engines together.
    longest = max(took(test, "setup") for test in later)
    opens = [test for test in later if took(test, "setup") > longest / 4]
    open_already = [test for test in later if test not in opens]
    cpu = clock["cpu_s"]
    return {
        "start": first["call"][0] - begun,
        "engine": statistics.median(took(test, "setup") for test in opens),
        # The teardown of the last test of an engine closes nothing yet: the set-up of the next one does.
        "case": statistics.median(took(test, "setup", "teardown") for test in open_already),
        "1,000 documents": 1000 * sum(took(test, "call") for test in tests) / documents,
        "end": ended - max(stop for *_, stop in phases),
        "whole run": ended - begun,
        "CPU of pytest by case": cpu["pytest"] / len(tests),
        "CPU of the head by case": cpu["head"] / len(tests),
        "CPU of the node by case": cpu["node"] / len(tests),
    }


def run(folder: Path, limit: int, *arguments: str) -> dict[str, float]:
    """Run the suite once. Exits where a test measured nothing."""
    results, clock = folder / "results.json", folder / "clock.json"
    results.unlink(missing_ok=True)
    kept = {key: value for key, value in os.environ.items() if key != "CI" and not key.startswith("PYTEST_")}
    begun = time.time()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(SUITE / "test_embedded.py"), "-k", SELECT, f"--rootdir={ROOT}"),
            *(*PLUGINS, "-p", "ray_clock", *ALONE, f"--inferperf-json={results}", "--inferperf-set=early_stop=false"),
            *(f"--inferperf-set=limit={limit}", *arguments),
        ],
        cwd=ROOT,
        env={**kept, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(BENCHMARKS), "RAY_CLOCK": str(clock)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    ended = time.time()
    found = read_result_file(results).records if results.exists() else ()
    answered = [record.result.accuracy for record in found if record.result.accuracy is not None]
    if len(answered) != CASES:
        raise SystemExit(f"{len(answered)} of {CASES} cases were evaluated:\n{done.stdout[-3000:]}")
    return figures_of(read_clock(clock), sum(len(item.outcomes) for item in answered), begun, ended)


def places(count: int) -> dict[str, list[float]]:
    """Take and give back places on a cluster of this machine; seconds of each step, place by place."""
    from pytest_inferperf.cluster import place
    from pytest_inferperf.cluster.connection import LOCAL, connect
    from pytest_inferperf.cluster.rules import Request

    found: dict[str, list[float]] = {}

    def timed(name: str, what: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            answer = what(*given, **named)
            found.setdefault(name, []).append(time.perf_counter() - start)
            return answer

        return timed_call

    place._wait = timed("asked until granted", place._wait)
    place._occupy = timed("granted until it answers", place._occupy)
    connection = timed("start of the cluster", connect)(LOCAL)
    try:
        timed("asked what its nodes are", connection.nodes)()
        for _ in range(count):
            before = cpu_s(HEAD)
            taken = place.take_place(connection, Request(what="it"), timeout_s=120.0)
            timed("given back", taken.release)()
            found.setdefault("CPU of the head", []).append(cpu_s(HEAD) - before)
    finally:
        timed("end of the cluster", connection.close)()
    return found


def spread(values: Sequence[float], factor: float = 1.0) -> str:
    """Return the median, with the smallest and the largest."""
    middle, low, high = (factor * value for value in (statistics.median(values), min(values), max(values)))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})" if len(values) > 1 else f"{middle:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=600, help="Documents of each evaluation")
    parser.add_argument("--placements", type=int, default=10)
    given = parser.parse_args()
    plain, cluster = [], []
    with tempfile.TemporaryDirectory() as place:
        # Checkpoints are built, and files read, before anything is timed.
        run(Path(place), given.limit)
        for _ in range(given.repeats):
            plain.append(run(Path(place), given.limit))
            cluster.append(run(Path(place), given.limit, "--inferperf-ray=local"))
    print(
        f"{CASES} cases, 3 engines, {given.limit} documents each; medians of {given.repeats} runs (smallest to largest)\n"
    )
    print("| | plain | Ray | Ray - plain | Ray / plain |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, unit, factor in ROWS:
        one, other = [item[name] for item in plain], [item[name] for item in cluster]
        more = [factor * (b - a) for a, b in zip(one, other, strict=True)]
        ratio = f"{statistics.median(b / a for a, b in zip(one, other, strict=True)):.2f}" if min(one) > 0 else "-"
        print(f"| {name}, {unit} | {spread(one, factor)} | {spread(other, factor)} | {spread(more)} | {ratio} |")
    print(f"\n{given.placements} places on a cluster of this machine, one after the other, ms (smallest to largest)\n")
    print("| | |\n| --- | ---: |")
    for name, values in places(given.placements).items():
        print(f"| {name} | {spread(values, 1e3)} |")


if __name__ == "__main__":
    main()
