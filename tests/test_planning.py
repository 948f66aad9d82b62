"""Plans as values: machines other than this one, engines to compare with, and expected times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.against import RunReference
from pytest_inferperf.baselines.entries import MetricBaseline, PerformanceEntry, Provenance, performance_key
from pytest_inferperf.baselines.format import PerformanceFile, dump_performance
from pytest_inferperf.baselines.past import Past
from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord
from pytest_inferperf.baselines.store import performance_identity, performance_path
from pytest_inferperf.engines.backends import BACKENDS, Backend
from pytest_inferperf.engines.hardware import Gpu, cpu_hardware
from pytest_inferperf.model.case import Case, EngineSpec, GpuRequirement, ReferenceEngine, Task, Workload
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling, PerformanceGate, SpeedupFloor
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.plan import CasePlan, EnginePlan, Foresight
from pytest_inferperf.model.results import (
    Abba,
    AccuracyResult,
    CaseResult,
    Comparison,
    EngineInfo,
    Hardware,
    PerformanceResult,
    Round,
    Session,
)
from pytest_inferperf.planning.conditions import Conditions, PlannedTest
from pytest_inferperf.planning.plan import make_plan
from tests.values import engine_info, one_round

pytestmark = pytest.mark.newest

B200 = Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0)
EIGHT = Hardware(name="NVIDIA B200", count=8, kind="gpu")
FLOOR = PerformanceGate(metric=parse_metric("output_throughput"))


@pytest.fixture
def test(tmp_path: Path) -> PlannedTest:
    """A case of plain weights that lie in a folder, on eight GPUs, with a floor."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    spec = EngineSpec(model=str(model), served_model_name="llama", tp=8)
    case = Case(engine=spec, workload=Workload(isl=8, osl=8))
    return PlannedTest(nodeid="t.py::test", engine=spec, case=case, gates=(FLOOR,), need=GpuRequirement(count=8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "baselines"


def store(
    root: Path, case: Case, hardware: Hardware, sessions: tuple[tuple[float, ...], ...] = ((100.0,), (101.0,))
) -> None:
    entry = PerformanceEntry(
        path="",
        key=performance_key(case),
        metrics={"output_throughput": MetricBaseline(sessions=sessions)},
        warmup_rounds=1,
        provenance=Provenance(kind="measured"),
        identity=performance_identity(case),
    )
    path = performance_path(root, hardware, case)
    path.parent.mkdir(parents=True)
    path.write_text(dump_performance(PerformanceFile(model="llama", hardware=hardware, entries={entry.key: entry})))


def plan(test: PlannedTest, conditions: Conditions) -> tuple[EnginePlan, CasePlan]:
    (engine,) = make_plan([test], conditions).engines
    (case,) = engine.cases
    return engine, case


def test_the_baseline_of_this_machine(test: PlannedTest, root: Path) -> None:
    assert test.case is not None
    store(root, test.case, EIGHT)
    _, case = plan(test, Conditions(baselines=root, gpus=(B200,) * 8))
    assert case.skipped == ""
    assert case.gates[0].state is Foresight.UNCALIBRATED
    assert case.gates[0].text.startswith("2 sessions of the 5")


def test_a_baseline_of_other_hardware_is_none(test: PlannedTest, root: Path) -> None:
    assert test.case is not None
    store(root, test.case, EIGHT)
    h200 = Gpu(name="NVIDIA H200", sm=90, memory_gib=140.0)
    _, case = plan(test, Conditions(baselines=root, gpus=(h200,) * 8))
    assert case.gates[0].state is Foresight.MISSING
    assert case.gates[0].text == (
        "baselines/performance/nvidia-h200-8x/llama.json: no such file (there is one for 8 x NVIDIA B200); "
        "key BF16-tp8-isl8-osl8-c1"
    )


def test_a_machine_that_only_plans_uses_what_is_on_file(test: PlannedTest, root: Path) -> None:
    """On a laptop: the test will not run here, and the baseline of the GPUs is shown with their name."""
    assert test.case is not None
    store(root, test.case, EIGHT)
    engine, case = plan(test, Conditions(baselines=root))
    assert case.skipped == "needs 8 GPUs; found no NVIDIA GPU"
    assert not engine.is_opened
    assert case.gates[0].text.startswith("2 sessions on 8 x NVIDIA B200 of the 5")


def test_the_baseline_of_another_server_with_the_same_key_is_none(test: PlannedTest, root: Path) -> None:
    """The judge takes it for none too: options that differ in case alone give one key."""
    assert test.case is not None
    spec = replace(test.engine, serve="srv -c 4")
    store(root, replace(test.case, engine=spec), EIGHT)
    for serve, state in (("srv -c 4", Foresight.UNCALIBRATED), ("srv -C 4", Foresight.MISSING)):
        case = replace(test.case, engine=replace(spec, serve=serve))
        for gpus in ((B200,) * 8, ()):
            _, planned = plan(replace(test, engine=case.engine, case=case), Conditions(baselines=root, gpus=gpus))
            assert planned.gates[0].state is state


def test_a_cpu(test: PlannedTest, root: Path) -> None:
    spec = replace(test.engine, tp=1)
    assert test.case is not None
    case = replace(test.case, engine=spec)
    store(root, case, cpu_hardware())
    engine, planned = plan(replace(test, engine=spec, case=case, need=None), Conditions(baselines=root))
    assert engine.gpus == "none needed"
    assert planned.gates[0].state is Foresight.UNCALIBRATED


def test_a_backend_that_needs_a_gpu_needs_the_generation_of_the_format(
    test: PlannedTest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_only = Backend(name="served", class_path="", requires=(), extra="served", needs_gpu=True)
    monkeypatch.setitem(BACKENDS, "served", gpu_only)
    spec = replace(test.engine, backend="served", quant="NVFP4")
    engine, _ = plan(replace(test, engine=spec, need=None), Conditions(baselines=root, cache_dir=root))
    assert engine.gpus == "8 GPUs of SM 100 or later; found no NVIDIA GPU"


def test_what_keeps_an_engine_from_being_opened(test: PlannedTest, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    engine, case = plan(test, Conditions(baselines=root, gpus=(B200,) * 8))
    assert engine.problem.startswith('the transformers backend needs the "embedded" extra')
    assert case.gates[0].state is Foresight.MISSING
    gone = replace(test.engine, model="./nowhere", backend="nonsense")
    engine, _ = plan(replace(test, engine=gone), Conditions(baselines=root, gpus=(B200,) * 8))
    assert "unknown backend 'nonsense'" in engine.problem
    assert engine.problem.endswith("\nmodel ./nowhere: no such folder")


# Engines to compare with.


def over(test: PlannedTest, **reference: Any) -> ReferenceEngine:
    changes = {"label": "FP8", "spec": replace(test.engine, quant="FP8"), **reference}
    return ReferenceEngine(**changes)


def test_a_reference_engine_is_one_that_is_opened(test: PlannedTest, root: Path) -> None:
    """Its checkpoint, its problems, and GPUs for the larger of the two, which share them."""
    reference = over(test, spec=replace(test.engine, quant="FP8", tp=16, backend="nonsense"))
    gates = (SpeedupFloor(metric=FLOOR.metric, reference=reference),)
    engine, case = plan(replace(test, gates=gates), Conditions(baselines=root, cache_dir=root, gpus=(B200,) * 8))
    (found,) = engine.references
    assert (found.name, found.label, found.reload) == ("FP8 llama", "FP8", False)
    assert found.checkpoint.startswith("to be built from ")
    assert found.problem.startswith("unknown backend 'nonsense'")
    assert engine.gpus.startswith("16 GPUs; found 8 x NVIDIA B200")
    assert case.gates[0].state is Foresight.UNKNOWN


def test_the_backends_of_another_interpreter_are_not_known(test: PlannedTest, root: Path) -> None:
    reference = over(test, spec=replace(test.engine, backend="old"), python="/old/bin/python", reload=True)
    gates = (SpeedupFloor(metric=FLOOR.metric, reference=reference),)
    engine, _ = plan(replace(test, gates=gates), Conditions(baselines=root, gpus=(B200,) * 8))
    (found,) = engine.references
    assert (found.problem, found.python, found.reload) == ("", "/old/bin/python", True)


# Expected times.

CPU = Hardware(name="CPU", count=1, kind="cpu")


def info(load_s: float) -> EngineInfo:
    return engine_info(backend="b", hardware=CPU, max_model_len=64, load_s=load_s)


def rounds(seconds: float, values: Sequence[float] = (100.0, 100.0)) -> tuple[Round, ...]:
    return tuple(
        one_round({"output_throughput": value}, duration_s=seconds, input_tokens=8, output_tokens=8) for value in values
    )


def after(*results: CaseResult) -> Past:
    records = tuple(
        ResultRecord(nodeid=f"t.py::test{number}", result=result, gates=(), verdicts=(), status=None)
        for number, result in enumerate(results)
    )
    return Past([ResultFile(created="2026-01-01", environment={}, records=records)])


def times(test: PlannedTest, conditions: Conditions) -> tuple[float | None, float | None]:
    _, case = plan(replace(test, by_hook=True, need=None), conditions)
    return case.duration_s, case.longest_s


def measured(test: PlannedTest, seconds: float = 2.0, load_s: float = 30.0) -> CaseResult:
    assert test.case is not None
    sessions = (Session(rounds=rounds(seconds), warmup_rounds=1),)
    return CaseResult(case=test.case, engine=info(load_s), performance=PerformanceResult(sessions=sessions))


def workload(test: PlannedTest, **changes: Any) -> PlannedTest:
    assert test.case is not None
    assert test.case.workload is not None
    return replace(test, case=replace(test.case, workload=replace(test.case.workload, **changes)))


def test_sessions_after_the_first_launch_the_engine_again(test: PlannedTest, root: Path) -> None:
    """Six rounds of 2 s, and 30 s for each further launch."""
    past = after(measured(test))
    conditions = Conditions(baselines=root, past=past)
    assert times(test, conditions) == (12.0, 5 * 12.0 + 4 * 30.0)
    assert times(workload(test, sessions=3), conditions) == (3 * 12.0 + 2 * 30.0, 5 * 12.0 + 4 * 30.0)
    limited = replace(test, gates=(replace(FLOOR, limit=5.0),))
    assert times(limited, conditions) == (12.0, None)
    assert times(workload(limited, sessions=7), conditions) == (7 * 12.0 + 6 * 30.0, None)


def test_noisy_sessions_take_more_of_them(test: PlannedTest, root: Path) -> None:
    assert test.case is not None
    stored = tuple((100.0 + step,) for step in (-6, -4, -2, 0, 2, 4, 6, 0))
    store(root, test.case, EIGHT, stored)
    conditions = Conditions(baselines=root, past=after(measured(test)), tolerance=0.12)
    _, case = plan(replace(test, by_hook=True, need=None), conditions)
    used = case.gates[0].used
    assert used is not None
    assert used > 1.5
    assert case.duration_s == pytest.approx(used * 12.0 + (used - 1) * 30.0)


@pytest.mark.parametrize("reload", [False, True])
def test_blocks_take_the_reference_engine_too(test: PlannedTest, root: Path, reload: bool) -> None:
    """Blocks on file: candidate rounds of 2 s and a load of 30 s, reference rounds of 4 s and a load of 10 s."""
    reference = over(test, reload=reload)
    speedup = SpeedupFloor(metric=FLOOR.metric, reference=reference)
    blocks = tuple(
        Abba(reference=rounds(4.0), candidate=rounds(2.0, (100 + step, 100 + step))) for step in (-0.1, 0.0, 0.1)
    )
    assert test.case is not None
    compared = Comparison(reference=reference, engine=info(10.0), blocks=blocks)
    past = after(CaseResult(case=test.case, engine=info(30.0), comparisons=(compared,)))
    conditions = Conditions(baselines=root, past=past)
    each = 40.0 + 3 * 6.0 if reload else 2 * 6.0
    first = 0.0 if reload else 10.0 + 6.0
    only = replace(test, gates=(speedup,))
    assert times(only, conditions) == pytest.approx((first + 3 * each, first + 10 * each))
    # A floor beside it is measured in sessions of their own.
    both = replace(test, gates=(FLOOR, speedup))
    assert times(both, conditions) == pytest.approx((12.0 + first + 3 * each, 180.0 + first + 10 * each))
    assert times(
        replace(only, gates=(replace(speedup, reference=over(test, label="BF16", spec=test.engine)),)), conditions
    ) == (pytest.approx((30.0 + 4.0 + 3 * 8.0, 30.0 + 4.0 + 10 * 8.0)))


def test_a_reference_that_never_ran_leaves_the_time_unknown(test: PlannedTest, root: Path) -> None:
    gates = (SpeedupFloor(metric=FLOOR.metric, reference=over(test)),)
    conditions = Conditions(baselines=root, past=after(measured(test)))
    assert times(replace(test, gates=gates), conditions) == (None, None)
    assert test.case is not None
    other = replace(measured(test, 4.0, 10.0), case=replace(test.case, engine=over(test).spec))
    known = Conditions(baselines=root, past=after(measured(test), other))
    assert times(replace(test, gates=gates), known) == pytest.approx((10 + 6 + 3 * 12.0, 10 + 6 + 10 * 12.0))


# Tasks.

CEILING = AccuracyLossCeiling(reference="BF16", points=2.0)


def asked(outcomes: Sequence[float], **changes: Any) -> AccuracyResult:
    return AccuracyResult(
        task="sums",
        metric="acc",
        higher_is_better=True,
        score=sum(outcomes) / len(outcomes),
        outcomes=tuple(outcomes),
        documents_digest="d",
        duration_s=changes.pop("duration_s", 400.0),
        **changes,
    )


@pytest.fixture
def sums(test: PlannedTest) -> PlannedTest:
    """A task of plain weights, with a ceiling."""
    spec = replace(test.engine, tp=1, quant="NVFP4")
    case = Case(engine=spec, task=Task(name="sums"))
    return PlannedTest(nodeid="t.py::sums", engine=spec, case=case, gates=(CEILING,), by_hook=True)


RIGHT = [1.0] * 3000 + [0.0] * 1000


def test_a_task_that_may_stop_takes_a_share_of_its_time(sums: PlannedTest, root: Path) -> None:
    """Against the answers of a run, which a quarter of the questions decides; without a baseline all are asked."""
    assert sums.case is not None
    result = CaseResult(case=sums.case, engine=info(30.0), accuracy=asked(RIGHT))
    past = after(result)
    assert times(sums, Conditions(baselines=root, past=past)) == (400.0, None)
    record = ResultRecord(nodeid="t.py::sums", result=result, gates=(), verdicts=(), status=None)
    run = RunReference(label="old.json", file=ResultFile(created="", environment={}, records=(record,)))
    # A run's answers are those of its label, not of the candidate: flips are assumed, and the margins are wide.
    wide = replace(sums, gates=(AccuracyLossCeiling(reference="old.json", points=8.0),))
    conditions = Conditions(baselines=root, past=past, against=run)
    assert times(wide, conditions) == pytest.approx((100.0, 400.0), rel=0.02)
    case = replace(sums.case, task=Task(name="sums", early_stop=False))
    assert times(replace(wide, case=case), conditions) == (400.0, None)
    assert times(replace(wide, gates=(*wide.gates, AccuracyFloor(points=10.0))), conditions) == (400.0, None)


def test_a_reference_engine_answers_a_task_once(sums: PlannedTest, root: Path) -> None:
    """Its load and its answers count for the first test; what it answered before says what the ceiling can find."""
    assert sums.case is not None
    reference = ReferenceEngine(label="quant=BF16", spec=replace(sums.engine, quant="BF16"))
    gates = (replace(CEILING, reference="quant=BF16"),)
    first = replace(sums, gates=gates, against=reference)
    compared = Comparison(reference=reference, engine=info(10.0), accuracy=asked(RIGHT, duration_s=50.0))
    flipped = [1 - value if index % 100 == 0 else value for index, value in enumerate(RIGHT)]
    own = CaseResult(case=sums.case, engine=info(30.0), accuracy=asked(flipped), comparisons=(compared,))
    conditions = Conditions(baselines=root, past=after(own), against_engine="quant=BF16")
    (engine,) = make_plan([first, replace(first, nodeid="t.py::again")], conditions).engines
    one, two = engine.cases
    assert "4000 questions, 1 % flips on file: " in one.gates[0].text
    assert one.duration_s is not None
    assert two.duration_s is not None
    assert one.duration_s - two.duration_s == pytest.approx(60.0)
    assert two.longest_s == 400.0
    assert [item.name for item in engine.references] == ["BF16 llama"]
    # Nor is it opened for another engine's test of the same task, nor for a test that does not run here.
    other = replace(first, engine=replace(first.engine, quant="FP8"), nodeid="t.py::other")
    assert [len(item.references) for item in make_plan([first, other], conditions).engines] == [1, 0]
    assert [len(item.references) for item in make_plan([other, first], conditions).engines] == [1, 0]
    far = replace(other, need=GpuRequirement(count=9))
    assert [len(item.references) for item in make_plan([far, first], conditions).engines] == [0, 1]
    partial = replace(own, accuracy=asked(RIGHT[:1000], asked=(True,) * 1000 + (False,) * 3000))
    _, case = plan(first, Conditions(baselines=root, past=after(partial)))
    assert "4000 questions, 5 % flips assumed: " in case.gates[0].text


def test_answers_that_only_the_run_will_have(sums: PlannedTest, root: Path) -> None:
    reference = ReferenceEngine(label="quant=BF16", spec=replace(sums.engine, quant="BF16"))
    first = replace(sums, gates=(replace(CEILING, reference="quant=BF16"),), against=reference)
    plan_ = make_plan([first], Conditions(baselines=root, against_engine="quant=BF16"))
    (gate,) = plan_.engines[0].cases[0].gates
    assert gate.state is Foresight.UNKNOWN
    assert gate.text == "quant=BF16 answers in the run; what its answers can tell is known after it"
    assert plan_.against == "quant=BF16: runs, and answers, in this run; no baseline is read"
    # A floor alone asks no reference.
    floor = replace(first, gates=(AccuracyFloor(points=10.0),))
    assert make_plan([floor], Conditions(baselines=root)).engines[0].references == ()


# A run in the place of the baselines.


def test_a_run_stands_in_for_the_baselines(test: PlannedTest, root: Path) -> None:
    """Its sessions and its hardware; a case it does not have asks for a run, not for a baseline."""
    assert test.case is not None
    stored = tuple(Session(rounds=rounds(1.0, (100.0 + step,)), warmup_rounds=1) for step in (-1, -0.5, 0, 0.5, 1, 0))
    result = CaseResult(case=test.case, engine=info(5.0), performance=PerformanceResult(sessions=stored))
    record = ResultRecord(nodeid="t.py::test", result=result, gates=(), verdicts=(), status=None)
    run = RunReference(label="old.json", file=ResultFile(created="", environment={}, records=(record,)))
    conditions = Conditions(baselines=root, against=run)
    _, case = plan(replace(test, by_hook=True, need=None), conditions)
    assert case.gates[0].text.startswith("6 sessions on 1 x CPU, sd 0.7")
    assert case.gates[0].state is Foresight.ABLE
    other = workload(test, osl=99)
    _, missing = plan(replace(other, by_hook=True, need=None), conditions)
    assert missing.gates[0].state is Foresight.MISSING
    assert missing.gates[0].text == "against old.json: no result of this case; key BF16-tp8-isl8-osl99-c1"
    assert missing.gates[0].next_step == (
        "record it where the reference runs: pytest {nodeid} --inferperf-json=old.json"
    )
    here = plan(test, Conditions(baselines=root, against=run, gpus=(B200,) * 8))[1]
    assert here.gates[0].state is Foresight.MISSING
    assert "is from 1 x CPU, not 8 x NVIDIA B200" in here.gates[0].text
