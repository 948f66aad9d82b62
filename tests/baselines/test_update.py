"""What an update records, what it refuses, and that no update is lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.entries import Provenance
from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, write_result_file
from pytest_inferperf.baselines.store import (
    PerformanceFile,
    dump_performance,
    read_accuracy,
    read_performance,
)
from pytest_inferperf.baselines.update import UpdatePlan, apply_update, plan_update, update
from pytest_inferperf.errors import BaselineError, UpdateRefused
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.verdicts import GateVerdict, Status

Make = Callable[..., ResultRecord]
KEY = "NVFP4+kv_fp8-tp8-isl64-osl32-c1"
SPEED = "baselines/performance/nvidia-b200-8x/tiny.json"
SCORES = "baselines/accuracy/tiny.json"


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def run(root: Path, *records: ResultRecord, mode: Any = "new", reason: str = "", accept: bool = False) -> UpdatePlan:
    plan, _ = update(root, records, mode=mode, reason=reason, accept_regression=accept, now="2026-11-21T00:00:00+00:00")
    return plan


def speeds(root: Path) -> PerformanceFile:
    return read_performance(root.parent / SPEED)


def level(root: Path, metric: str = "output_throughput") -> float:
    return speeds(root).entries[KEY].metrics[metric].level


def moves(plan: UpdatePlan) -> list[tuple[str, float | None, float, bool | None]]:
    return [(item.what, item.old, item.new, item.better) for item in plan.changes]


def test_new_records_what_is_missing_only(root: Path, speed: Make) -> None:
    plan = run(root, speed(output_throughput=100.0))
    assert moves(plan) == [("output_throughput", None, 100.0, None)]
    assert (plan.changes[0].path, plan.changes[0].key, plan.changes[0].unit) == (SPEED, KEY, "tok/s")
    plan = run(root, speed({"ttft_ms.p99": 5.0}, output_throughput=200.0))
    assert moves(plan) == [("ttft_ms.p99", None, 5.0, None)]
    assert (level(root), level(root, "ttft_ms.p99")) == (100.0, 5.0)
    assert moves(run(root, speed({"ttft_ms.p99": 6.0}))) == []


def test_planning_writes_nothing(root: Path, speed: Make) -> None:
    plan_update(root, [speed(output_throughput=1.0)], mode="new", reason="", accept_regression=False, now="")
    assert not root.exists()


def test_nothing_to_do_touches_nothing(root: Path) -> None:
    plan = plan_update(root, [], mode="new", reason="", accept_regression=False, now="")
    assert apply_update(plan) == []
    assert not root.exists()


def test_tighten_follows_the_direction_of_the_metric(root: Path, speed: Make) -> None:
    run(root, speed({"ttft_ms.p99": 5.0}, output_throughput=100.0))
    plan = run(root, speed({"ttft_ms.p99": 6.0, "itl_ms.p50": 1.0}, output_throughput=110.0), mode="tighten")
    assert moves(plan) == [("output_throughput", 100.0, 110.0, True)]
    assert plan.changes[0].percent == pytest.approx(10.0)
    assert plan.skipped == (f"{SPEED}: {KEY}: itl_ms.p50 has no baseline to tighten",)
    plan = run(root, speed({"ttft_ms.p99": 4.0}, output_throughput=90.0), mode="tighten")
    assert moves(plan) == [("ttft_ms.p99", 5.0, 4.0, True)]
    assert (level(root), level(root, "ttft_ms.p99")) == (110.0, 4.0)


@pytest.mark.parametrize("reason", ["", "  "])
def test_all_needs_a_reason(root: Path, speed: Make, reason: str) -> None:
    plan = run(root, speed(output_throughput=1.0), mode="all", reason=reason)
    assert plan.refusals == ('mode "all" may loosen baselines and needs a reason: add --reason "…"',)
    assert plan.changes == ()
    assert plan.files == ()


def test_all_within_the_tolerance(root: Path, speed: Make) -> None:
    run(root, speed(output_throughput=100.0))
    plan = run(root, speed(output_throughput=96.0), mode="all", reason="new driver")
    assert moves(plan) == [("output_throughput", 100.0, 96.0, False)]
    assert speeds(root).entries[KEY].provenance == Provenance(
        kind="measured", reason="new driver", recorded="2026-11-21T00:00:00+00:00"
    )
    assert run(root, speed(output_throughput=96.0), mode="all", reason="again").files == ()


def test_a_regression_needs_consent(root: Path, speed: Make) -> None:
    run(root, speed({"ttft_ms.p99": 10.0}, output_throughput=100.0))
    worse = speed({"ttft_ms.p99": 12.0}, output_throughput=94.0)
    plan = run(root, worse, mode="all", reason="r")
    assert plan.refusals == (
        f"t.py::test_speed: {SPEED}: {KEY} not changed: worse beyond the tolerance: output_throughput 100 -> 94 tok/s"
        " (-6.0 %), tolerance 0.05; ttft_ms.p99 10 -> 12 ms (+20.0 %), tolerance 0.05."
        " To accept, add --accept-regression",
    )
    assert level(root) == 100.0
    assert run(root, worse, mode="all", reason="r", accept=True).refusals == ()
    assert level(root) == 94.0


def test_the_tolerance_of_the_entry_decides_and_stays(root: Path, speed: Make) -> None:
    run(root, speed(output_throughput=100.0))
    file = speeds(root)
    entry = file.entries[KEY]
    wide = {"output_throughput": replace(entry.metrics["output_throughput"], tolerance=0.2)}
    text = dump_performance(replace(file, entries={KEY: replace(entry, metrics=wide)}))
    (root.parent / SPEED).write_text(text)
    assert run(root, speed(output_throughput=85.0), mode="all", reason="r").refusals == ()
    assert speeds(root).entries[KEY].metrics["output_throughput"].tolerance == 0.2


def test_all_does_not_lose_a_metric_unasked(root: Path, speed: Make) -> None:
    run(root, speed({"ttft_ms.p99": 10.0}, output_throughput=100.0))
    only = speed(output_throughput=101.0)
    assert run(root, only, mode="all", reason="r").refusals == (
        f"t.py::test_speed: {SPEED}: {KEY} not changed: not measured this time and would be lost: ttft_ms.p99."
        " To accept, add --accept-regression",
    )
    run(root, only, mode="all", reason="r", accept=True)
    assert list(speeds(root).entries[KEY].metrics) == ["output_throughput"]


def test_other_warm_up_does_not_mix(root: Path, speed: Make) -> None:
    run(root, speed(output_throughput=100.0))
    plan = run(root, speed({"ttft_ms.p99": 1.0}, warmup_rounds=3))
    assert plan.refusals == (
        f"t.py::test_speed: {SPEED}: {KEY} not changed: its values were measured after 1 warm-up rounds, these after 3;"
        ' re-record all of them with --mode all --reason "…"',
    )


def test_runs_that_cannot_be_trusted(root: Path, speed: Make) -> None:
    verdict = GateVerdict(gate="x", status=Status.INVALID, reason="throttled")
    plan = run(
        root,
        speed(output_throughput=1.0, invalid="another process on the GPU", nodeid="a"),
        replace(speed(output_throughput=1.0, nodeid="b"), verdicts=(verdict,), status=Status.INVALID),
        speed(output_throughput=1.0, failed=1, nodeid="c"),
    )
    assert plan.refusals == (
        "a: not recorded: the run is invalid: another process on the GPU",
        "b: not recorded: the run is invalid: throttled",
        "c: not recorded: 2 requests failed",
    )
    assert plan.files == ()


def test_not_measured(root: Path, speed: Make) -> None:
    gate = PerformanceGate(metric=parse_metric("ttft_ms.p99"))
    empty = speed(nodeid="none", output_throughput=1.0)
    plan = run(
        root,
        speed(output_throughput=1.0, gates=(gate,)),
        replace(empty, result=replace(empty.result, performance=None)),
    )
    assert plan.skipped == ("none: nothing was measured", "t.py::test_speed: ttft_ms.p99 was not measured")


def test_one_case_measured_twice(root: Path, speed: Make) -> None:
    plan = run(root, speed(output_throughput=100.0, nodeid="a"), speed(output_throughput=200.0, nodeid="b"))
    assert (plan.skipped, plan.refusals) == (("b: the same case as a, which is used",), ())
    assert level(root) == 100.0


def test_two_engines_with_one_key(root: Path, speed: Make) -> None:
    first = speed(output_throughput=100.0, nodeid="a")
    case = first.result.case
    other = replace(case, engine=replace(case.engine, engine_options=(("use_cache", False),)))
    plan = run(root, first, speed(output_throughput=50.0, nodeid="b", case=other))
    assert plan.refusals == (
        f"a and b: not recorded: they share the key {KEY!r} but measure engines with different options."
        " Give one of them another served_model_name",
    )
    assert plan.files == ()


def publish(root: Path, speed: Make) -> None:
    run(root, speed(output_throughput=100.0))
    file = speeds(root)
    entry = replace(
        file.entries[KEY],
        provenance=Provenance(kind="published", source="table 3"),
        metrics={
            "output_throughput": replace(file.entries[KEY].metrics["output_throughput"], sessions=(), value=100.0)
        },
    )
    (root.parent / SPEED).write_text(dump_performance(replace(file, entries={KEY: entry})))


@pytest.mark.parametrize("mode", ["new", "tighten"])
def test_published_values_stay(root: Path, speed: Make, mode: str) -> None:
    publish(root, speed)
    plan = run(root, speed({"ttft_ms.p99": 1.0}, output_throughput=200.0), mode=mode)
    assert plan.refusals == (
        f"t.py::test_speed: {SPEED}: {KEY} not changed: it is published (table 3);"
        ' only --mode all --reason "…" replaces it',
    )
    assert level(root) == 100.0


def test_published_values_are_replaced_by_all(root: Path, speed: Make) -> None:
    publish(root, speed)
    assert run(root, speed(output_throughput=200.0), mode="all", reason="ours now").refusals == ()
    assert speeds(root).entries[KEY].metrics["output_throughput"].sessions == ((200.0, 200.0),)


def score(root: Path, precision: str = "BF16") -> float:
    return read_accuracy(root.parent / SCORES).tasks["sums-limit10"].scores[precision].score


GOOD, BAD = (1.0,) * 9 + (0.0,), (1.0,) * 8 + (0.0,) * 2


def test_accuracy_new_and_tighten(root: Path, answers: Make) -> None:
    assert moves(run(root, answers(BAD))) == [("BF16", None, 0.8, None)]
    assert moves(run(root, answers(GOOD), answers(BAD, quant="NVFP4"))) == [("NVFP4", None, 0.8, None)]
    assert moves(run(root, answers(GOOD), mode="tighten")) == [("BF16", 0.8, 0.9, True)]
    assert moves(run(root, answers(BAD), mode="tighten")) == []
    assert (score(root), score(root, "NVFP4")) == (0.9, 0.8)


@pytest.mark.parametrize(
    ("metric", "higher", "old", "new", "allowed"),
    [
        ("exact_match", True, (GOOD, 0.65), (BAD, 0.645), True),
        ("exact_match", True, (GOOD, 0.65), (BAD, 0.644), False),
        ("perplexity", False, ((2.5,), 10.0), ((2.5,), 10.1), True),
        ("perplexity", False, ((2.5,), 10.0), ((2.5,), 10.2), False),
    ],
)
def test_accuracy_loosening(
    root: Path, answers: Make, metric: str, higher: bool, old: tuple[Any, float], new: tuple[Any, float], allowed: bool
) -> None:
    def make(value: tuple[Any, float]) -> ResultRecord:
        return answers(value[0], score=value[1], metric=metric, higher_is_better=higher)

    run(root, make(old))
    assert bool(run(root, make(new), mode="all", reason="r").changes) is allowed
    if not allowed:
        what = "0.5 points" if higher else "1 %"
        assert run(root, make(new), mode="all", reason="r").refusals == (
            f"t.py::test_sums[BF16]: {SCORES}: sums-limit10 BF16 not changed: worse by more than {what}:"
            f" {metric} {old[1]:g} -> {new[1]:g}. To accept, add --accept-regression",
        )
    assert run(root, make(new), mode="all", reason="r", accept=True).refusals == ()
    assert score(root) == new[1]


@pytest.mark.parametrize("mode", ["new", "tighten"])
def test_other_questions_are_refused(root: Path, answers: Make, mode: str) -> None:
    run(root, answers(BAD))
    assert run(root, answers(GOOD, quant="NVFP4", digest="d2"), mode=mode).refusals == (
        f"t.py::test_sums[NVFP4]: {SCORES}: sums-limit10 NVFP4 not changed: the questions changed;"
        ' re-record the reference too, with --mode all --reason "…"',
    )
    assert run(root, answers(GOOD, metric="acc"), mode=mode).refusals == (
        f"t.py::test_sums[BF16]: {SCORES}: sums-limit10 BF16 not changed: the file's score is 'exact_match', this one is"
        " 'acc'; re-record the reference too, with --mode all --reason \"…\"",
    )


def test_other_questions_with_all(root: Path, answers: Make) -> None:
    run(root, answers(GOOD), answers(GOOD, quant="NVFP4"))
    alone = answers(BAD, digest="d2")
    assert run(root, alone, mode="all", reason="r").refusals == (
        f"t.py::test_sums[BF16]: {SCORES}: sums-limit10 BF16 not changed: the questions changed, so these scores would"
        " be lost: NVFP4. To accept, add --accept-regression",
    )
    # Nothing is lost where the run answered the new questions at every precision.
    assert run(root, alone, answers(BAD, quant="NVFP4", digest="d2"), mode="all", reason="r").refusals == ()
    assert (score(root), score(root, "NVFP4")) == (0.8, 0.8)
    run(root, answers(GOOD, digest="d3"), mode="all", reason="r", accept=True)
    assert list(read_accuracy(root.parent / SCORES).tasks["sums-limit10"].scores) == ["BF16"]


def test_outcomes_that_cannot_be_stored(root: Path, answers: Make) -> None:
    assert run(root, answers((0.5, 1e9))).refusals == (
        "t.py::test_sums[BF16]: not recorded: outcome 1 is 1000000000.0: float16 holds values up to 65504;"
        " scale the metric down.",
    )


def test_a_file_that_changed_since_the_plan(root: Path, speed: Make) -> None:
    records = [speed(output_throughput=1.0)]
    plan = plan_update(root, records, mode="new", reason="", accept_regression=False, now="")
    assert apply_update(plan) == [root.parent / SPEED]
    message = f"^{SPEED}: changed since the update was planned; nothing was written. Run the update again.$"
    with pytest.raises(UpdateRefused, match=message):
        apply_update(plan)


def test_full_disk(root: Path, speed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run(root, speed(output_throughput=100.0))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = f"^{SPEED}: cannot be written: No space left on device. The old file is unchanged.$"
    with pytest.raises(BaselineError, match=message):
        run(root, speed(output_throughput=110.0), mode="tighten")
    assert level(root) == 100.0


_UPDATE = """
import os, signal, sys
from pytest_inferperf.cli import main
if len(sys.argv) > 3:
    setattr(os, sys.argv[3], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main(["baseline", "update", sys.argv[1], "--root", sys.argv[2]]))
"""


def results(path: Path, records: Sequence[ResultRecord]) -> Path:
    write_result_file(path, ResultFile(created="", environment={}, records=tuple(records)))
    return path


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_kill_in_the_middle(root: Path, speed: Make, tmp_path: Path, call: str) -> None:
    run(root, speed(output_throughput=100.0))
    before = (root.parent / SPEED).read_bytes()
    file = results(tmp_path / "r.json", [speed({"ttft_ms.p99": 1.0})])
    done = subprocess.run([sys.executable, "-c", _UPDATE, str(file), str(root), call])
    assert done.returncode == -signal.SIGKILL
    assert (root.parent / SPEED).read_bytes() == before
    run(root, speed({"ttft_ms.p99": 2.0}))
    assert level(root, "ttft_ms.p99") == 2.0
    assert names((root.parent / SPEED).parent) == ["tiny.json"]


def test_updates_at_the_same_time_are_not_lost(root: Path, speed: Make, tmp_path: Path) -> None:
    processes = []
    for number in range(4):
        base = speed(output_throughput=1.0).result.case
        assert base.workload is not None
        case = replace(base, workload=replace(base.workload, isl=100 + number))
        file = results(tmp_path / f"{number}.json", [speed(output_throughput=float(number + 1), case=case)])
        command = [sys.executable, "-c", _UPDATE, str(file), str(root)]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert len(speeds(root).entries) == 4
