"""Plans of runs on machines other than this one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf.baselines.entries import MetricBaseline, PerformanceEntry, Provenance, performance_key
from pytest_inferperf.baselines.store import PerformanceFile, dump_performance, performance_identity, performance_path
from pytest_inferperf.engines.backends import BACKENDS, Backend
from pytest_inferperf.engines.hardware import Gpu, cpu_hardware
from pytest_inferperf.model.case import Case, EngineSpec, GpuRequirement, Workload
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.plan import CasePlan, EnginePlan, Foresight
from pytest_inferperf.model.results import Hardware
from pytest_inferperf.planning import Conditions, PlannedTest, make_plan

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


def store(root: Path, case: Case, hardware: Hardware) -> None:
    entry = PerformanceEntry(
        path="",
        key=performance_key(case),
        metrics={"output_throughput": MetricBaseline(sessions=((100.0,), (101.0,)))},
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
