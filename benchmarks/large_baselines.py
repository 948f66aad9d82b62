"""One baseline file of many entries: what `inferperf baseline check` and `prune` take for it, as whole commands.

    python benchmarks/large_baselines.py --entries 10000

Each entry has three metrics of ten sessions of five rounds. `prune` is given a selection that reaches every other entry;
as a patch it writes what `git apply` takes, and the file stays. Prints seconds by the clock and of CPU, the start of
Python included.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytest_inferperf.baselines.cases import CollectedCase, CollectedCases, write_cases
from pytest_inferperf.baselines.entries import MetricBaseline, PerformanceEntry, Provenance, performance_key
from pytest_inferperf.baselines.format import PerformanceFile, dump_performance
from pytest_inferperf.baselines.store import performance_identity, performance_path
from pytest_inferperf.model.case import Case, EngineSpec, Workload
from pytest_inferperf.model.results import Hardware

METRICS = {"output_throughput_per_gpu": 18000.0, "ttft_ms.p99": 180.0, "tpot_ms.p99": 21.0}
SESSIONS, ROUNDS = 10, 5
HARDWARE = Hardware(name="NVIDIA B200", count=8, kind="gpu")
ENGINE = EngineSpec(model="m", served_model_name="large", quant="NVFP4", tp=8)


def main() -> int:
    """Write the file, run the commands, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10_000)
    entries = parser.parse_args().entries
    cases = [Case(engine=ENGINE, workload=Workload(isl=isl, osl=128)) for isl in range(1, entries + 1)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = performance_path(folder / "baselines", HARDWARE, cases[0])
        path.parent.mkdir(parents=True)
        path.write_text(dump_performance(drawn(cases)))
        reached = tuple(CollectedCase(nodeid="t.py::t", case=case, gates=()) for case in cases[::2])
        write_cases(folder / "cases.json", CollectedCases(partial="", cases=reached))
        print(f"{entries} entries, {path.stat().st_size / 1e6:.0f} MB")
        for arguments in (
            ("check",),
            ("prune", "--cases", "cases.json", "--patch", "prune.patch"),
            ("prune", "--cases", "cases.json"),
        ):
            wall_s, cpu_s = timed(folder, *arguments)
            print(f"inferperf baseline {' '.join(arguments):<48} {wall_s:6.1f} s by the clock, {cpu_s:6.1f} s of CPU")
    return 0


def drawn(cases: list[Case]) -> PerformanceFile:
    """Return a file with an entry for each case."""
    draws = random.Random(1)
    entries = {}
    for case in cases:
        metrics = {
            name: MetricBaseline(
                sessions=tuple(tuple(level * draws.gauss(1.0, 0.01) for _ in range(ROUNDS)) for _ in range(SESSIONS))
            )
            for name, level in METRICS.items()
        }
        entries[performance_key(case)] = PerformanceEntry(
            path="",
            key=performance_key(case),
            identity=performance_identity(case),
            metrics=metrics,
            warmup_rounds=1,
            provenance=Provenance(kind="measured", recorded="2026-01-01T00:00:00+00:00"),
            context={"driver": "580.65", "torch": "2.9.1"},
        )
    return PerformanceFile(model="large", hardware=HARDWARE, entries=entries)


def timed(folder: Path, *arguments: str) -> tuple[float, float]:
    """Run `inferperf baseline …` in a process of its own; return seconds by the clock, and of CPU."""
    command = [sys.executable, "-m", "pytest_inferperf.cli", "baseline", *arguments]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    wall_s, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())
