"""How long does judging take? 14,042 paired outcomes, and a suite of 500 gates, in memory and from baseline files.

`python benchmarks/judge_speed.py` prints medians and returns 1 when a limit is missed: 50 ms for the outcomes, 5 s for
the suite, reading and checking its files included. The suite is 400 performance gates over 4 files of 100 entries (10 stored sessions of 5 rounds, 6 metrics) and
100 accuracy gates over 4 files of 25 tasks (1,319 questions, two precisions, one of them of 14,042). Without "in memory", every
case is looked up as a run does.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pytest_inferperf.baselines.entries import (
    AccuracyEntry,
    MetricBaseline,
    PerformanceEntry,
    Provenance,
    ScoreEntry,
    accuracy_key,
    performance_key,
)
from pytest_inferperf.baselines.format import (
    AccuracyFile,
    PerformanceFile,
    dump_accuracy,
    dump_performance,
)
from pytest_inferperf.baselines.store import (
    accuracy_identity,
    accuracy_path,
    performance_identity,
    performance_path,
)
from pytest_inferperf.gates.judge import Baselines, judge
from pytest_inferperf.gates.looks import ALPHA
from pytest_inferperf.gates.paired import PairedVerdict, judge_paired
from pytest_inferperf.judging import judge_case
from pytest_inferperf.model.case import Case, EngineSpec, Task, Workload
from pytest_inferperf.model.gates import AccuracyLossCeiling, Gate, PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import (
    AccuracyResult,
    CaseResult,
    EngineInfo,
    Hardware,
    PerformanceResult,
    Round,
    Session,
)
from pytest_inferperf.model.verdicts import Status

QUESTIONS = 14_042
LIMIT_MS = 50.0
LIMIT_S = 5.0
METRICS = ("output_throughput", "total_throughput", "ttft_ms.p50", "ttft_ms.p99", "tpot_ms.p50", "tpot_ms.p99")
TOLERANCE = 0.05
HARDWARE = Hardware(name="NVIDIA B200", count=8, kind="gpu")
MEASURED = Provenance(kind="measured", reason="recorded for a benchmark", recorded="2026-01-01T00:00:00Z")

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Gated:
    """A case of the suite: its gate, what it measured, and what is on file for it."""

    gates: tuple[Gate, ...]
    result: CaseResult
    baselines: Baselines


def answers(generator: np.random.Generator, questions: int, *, flips: float = 0.05) -> tuple[Array, Array]:
    """Draw outcomes of a reference that is right on 75 %, and of a candidate without a loss."""
    draw = generator.random(questions)
    old = (draw < 0.75).astype(np.float64)
    new = np.where(draw < flips / 2, 0.0, np.where(draw > 1 - flips / 2, 1.0, old))
    return old, new


def engine(model: str, quant: str) -> tuple[EngineSpec, EngineInfo]:
    spec = EngineSpec(model=model, served_model_name=model, quant=quant)
    info = EngineInfo(
        backend="benchmark",
        hardware=HARDWARE,
        quant_algo=quant,
        kv_cache_quant_algo=None,
        compute_dtype="bfloat16",
        simulated=False,
        max_model_len=4096,
        checkpoint=model,
        checkpoint_hash="0" * 64,
    )
    return spec, info


def performance_case(generator: np.random.Generator, model: str, number: int) -> Gated:
    """A case with 10 stored sessions and 5 of its own, unchanged, 1 % between sessions."""
    spec, info = engine(model, "NVFP4")
    case = Case(engine=spec, workload=Workload(isl=1024, osl=1024, concurrency=number + 1))
    logs = generator.normal(0, 0.01, (15, 1, len(METRICS))) + generator.normal(0, 0.01, (15, 5, len(METRICS)))
    values = (1000 * np.exp(logs)).tolist()
    metrics = {
        name: MetricBaseline(
            sessions=tuple(tuple(item[index] for item in session) for session in values[:10]), tolerance=TOLERANCE
        )
        for index, name in enumerate(METRICS)
    }
    sessions = tuple(
        Session(
            rounds=tuple(
                Round(
                    duration_s=1.0,
                    num_requests=number + 1,
                    num_failed_requests=0,
                    input_tokens=1024 * (number + 1),
                    output_tokens=1024 * (number + 1),
                    metrics=dict(zip(METRICS, item, strict=True)),
                )
                for item in session
            ),
            warmup_rounds=1,
        )
        for session in values[10:]
    )
    entry = PerformanceEntry(
        path="",
        key=performance_key(case),
        metrics=metrics,
        warmup_rounds=1,
        provenance=MEASURED,
        identity=performance_identity(case),
    )
    return Gated(
        gates=(PerformanceGate(metric=parse_metric(METRICS[number % len(METRICS)])),),
        result=CaseResult(case=case, engine=info, performance=PerformanceResult(sessions=sessions)),
        baselines=Baselines(performance=entry, default_tolerance=TOLERANCE),
    )


def accuracy_case(generator: np.random.Generator, model: str, number: int) -> Gated:
    """A case with a stored reference; the first of each model is as long as MMLU."""
    spec, info = engine(model, "NVFP4")
    case = Case(engine=spec, task=Task(name=f"task_{number}"))
    old, new = answers(generator, QUESTIONS if number == 0 else 1_319)
    outcomes = {"BF16": tuple(old.tolist()), "NVFP4": tuple(new.tolist())}
    digest = f"{number:064d}"
    entry = AccuracyEntry(
        path="",
        key=accuracy_key(case, "acc"),
        metric="acc",
        higher_is_better=True,
        documents_digest=digest,
        num_documents=len(old),
        scores={
            precision: ScoreEntry(
                score=math.fsum(values) / len(values), outcomes=values, unparseable=None, provenance=MEASURED
            )
            for precision, values in outcomes.items()
        },
        identity=accuracy_identity(case, "acc"),
    )
    measured = AccuracyResult(
        task=f"task_{number}",
        metric="acc",
        higher_is_better=True,
        score=float(new.mean()),
        outcomes=outcomes["NVFP4"],
        documents_digest=digest,
    )
    return Gated(
        gates=(AccuracyLossCeiling(reference="BF16", points=5.0),),
        result=CaseResult(case=case, engine=info, accuracy=measured),
        baselines=Baselines(accuracy=entry),
    )


def suite(seed: int) -> list[Gated]:
    """Build the 500 cases, in the order pytest would run them: model by model."""
    generator = np.random.default_rng(seed)
    return [
        item
        for model in range(4)
        for item in (
            *(performance_case(generator, f"model-{model}", number) for number in range(100)),
            *(accuracy_case(generator, f"model-{model}", number) for number in range(25)),
        )
    ]


def write(root: Path, cases: Sequence[Gated]) -> str:
    """Write the baseline files of the suite; return how many and how large they are."""
    performance: dict[Path, PerformanceFile] = {}
    accuracy: dict[Path, AccuracyFile] = {}
    for item in cases:
        case, name = item.result.case, item.result.case.engine.served_model_name
        if isinstance(item.baselines.performance, PerformanceEntry):
            path, entry = performance_path(root, HARDWARE, case), item.baselines.performance
            file = performance.get(path, PerformanceFile(model=name, hardware=HARDWARE, entries={}))
            performance[path] = replace(file, entries={**file.entries, entry.key: entry})
        if isinstance(item.baselines.accuracy, AccuracyEntry):
            path, scores = accuracy_path(root, case), item.baselines.accuracy
            tasks = accuracy.get(path, AccuracyFile(model=name, tasks={}))
            accuracy[path] = replace(tasks, tasks={**tasks.tasks, scores.key: scores})
    texts = {path: dump_performance(file) for path, file in performance.items()}
    texts |= {path: dump_accuracy(file) for path, file in accuracy.items()}
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return f"{len(texts)} files, {sum(map(len, texts.values())) / 2**20:.1f} MiB"


def timed(run: Callable[[], object], repeats: int) -> float:
    """Return the median wall time of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def outcomes_ms(seed: int, repeats: int) -> dict[str, float]:
    """Time `judge_paired` on 14,042 outcomes, by method."""
    generator = np.random.default_rng(seed)
    old, new = answers(generator, QUESTIONS)
    samples = generator.binomial(16, 0.5 + 0.4 * old) / 16, generator.binomial(16, 0.5 + 0.4 * old) / 16
    groups = [index // 5 for index in range(QUESTIONS)]
    # Open to the last look: 1.2 points are lost, and that lies between the margins.
    lossy = np.where(generator.random(QUESTIONS) < 0.012 / 0.75, 0.0, new)

    def to_the_last_look() -> None:
        found = judge_paired(old, lossy, tolerance=0.0125, free_zone=0.0115)
        assert isinstance(found, PairedVerdict)
        assert found.used == QUESTIONS

    runs: dict[str, Callable[[], object]] = {
        "0/1, decided at the first look": lambda: judge_paired(old, new, tolerance=0.05),
        "0/1, to the last look": to_the_last_look,
        "means of 16 samples (sign-flip)": lambda: judge_paired(samples[0], samples[1], tolerance=0.05),
        "0/1 in groups of 5 (sign-flip)": lambda: judge_paired(old, new, tolerance=0.05, groups=groups),
    }
    found = {}
    for name, run in runs.items():
        # The first call imports scipy and draws the subsets, which stay.
        run()
        found[name] = 1000 * timed(run, repeats)
    return found


def check(verdicts: Sequence[Status]) -> None:
    """Make sure that the suite was judged, not refused."""
    passed = sum(status is Status.PASS for status in verdicts)
    assert passed > 0.8 * len(verdicts), f"only {passed} of {len(verdicts)} unchanged gates pass"


def main() -> int:
    """Print the table; return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="Runs of each; the median counts")
    parser.add_argument("--seed", type=int, default=20260101)
    options = parser.parse_args()

    cases = suite(options.seed)
    rows = [
        (f"{QUESTIONS:,} outcomes, {name}", value, LIMIT_MS, "ms")
        for name, value in outcomes_ms(options.seed, max(9, options.repeats)).items()
    ]

    (long, *_) = [
        item for item in cases if item.result.case.task is not None and item.result.case.task.name == "task_0"
    ]
    through = 1000 * timed(lambda: judge(long.gates, long.result, long.baselines), max(9, options.repeats))
    rows.append((f"{QUESTIONS:,} outcomes, 0/1, through `judge`", through, LIMIT_MS, "ms"))

    def in_memory() -> None:
        check([judge(item.gates, item.result, item.baselines)[0].status for item in cases])

    rows.append((f"{len(cases)} gates, in memory", timed(in_memory, options.repeats), LIMIT_S, "s"))
    with tempfile.TemporaryDirectory() as folder:
        roots = [Path(folder) / f"baselines-{number}" for number in range(options.repeats)]
        for root in roots:
            size = write(root, cases)
        unread = iter(roots)

        def from_files() -> None:
            # A folder of its own for every run: a file that was parsed once is not parsed again.
            root = next(unread)
            check(
                [
                    judge_case(item.result, item.gates, root=root, tolerance=TOLERANCE, alpha=ALPHA)[0].status
                    for item in cases
                ]
            )

        rows.append((f"{len(cases)} gates, {size}", timed(from_files, options.repeats), LIMIT_S, "s"))
    print(f"\n| what | median of {options.repeats} | limit | kept |\n| --- | --- | --- | --- |")
    for name, value, limit, unit in rows:
        print(f"| {name} | {value:.3g} {unit} | {limit:g} {unit} | {'yes' if value < limit else '**no**'} |")
    return 0 if all(value < limit for _, value, limit, _ in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
