"""Compare the lm-eval adapter with lm-eval's own `hf` model: samples per second, and whether the answers are the same.

    python benchmarks/lm_eval_adapter.py                  # the embedded suite, every document, 3 repeats
    python benchmarks/lm_eval_adapter.py --limit 100 --repeats 1

Both run the same checkpoint in float32 on the same tasks, in one process, in turn (A B A B), so that a machine that
slows down slows both; `cpu` is the same ratio in CPU time, which other processes disturb less. A run is everything a user waits for once the model is loaded: reading the task, building the
prompts, asking the model, scoring. `hf` also runs once with its default batch size of 1.

Torch gets one thread for both by default, as the embedded engine chooses for small models; `--threads 0` leaves every
core to both.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytest_inferperf.evaluate.run import evaluate, evaluate_lm
from pytest_inferperf.model.case import EngineSpec, Task
from pytest_inferperf.model.results import AccuracyResult

SUITE = Path(__file__).resolve().parents[1] / "suites" / "embedded"

Run = Callable[[Task], AccuracyResult]
Seconds = tuple[float, float]
"""Wall clock, CPU time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print one table, and return 1 when an outcome differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SUITE / "model")
    parser.add_argument("--tasks", type=Path, nargs="*", help="task YAML files; by default those of the embedded suite")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, help="only the first documents of each task")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="torch threads for both; 0 for one per core")
    parser.add_argument("--skip-batch-1", action="store_true", help="leave out hf at its default batch size")
    options = parser.parse_args(arguments)
    paths = options.tasks or sorted((SUITE / "tasks").glob("*.yaml"))

    ours = _ours(options.model, options.batch_size)
    theirs = _hf(options.model, options.batch_size)
    one_by_one = None if options.skip_batch_1 else _hf(options.model, 1)
    import torch

    torch.set_num_threads(options.threads or os.cpu_count() or 1)  # after loading: the engine sets its own

    print(f"samples/s, median of {options.repeats}; float32, {torch.get_num_threads()} thread(s)")
    print(f"{'task':24}{'documents':>10}{'adapter':>10}{f'hf @{options.batch_size}':>10}{'ratio':>8}{'cpu':>7}", end="")
    print(f"{'hf @1':>10}{'ratio':>8}  outcomes (adapter and hf @{options.batch_size})")
    same, ratios = True, []
    for path in paths:
        for run in (ours, theirs):  # imports, and the first use of each kernel
            _timed(run, Task(name=path.stem, path=str(path.resolve()), limit=2))
        task = Task(name=path.stem, path=str(path.resolve()), limit=options.limit)
        times: list[tuple[Seconds, Seconds]] = []
        for _ in range(options.repeats):
            a, mine = _timed(ours, task)
            b, its = _timed(theirs, task)
            times.append((mine, its))
        count = len(a.outcomes)
        ratio, cpu = (statistics.median(its[clock] / mine[clock] for mine, its in times) for clock in (0, 1))
        ratios.append(ratio)
        fast, slow = (count / statistics.median(pair[who][0] for pair in times) for who in (0, 1))
        print(f"{path.stem:24}{count:>10}{fast:>10.1f}{slow:>10.1f}{ratio:>7.2f}x{cpu:>6.2f}x", end="", flush=True)
        if one_by_one is not None:
            slowest = count / _timed(one_by_one, task)[1][0]
            print(f"{slowest:>10.1f}{fast / slowest:>7.2f}x", end="")
        else:
            print(f"{'-':>10}{'-':>8}", end="")
        identical, text = _compare(a, b)
        same = same and identical
        print(f"  {text}", flush=True)
    print(f"median ratio over the tasks: {statistics.median(ratios):.2f}x; outcomes {'equal' if same else 'DIFFER'}")
    return 0 if same else 1


def _ours(model: Path, batch_size: int) -> Run:
    from pytest_inferperf.engines.transformers_engine import TransformersEngine

    spec = EngineSpec(model=str(model), served_model_name=model.name, engine_options=(("compute_dtype", "float32"),))
    engine = TransformersEngine(spec, checkpoint=str(model))
    return lambda task: evaluate(engine, task, concurrency=batch_size)


def _hf(model: Path, batch_size: int) -> Run:
    from lm_eval.models.huggingface import HFLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lm: Any = HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=batch_size)
    return lambda task: evaluate_lm(lm, task)


def _timed(run: Run, task: Task) -> tuple[AccuracyResult, Seconds]:
    # Without the progress bars of `hf`, which would cost it time on a terminal.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        wall, cpu = time.perf_counter(), time.process_time()
        result = run(task)
        return result, (time.perf_counter() - wall, time.process_time() - cpu)


def _compare(ours: AccuracyResult, theirs: AccuracyResult) -> tuple[bool, str]:
    """Right and wrong answers must be the same; a perplexity, to float32's rounding (the batches differ)."""
    if ours.documents_digest != theirs.documents_digest:
        return False, "not the same documents"
    pairs = list(zip(ours.outcomes, theirs.outcomes, strict=True))
    if ours.is_binary and theirs.is_binary:
        different = sum(x != y for x, y in pairs)
        return not different, f"{different} of {len(pairs)} differ (score {ours.score:.4f}, {theirs.score:.4f})"
    worst = max(abs(x - y) / max(abs(y), 1e-9) for x, y in pairs)
    return worst < 1e-4, f"differ by {worst:.1e} at most, relative (score {ours.score:.6f}, {theirs.score:.6f})"


if __name__ == "__main__":
    sys.exit(main())
