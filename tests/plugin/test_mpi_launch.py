"""Tests under MPI's launcher, and started by MPI without it: told before any engine, and never skipped in silence."""

from __future__ import annotations

import os

import pytest

from tests.plugin.servers import ServedProject
from tests.plugin.test_on_stand_in import ENGINE, FLOOR, node, run

pytestmark = pytest.mark.newest

__all__ = ["node"]

WIDE = ENGINE.replace("tp=8", "tp=8, pp=2")


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "PMIX_", "TLLM_"))]:
        monkeypatch.delenv(name)
    for name, value in {"SLURM_JOB_ID": "4711", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLLM_SPAWN_PROXY_PROCESS", "1")
    monkeypatch.setenv("tllm_mpi_size", "16")


def test_pytest_as_each_of_16_ranks_is_an_error_and_no_skip(node: ServedProject) -> None:
    node.test(WIDE, FLOOR)
    result = run(node)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*MPI started 16 copies of pytest, and each would start an engine of its own*"])


@pytest.mark.usefixtures("launched")
def test_an_engine_of_another_size_is_an_error(node: ServedProject) -> None:
    node.test(ENGINE, FLOOR)
    result = run(node)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*tp=8 x pp=1 is an engine of 8 ranks, and trtllm-llmapi-launch was started with 16*"])


@pytest.mark.usefixtures("launched")
def test_a_second_engine_beside_the_first_is_an_error(node: ServedProject) -> None:
    node.test(WIDE, "speedup_floor('output_throughput', over='W4A16_NVFP4', ratio=1.1)")
    result = run(node)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*W4A16_NVFP4 would be held beside this engine*one at a time*--inferperf-against=*"])


@pytest.mark.usefixtures("launched")
def test_a_plan_counts_the_gpus_of_each_node(node: ServedProject) -> None:
    node.test(WIDE, "requires_gpu(count=16)", FLOOR)
    result = run(node, "--inferperf-plan")
    result.stdout.fnmatch_lines(["*GPUs        8 GPUs of SM 80 or later; found 8 x NVIDIA B200*"])
