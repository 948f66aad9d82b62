"""The simulation of `benchmarks/scale.py`: the placement rules, by hand where they can be worked out."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pytest_inferperf.cluster.rules import Request
from pytest_inferperf.model.case import GpuRequirement

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module
    spec.loader.exec_module(module)
    return module


def makespan(scale: ModuleType, *jobs: tuple[int, bool, float], gpus: int = 8) -> float:
    listed = [
        scale.Job(request=Request(what="it", need=GpuRequirement(count=count), whole_node=whole), seconds=seconds)
        for count, whole, seconds in jobs
    ]
    return float(scale.simulate(listed, scale.nodes_of(gpus), head_s=0.0, node_s=0.0).makespan_s)


def test_cases_that_fit_run_side_by_side(scale: ModuleType) -> None:
    assert makespan(scale, (4, False, 10), (4, False, 10)) == 10
    assert makespan(scale, (4, False, 10), (8, False, 10)) == 20


def test_a_case_that_is_measured_has_its_node_to_itself(scale: ModuleType) -> None:
    assert makespan(scale, (1, True, 10), (1, False, 10)) == 20
    assert makespan(scale, (1, True, 10), (1, False, 10), gpus=16) == 10


def test_what_fits_now_does_not_wait_for_what_does_not(scale: ModuleType) -> None:
    # The whole node is taken after the first; the last one runs beside the first meanwhile.
    assert makespan(scale, (1, False, 10), (8, False, 10), (1, False, 10)) == 20


def test_an_engine_is_never_split_over_nodes(scale: ModuleType) -> None:
    assert makespan(scale, (6, False, 10), (6, False, 10), (4, False, 10), gpus=16) == 20
    with pytest.raises(ValueError, match="it fits no node: 9 GPUs on one node"):
        makespan(scale, (9, False, 10), gpus=16)


def test_the_head_serves_one_case_after_the_other(scale: ModuleType) -> None:
    jobs = [scale.Job(request=Request(what="it", need=GpuRequirement(count=1)), seconds=10.0)] * 8
    found = scale.simulate(jobs, scale.nodes_of(8), head_s=1.0, node_s=2.0)
    assert found.makespan_s == 8 * 1.0 + 2.0 + 10.0


def test_no_run_is_shorter_than_its_bounds(scale: ModuleType) -> None:
    jobs = scale.mixed_jobs()
    for gpus in (8, 64, 512):
        found = scale.simulate(jobs, scale.nodes_of(gpus))
        assert found.makespan_s > found.bound_s
        assert 0 < found.utilization <= 1
