"""What an update records, what it refuses, and that no update is lost."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.changes import compare
from pytest_inferperf.baselines.entries import Missing, Provenance
from pytest_inferperf.baselines.format import PerformanceFile, dump_accuracy, dump_performance
from pytest_inferperf.baselines.patch import write_patch
from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, write_result_file
from pytest_inferperf.baselines.store import lookup_performance, read_accuracy, read_performance
from pytest_inferperf.baselines.update import apply_update, plan_update, update
from pytest_inferperf.baselines.update_plan import UpdatePlan
from pytest_inferperf.errors import BaselineError, UpdateRefused
from pytest_inferperf.gates.intervals import outdone
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.gates import AccuracyLossCeiling, PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import Placement, Repeat
from pytest_inferperf.model.verdicts import GateVerdict, Status

Make = Callable[..., ResultRecord]
KEY = "NVFP4+kv_fp8-tp8-isl64-osl32-c1"
SPEED = "baselines/performance/nvidia-b200-8x/tiny.json"
SCORES = "baselines/accuracy/tiny.json"


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


GOOD, BAD = (1.0,) * 9 + (0.0,), (1.0,) * 8 + (0.0,) * 2
ACCEPT = "  To accept: add --accept-regression (in pytest: --inferperf-accept-regression)"
REPLACE = '  To replace it: --mode all --reason "…" (in pytest: --inferperf-update=all --inferperf-reason="…")'


def run(
    root: Path, *records: ResultRecord, mode: Any = "new", reason: str = "", accept: bool = False, **more: Any
) -> UpdatePlan:
    now = "2026-11-21T00:00:00+00:00"
    plan, _ = update(root, records, mode=mode, reason=reason, accept_regression=accept, **{"now": now, **more})
    return plan


def gate(name: str, tolerance: float | None = None) -> PerformanceGate:
    return PerformanceGate(metric=parse_metric(name), tolerance=tolerance)


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
        f"""\
t.py::test_speed: worse beyond the tolerance: output_throughput, ttft_ms.p99
  {SPEED}: {KEY}
  output_throughput  100 -> 94 tok/s (-6.0 %, allowed 5 %)
  ttft_ms.p99        10 -> 12 ms (+20.0 %, allowed 5 %)
{ACCEPT}""",
    )
    assert level(root) == 100.0
    assert run(root, worse, mode="all", reason="r", accept=True).refusals == ()
    assert level(root) == 94.0


def with_sessions(record: ResultRecord, count: int) -> ResultRecord:
    performance = record.result.performance
    assert performance is not None
    many = replace(performance, sessions=performance.sessions * count)
    return replace(record, result=replace(record.result, performance=many))


def test_a_calibrated_baseline_is_not_replaced_by_too_few_sessions(root: Path, speed: Make) -> None:
    run(root, with_sessions(speed(output_throughput=100.0), 10))
    few = with_sessions(speed(output_throughput=101.0), 4)
    plan = run(root, few, mode="all", reason="r")
    assert plan.refusals == (
        f"""\
t.py::test_speed: fewer than the 5 sessions that a judge of noise needs: output_throughput
  {SPEED}: {KEY}
  output_throughput  10 sessions -> 4
{ACCEPT}""",
    )
    assert len(speeds(root).entries[KEY].metrics["output_throughput"].sessions) == 10
    assert run(root, few, mode="all", reason="r", accept=True).refusals == ()
    enough = with_sessions(speed(output_throughput=101.0), 5)
    assert run(root, enough, mode="all", reason="r").refusals == ()


def test_of_two_tests_of_a_case_the_one_with_more_sessions_counts(root: Path, speed: Make) -> None:
    few = speed(output_throughput=100.0, nodeid="t.py::test_a")
    many = with_sessions(speed(output_throughput=101.0, nodeid="t.py::test_b"), 10)
    plan = run(root, few, many)
    assert plan.skipped == ("t.py::test_a: the same case as t.py::test_b, which is used",)
    assert len(speeds(root).entries[KEY].metrics["output_throughput"].sessions) == 10


def test_a_refusal_names_gated_metrics_first(root: Path, speed: Make) -> None:
    latencies = ["itl_ms.p50", "itl_ms.p99", "tpot_ms.p50", "tpot_ms.p99", "ttft_ms.p99"]
    run(root, speed(dict.fromkeys(latencies, 10.0), output_throughput=100.0, peak_memory_gib=1.0))
    worse = speed(dict.fromkeys(latencies, 12.0), output_throughput=90.0, gates=(gate("tpot_ms.p99"),))
    assert run(root, worse, mode="all", reason="r").refusals == (
        f"""\
t.py::test_speed: worse beyond the tolerance: tpot_ms.p99 and 5 more; not measured this time and would be lost: \
peak_memory_gib
  {SPEED}: {KEY}
  tpot_ms.p99        10 -> 12 ms (+20.0 %, allowed 5 %)  [gated]
  itl_ms.p50         10 -> 12 ms (+20.0 %, allowed 5 %)
  itl_ms.p99         10 -> 12 ms (+20.0 %, allowed 5 %)
  output_throughput  100 -> 90 tok/s (-10.0 %, allowed 5 %)
  tpot_ms.p50        10 -> 12 ms (+20.0 %, allowed 5 %)
  ttft_ms.p99        10 -> 12 ms (+20.0 %, allowed 5 %)
  peak_memory_gib    1 GiB -> not measured
{ACCEPT}""",
    )


def widen(root: Path, tolerance: float) -> None:
    """Write a tolerance into the entry, by hand as it were."""
    file = speeds(root)
    entry = file.entries[KEY]
    metrics = {name: replace(item, tolerance=tolerance) for name, item in entry.metrics.items()}
    (root.parent / SPEED).write_text(dump_performance(replace(file, entries={KEY: replace(entry, metrics=metrics)})))


VERDICT = GateVerdict(gate="tpot_ms.p99", status=Status.FAIL, tolerance=0.01)


@pytest.mark.parametrize(
    ("entry", "gates", "verdicts", "default", "allowed"),
    [
        (None, (), (), 0.05, 5),
        (0.2, (), (), 0.05, 5),
        (0.2, (), (), 0.3, 20),
        (None, (), (), 0.02, 2),
        (0.02, (gate("tpot_ms.p99", 0.04),), (), 0.05, 2),
        (None, (gate("tpot_ms.p99", 0.01), gate("tpot_ms.p50", 0.001)), (), 0.05, 1),
        (None, (gate("tpot_ms.p99", 0.5),), (), 0.05, 5),
        # The command line does not know the ini file; the verdict of the run does.
        (None, (gate("tpot_ms.p99"),), (VERDICT,), 0.05, 1),
    ],
)
def test_the_smallest_tolerance_decides(
    root: Path,
    speed: Make,
    entry: float | None,
    gates: tuple[PerformanceGate, ...],
    verdicts: tuple[GateVerdict, ...],
    default: float,
    allowed: float,
) -> None:
    run(root, speed({"tpot_ms.p99": 10.0}))
    if entry is not None:
        widen(root, entry)
    for percent, refused in ((allowed + 0.1, True), (allowed - 0.1, False)):
        worse = replace(speed({"tpot_ms.p99": 10 + percent / 10}, gates=gates), verdicts=verdicts)
        plan = run(root, worse, mode="all", reason="r", tolerance=default)
        assert [f"allowed {allowed} %" in item for item in plan.refusals] == [True] * refused
        assert bool(plan.changes) is not refused
    assert speeds(root).entries[KEY].metrics["tpot_ms.p99"].tolerance == entry


def test_small_loosenings_do_not_add_up_to_a_large_one(root: Path, speed: Make) -> None:
    strict = (gate("tpot_ms.p99", 0.01),)
    run(root, speed({"tpot_ms.p99": 10.0}, gates=strict))
    for value in (10.4, 10.8, 11.2):
        assert run(root, speed({"tpot_ms.p99": value}, gates=strict), mode="all", reason="r").changes == ()
    assert level(root, "tpot_ms.p99") == 10.0


def test_the_strictest_test_of_a_case_decides(root: Path, speed: Make) -> None:
    run(root, speed({"tpot_ms.p99": 10.0}))
    values = {"tpot_ms.p99": 10.4}
    both = (speed(values, nodeid="a"), speed(values, nodeid="b", gates=(gate("tpot_ms.p99", 0.01),)))
    assert len(run(root, *both, mode="all", reason="r").refusals) == 1


def test_all_does_not_lose_a_metric_unasked(root: Path, speed: Make) -> None:
    run(root, speed({"ttft_ms.p99": 10.0}, output_throughput=100.0))
    only = speed(output_throughput=101.0)
    assert run(root, only, mode="all", reason="r").refusals == (
        f"""\
t.py::test_speed: not measured this time and would be lost: ttft_ms.p99
  {SPEED}: {KEY}
  ttft_ms.p99  10 ms -> not measured
{ACCEPT}""",
    )
    run(root, only, mode="all", reason="r", accept=True)
    assert list(speeds(root).entries[KEY].metrics) == ["output_throughput"]


def test_other_warm_up_does_not_mix(root: Path, speed: Make) -> None:
    run(root, speed(output_throughput=100.0))
    plan = run(root, speed({"ttft_ms.p99": 1.0}, warmup_rounds=3))
    assert plan.refusals == (
        "t.py::test_speed: the baseline was measured after 1 warm-up rounds, this run after 3\n"
        f"  {SPEED}: {KEY}\n{REPLACE}",
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
        "a: the run is invalid: another process on the GPU\n  Repeat the run",
        "b: the run is invalid: throttled\n  Repeat the run",
        "c: 2 requests failed\n  Repeat the run",
    )
    assert plan.files == ()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "whole"])
def test_what_was_measured_beside_others_loosens_nothing(root: Path, speed: Make, shared: bool) -> None:
    """Its result file may be all there is of it: a run that records takes the whole node."""
    where = Placement(engine="x", node="a", gpus=1, asked="22:00", granted="22:01", waited_s=0.0, shared=shared)
    record = speed(output_throughput=1.0, nodeid="a")
    plan = run(root, replace(record, result=replace(record.result, placement=where)))
    assert bool(plan.files) is not shared
    assert plan.refusals == (
        (
            "a: others were let onto its node, and nobody knows whether any came, and a neighbour may have slowed it; "
            "measure it with --inferperf-set=share_node=false\n  Repeat the run",
        )
        if shared
        else ()
    )


def test_not_measured(root: Path, speed: Make) -> None:
    empty = speed(nodeid="none", output_throughput=1.0)
    plan = run(
        root,
        speed(output_throughput=1.0, gates=(gate("ttft_ms.p99"),)),
        replace(empty, result=replace(empty.result, performance=None)),
    )
    assert plan.skipped == ("none: nothing was measured", "t.py::test_speed: ttft_ms.p99 was not measured")


def test_one_case_measured_twice(root: Path, speed: Make) -> None:
    plan = run(root, speed(output_throughput=100.0, nodeid="a"), speed(output_throughput=200.0, nodeid="b"))
    assert (plan.skipped, plan.refusals) == (("b: the same case as a, which is used",), ())
    assert level(root) == 100.0


def test_the_last_attempt_of_a_test_counts(root: Path, speed: Make, answers: Make) -> None:
    attempts = [
        speed(output_throughput=1.0, invalid="throttled"),
        speed(output_throughput=100.0),
        speed(output_throughput=200.0),
        answers(BAD),
        answers(GOOD),
    ]
    changes, notes = compare(root, attempts)
    assert ([item.new for item in changes], notes) == ([200.0, 0.9], ())
    plan = run(root, *attempts)
    assert (plan.skipped, plan.refusals) == ((), ())
    assert (level(root), score(root)) == (200.0, 0.9)
    # A last attempt that cannot be trusted is not made good by an earlier one.
    attempts = [speed(output_throughput=300.0), speed(output_throughput=300.0, invalid="throttled")]
    assert run(root, *attempts, mode="tighten").changes == ()


@pytest.mark.parametrize("value", [0.0, -5.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["new", "tighten", "all"])
def test_impossible_figures(root: Path, speed: Make, value: float, mode: str) -> None:
    run(root, speed({"tpot_ms.p99": 10.0}, output_throughput=100.0))
    before = (root.parent / SPEED).read_bytes()
    for name, unit in (("output_throughput", "tok/s"), ("tpot_ms.p99", "ms"), ("itl_ms.p99", "ms")):
        good = {"tpot_ms.p99": 10.0, "output_throughput": 100.0}
        plan = run(root, speed(good | {name: value}), mode=mode, reason="r")
        assert plan.refusals[0] == (
            f"t.py::test_speed: figures must be finite and above 0: {name}\n"
            f"  {SPEED}: {KEY}\n  {name}  {value:g} {unit}\n  Repeat the run"
        )
        assert plan.changes == ()
    assert (root.parent / SPEED).read_bytes() == before


def test_a_broken_file_does_not_stop_the_others(root: Path, speed: Make, answers: Make) -> None:
    broken = root.parent / "baselines/performance/nvidia-b200-8x/other.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    case = speed(output_throughput=1.0).result.case
    other = replace(case, engine=replace(case.engine, served_model_name="other"))
    assert case.workload is not None
    longer = replace(other, workload=replace(case.workload, isl=65))
    plan = run(
        root,
        speed(output_throughput=1.0, case=other, nodeid="a"),
        speed(output_throughput=1.0, case=longer, nodeid="b"),
        speed(output_throughput=1.0, nodeid="c"),
        answers(GOOD),
    )
    shown = "baselines/performance/nvidia-b200-8x/other.json"
    assert plan.refusals == (
        f"{shown}: line 1, column 2: not JSON: Expecting property name enclosed in double quotes."
        f" Restore it (git restore {shown}) or delete it and record it again.",
    )
    assert (level(root), score(root)) == (1.0, 0.9)
    assert broken.read_text() == "{"


@pytest.mark.parametrize("exists", [False, True])
def test_no_lock_where_nothing_is_recorded(root: Path, speed: Make, exists: bool) -> None:
    if exists:
        root.mkdir()
    assert run(root).files == ()
    assert run(root, speed(output_throughput=1.0, invalid="throttled")).files == ()
    assert run(root, speed(output_throughput=1.0), mode="all").files == ()
    assert (names(root) if root.exists() else []) == []


def test_reason_and_context_stay_with_what_did_not_change(root: Path, speed: Make) -> None:
    def stored() -> tuple[str, str, str]:
        entry = speeds(root).entries[KEY]
        return entry.provenance.reason, entry.provenance.recorded, entry.context["torch"]

    def on(torch: str, metrics: dict[str, float]) -> ResultRecord:
        found = speed(metrics)
        return replace(found, result=replace(found.result, context={"torch": torch}))

    run(root, on("1", {"ttft_ms.p99": 5.0}))
    run(root, on("2", {"ttft_ms.p99": 4.9}), mode="all", reason="decode fix", now="1")
    assert stored() == ("decode fix", "1", "2")
    run(root, on("3", {"ttft_ms.p99": 9.0, "itl_ms.p99": 1.0}), now="2")
    assert stored() == ("decode fix", "2", "2")
    run(root, on("3", {"ttft_ms.p99": 9.0, "tpot_ms.p99": 1.0}), reason="a new gate", now="3")
    assert stored() == ("decode fix; a new gate", "3", "2")
    # The others stay beside the one that is replaced, and so does their reason.
    run(root, on("4", {"ttft_ms.p99": 4.0}), mode="tighten", now="4")
    assert stored() == ("decode fix; a new gate", "4", "4")
    everything = {"ttft_ms.p99": 3.0, "itl_ms.p99": 1.0, "tpot_ms.p99": 1.0}
    run(root, on("5", everything), mode="all", reason="H200 host", now="5")
    assert stored() == ("H200 host", "5", "5")


def test_two_engines_with_one_key(root: Path, speed: Make) -> None:
    first = speed(output_throughput=100.0, nodeid="a")
    case = first.result.case
    other = replace(case, engine=replace(case.engine, engine_options=(("use_cache", False),)))
    plan = run(root, first, speed(output_throughput=50.0, nodeid="b", case=other))
    assert plan.refusals == (
        f"a and b: they share the key {KEY!r} but measure engines with different options\n"
        "  Give one of them another served_model_name",
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
    assert plan.refusals == (f"t.py::test_speed: the baseline is published (table 3)\n  {SPEED}: {KEY}\n{REPLACE}",)
    assert level(root) == 100.0


def test_published_values_are_replaced_by_all(root: Path, speed: Make) -> None:
    publish(root, speed)
    assert run(root, speed(output_throughput=200.0), mode="all", reason="ours now").refusals == ()
    assert speeds(root).entries[KEY].metrics["output_throughput"].sessions == ((200.0, 200.0),)


TASK = "sums-limit10-exact_match"


def score(root: Path, precision: str = "BF16", key: str = TASK) -> float:
    return read_accuracy(root.parent / SCORES).tasks[key].scores[precision].score


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
        loss = "0.6 points worse, allowed 0.5" if higher else "2 % worse, allowed 1"
        assert run(root, make(new), mode="all", reason="r").refusals == (
            f"t.py::test_sums[BF16]: worse beyond what is allowed: {metric}\n"
            f"  {SCORES}: sums-limit10-{metric} BF16\n  {metric}  {old[1]:g} -> {new[1]:g} ({loss})\n{ACCEPT}",
        )
    assert run(root, make(new), mode="all", reason="r", accept=True).refusals == ()
    assert score(root, key=f"sums-limit10-{metric}") == new[1]


@pytest.mark.parametrize(
    ("gates", "old", "new", "refused"),
    [
        ((AccuracyLossCeiling(reference="BF16", points=0.2),), (GOOD, 0.65), (BAD, 0.647), True),
        ((AccuracyLossCeiling(reference="BF16", points=0.2),), (GOOD, 0.65), (BAD, 0.648), False),
        ((AccuracyLossCeiling(reference="BF16", points=9.0),), (GOOD, 0.65), (BAD, 0.644), True),
        ((AccuracyLossCeiling(reference="BF16", percent=0.1),), (GOOD, 0.65), (BAD, 0.649), True),
        ((AccuracyLossCeiling(reference="BF16", percent=0.5),), ((2.5,), 10.0), ((2.5,), 9.94), True),
        ((AccuracyLossCeiling(reference="BF16", percent=0.5),), ((2.5,), 10.0), ((2.5,), 9.96), False),
        ((AccuracyLossCeiling(reference="BF16", points=0.2),), ((0.5,), 0.65), ((0.5,), 0.647), True),
    ],
)
def test_gates_allow_less_accuracy_loss(
    root: Path, answers: Make, gates: Any, old: tuple[Any, float], new: tuple[Any, float], refused: bool
) -> None:
    run(root, answers(old[0], score=old[1]))
    plan = run(root, answers(new[0], score=new[1], gates=gates), mode="all", reason="r")
    assert (len(plan.refusals), len(plan.changes)) == (int(refused), int(not refused))


def flags(count: int, of: int = 1000) -> tuple[bool, ...]:
    return (True,) * count + (False,) * (of - count)


def right(count: int, of: int = 1000) -> tuple[float, ...]:
    return (1.0,) * count + (0.0,) * (of - count)


def test_tighten_never_takes_more_unparseable_answers(root: Path, answers: Make) -> None:
    run(root, answers(right(900), unparseable=flags(0)))
    record = answers(right(901), unparseable=flags(90))
    plan = run(root, record, mode="tighten")
    assert plan.changes == ()
    assert plan.skipped == (f"{SCORES}: {TASK} BF16: not tightened: 0.00 % -> 9.00 % of answers unparseable",)
    assert score(root) == 0.9
    (shown,), _ = compare(root, [record])
    assert (shown.better, shown.unparseable) == (False, (0.0, 9.0))
    assert run(root, answers(right(901), unparseable=flags(0)), mode="tighten").changes[0].better is True


def test_fewer_unparseable_answers_are_better(root: Path, answers: Make) -> None:
    run(root, answers(right(900), unparseable=flags(90)))
    plan = run(root, answers(right(900), unparseable=flags(10)), mode="tighten")
    assert [(item.better, item.unparseable) for item in plan.changes] == [(True, (9.0, 1.0))]
    assert run(root, answers(right(899), unparseable=flags(0)), mode="tighten").changes == ()


@pytest.mark.parametrize(
    ("ceiling", "count", "refused"),
    [
        ({"points": 1.0}, 5, False),
        ({"points": 1.0}, 6, True),
        ({"points": 0.2}, 3, True),
        ({"points": 1.0, "unparseable_points": 0.3}, 3, False),
        ({"points": 1.0, "unparseable_points": 0.3}, 4, True),
    ],
)
def test_all_takes_more_unparseable_answers_with_consent(
    root: Path, answers: Make, ceiling: dict[str, Any], count: int, refused: bool
) -> None:
    run(root, answers(right(900), unparseable=flags(0)))
    gates = (AccuracyLossCeiling(reference="BF16", **ceiling),)
    record = answers(right(900), unparseable=flags(count), gates=gates)
    allowed = min(0.5, ceiling.get("unparseable_points", ceiling["points"]))
    expected = (
        "t.py::test_sums[BF16]: worse beyond what is allowed: unparseable\n"
        f"  {SCORES}: {TASK} BF16\n"
        f"  unparseable  0.00 % -> {count / 10:.2f} % of answers (allowed {allowed:g} points more)\n{ACCEPT}"
    )
    assert run(root, record, mode="all", reason="r").refusals == (expected,) * refused
    assert run(root, record, mode="all", reason="r", accept=True).refusals == ()
    assert sum(read_accuracy(root.parent / SCORES).tasks[TASK].scores["BF16"].unparseable or ()) == count


def with_answers(record: ResultRecord, **changes: Any) -> ResultRecord:
    assert record.result.accuracy is not None
    return replace(record, result=replace(record.result, accuracy=replace(record.result.accuracy, **changes)))


REPEAT, LOGPROBS = Repeat(questions=3, flips=1), {4: (-0.5, -1.0), 2: (-0.25, -1.5)}


def test_what_was_asked_twice_and_the_choices_are_kept(root: Path, answers: Make) -> None:
    run(root, with_answers(answers(GOOD), repeat=REPEAT, logprobs=LOGPROBS))
    found = read_accuracy(root.parent / SCORES).tasks[TASK].scores["BF16"]
    assert (found.repeat, found.logprobs) == (REPEAT, LOGPROBS)
    assert dump_accuracy(read_accuracy(root.parent / SCORES)) == (root.parent / SCORES).read_text()


def test_all_adds_them_to_answers_that_have_not_moved(root: Path, answers: Make) -> None:
    run(root, answers(GOOD))
    more = with_answers(answers(GOOD), repeat=REPEAT, logprobs=LOGPROBS)
    assert not run(root, more).changes
    assert moves(run(root, more, mode="all", reason="A/A")) == [("BF16", 0.9, 0.9, None)]
    assert read_accuracy(root.parent / SCORES).tasks[TASK].scores["BF16"].repeat == REPEAT
    sized = with_answers(more, task_sizes=(3, len(GOOD) - 3))
    assert len(run(root, sized, mode="all", reason="sizes").changes) == 1, (
        "a score recorded without the sizes of its tasks gets them"
    )
    assert read_accuracy(root.parent / SCORES).tasks[TASK].scores["BF16"].task_sizes == (3, len(GOOD) - 3)
    assert not run(root, with_answers(sized, repeat=Repeat(questions=3, flips=0)), mode="all", reason="again").changes


@pytest.mark.parametrize("mode", ["new", "tighten", "all"])
def test_a_part_of_the_answers_is_refused(root: Path, answers: Make, mode: str) -> None:
    asked = tuple(number < 5 for number in range(10))
    part = with_answers(answers(GOOD[:5], unparseable=(False,) * 5), asked=asked, sequential=True)
    plan = run(root, part, mode=mode, reason="x", accept=True)
    assert not plan.changes
    assert plan.refusals == (
        "t.py::test_sums[BF16]: the evaluation stopped after 5 of 10 questions, and a baseline needs all: evaluate with "
        "--inferperf-set=early_stop=false\n  Repeat the run",
    )
    assert compare(root, [part])[1] == (
        "t.py::test_sums[BF16]: not compared: the evaluation stopped after 5 of 10 questions, and a baseline needs all: "
        "evaluate with --inferperf-set=early_stop=false",
    )


def test_two_metrics_of_one_task(root: Path, answers: Make) -> None:
    run(root, answers(GOOD))
    other = answers(BAD, metric="acc_norm")
    assert moves(run(root, other)) == [("BF16", None, 0.8, None)]
    assert (score(root), score(root, key="sums-limit10-acc_norm")) == (0.9, 0.8)


@pytest.mark.parametrize("mode", ["new", "tighten"])
def test_other_questions_are_refused(root: Path, answers: Make, mode: str) -> None:
    run(root, answers(BAD))
    assert run(root, answers(GOOD, quant="NVFP4", digest="d2"), mode=mode).refusals == (
        "t.py::test_sums[NVFP4]: the questions changed; the reference must be recorded again\n"
        f"  {SCORES}: {TASK} NVFP4\n{REPLACE}",
    )
    assert run(root, answers(GOOD, higher_is_better=False), mode=mode).refusals == (
        "t.py::test_sums[BF16]: the file says that exact_match is better when higher, this run lower; the reference"
        f" must be recorded again\n  {SCORES}: {TASK} BF16\n{REPLACE}",
    )


def test_other_questions_with_all(root: Path, answers: Make) -> None:
    run(root, answers(GOOD), answers(GOOD, quant="NVFP4"))
    alone = answers(BAD, digest="d2")
    assert run(root, alone, mode="all", reason="r").refusals == (
        "t.py::test_sums[BF16]: the questions changed, so these scores would be lost: NVFP4\n"
        f"  {SCORES}: {TASK} BF16\n{ACCEPT}",
    )
    # Nothing is lost where the run answered the new questions at every precision.
    assert (
        run(
            root, answers(GOOD, digest="d2"), answers(GOOD, quant="NVFP4", digest="d2"), mode="all", reason="r"
        ).refusals
        == ()
    )
    assert read_accuracy(root.parent / SCORES).tasks[TASK].documents_digest == "d2"
    run(root, answers(GOOD, digest="d3"), mode="all", reason="r", accept=True)
    assert list(read_accuracy(root.parent / SCORES).tasks[TASK].scores) == ["BF16"]


def test_a_worse_score_of_other_questions_needs_consent(root: Path, answers: Make) -> None:
    """They cannot be paired, but what a gate is judged by would fall from .9 to .8 with a mere reason."""
    run(root, answers(GOOD))
    worse = answers(BAD, digest="d2")
    assert run(root, worse, mode="all", reason="new questions").refusals == (
        "t.py::test_sums[BF16]: worse beyond what is allowed, on other questions: exact_match\n"
        f"  {SCORES}: {TASK} BF16\n  exact_match  0.9 -> 0.8 (10 points worse, allowed 0.5)\n{ACCEPT}",
    )
    assert score(root) == 0.9
    assert run(root, worse, mode="all", reason="new questions", accept=True).refusals == ()
    assert score(root) == 0.8
    better = answers(GOOD, digest="d3")
    assert run(root, better, mode="all", reason="newer questions").refusals == ()
    assert score(root) == 0.9


def test_small_losses_on_ever_other_questions_do_not_add_up(root: Path, answers: Make) -> None:
    run(root, answers(right(900)))
    for number in (896, 892):
        refusals = run(root, answers(right(number), digest=f"d{number}"), mode="all", reason="r").refusals
        assert bool(refusals) is (number == 892)
    assert "0.8 points worse since 2026-11-21, allowed 0.5" in refusals[0]


def test_a_score_of_the_other_direction_needs_consent(root: Path, answers: Make) -> None:
    run(root, answers(GOOD))
    turned = answers(BAD, higher_is_better=False)
    assert run(root, turned, mode="all", reason="r").refusals == (
        "t.py::test_sums[BF16]: the file says that exact_match is better when higher, this run lower, so nobody can say "
        f"whether its score is a regression\n  {SCORES}: {TASK} BF16\n{ACCEPT}",
    )
    assert run(root, turned, mode="all", reason="r", accept=True).refusals == ()
    assert not read_accuracy(root.parent / SCORES).tasks[TASK].higher_is_better


def test_a_score_of_other_questions_that_is_refused_loses_nothing(root: Path, answers: Make) -> None:
    """The new reference is too lax, and without it the old one must not go either."""
    good, bad = (1.0,) * 190 + (0.0,) * 10, (1.0,) * 100 + (0.0,) * 100
    run(root, answers(good), answers(good, quant="NVFP4"))
    before = (root.parent / SCORES).read_bytes()
    records = answers(bad, digest="d2"), answers(good, quant="NVFP4", digest="d2")
    plan = run(root, *records, mode="all", reason="r", outdone=outdone)
    assert [refusal.partition("\n")[0] for refusal in plan.refusals] == [
        "t.py::test_sums[BF16]: worse beyond what is allowed, on other questions: exact_match",
        f"{SCORES}: the questions changed, so these scores would be lost: BF16",
    ]
    assert (plan.changes, plan.files) == ((), ())
    assert (root.parent / SCORES).read_bytes() == before


def test_every_precision_is_compared_with_its_own_score_on_other_questions(root: Path, answers: Make) -> None:
    """The first to be recorded takes the place of all of them; what they were counts for the next."""
    good, bad = (1.0,) * 180 + (0.0,) * 20, (1.0,) * 160 + (0.0,) * 40
    run(root, answers(good), answers(bad, quant="NVFP4"))
    before = (root.parent / SCORES).read_bytes()
    records = answers(bad, digest="d2"), answers(bad, quant="NVFP4", digest="d2")
    plan = run(root, *records, mode="all", reason="new questions", outdone=outdone)
    assert plan.refusals[0].startswith("t.py::test_sums[BF16]: worse beyond what is allowed, on other questions")
    assert (root.parent / SCORES).read_bytes() == before
    assert not run(root, *records, mode="all", reason="r", accept=True, outdone=outdone).refusals


def test_outcomes_that_cannot_be_stored(root: Path, answers: Make) -> None:
    assert run(root, answers((0.5, 1e9))).refusals == (
        "t.py::test_sums[BF16]: outcome 1 is 1000000000.0: float16 holds values up to 65504; scale the metric down.\n"
        f"  {SCORES}: {TASK} BF16\n  Correct the metric of the task, then repeat the run",
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


def test_two_servers_with_one_key(root: Path, speed: Make, speed_case: Case) -> None:
    """Options that differ in case alone: neither is judged by the other's figures, nor replaces them."""
    one, other = (
        replace(speed_case, engine=replace(speed_case.engine, serve=f"srv {option} 4")) for option in ("-c", "-C")
    )
    first = speed(output_throughput=100.0, case=one)
    assert first.result.engine is not None
    run(root, first)
    assert not isinstance(lookup_performance(root, first.result.engine.hardware, one), Missing)
    found = lookup_performance(root, first.result.engine.hardware, other)
    assert isinstance(found, Missing)
    assert found.reason == "the entry is that of serve='srv -c 4'"
    plan = run(root, speed(output_throughput=90.0, case=other), mode="all", reason="r", accept=True)
    assert (plan.changes, plan.refusals) == (
        (),
        (
            "t.py::test_speed: the entry is that of serve='srv -c 4', not of 'srv -C 4'\n"
            f"  {SPEED}: {found.key}\n  Give one of them another served_model_name",
        ),
    )


@pytest.mark.parametrize("letter", ["\u2028", "\x85"])
def test_a_patch_of_a_file_with_separators_that_git_does_not_know(root: Path, speed: Make, letter: str) -> None:
    run(root, speed(output_throughput=100.0), mode="all", reason=f"a{letter}b")
    subprocess.run(["git", "init", "-q"], cwd=root.parent, check=True)
    more: dict[str, Any] = {"reason": f"c{letter}d", "accept_regression": False, "now": "2026-11-22T00:00:00+00:00"}
    (file,) = (plan := plan_update(root, [speed(output_throughput=104.0)], mode="all", **more)).files
    write_patch(plan, root.parent / "p.patch")
    subprocess.run(["git", "apply", "p.patch"], cwd=root.parent, check=True)
    assert file.after is not None
    assert file.path.read_bytes() == file.after.encode()
