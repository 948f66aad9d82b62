"""A project with a suite for an engine of 16 GPUs, on a stand-in of a cluster: two nodes of eight B200."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.engines.tensorrt_llm.conftest import STAND_IN, write_checkpoint, write_weights

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
BIN = Path(__file__).parent / "bin"

SUITE = """
import pytest


@pytest.mark.inferperf(
    model="tiny-llama", backend="tensorrt_llm", tp=8, pp=2, isl=16, osl=8, concurrency=2, num_requests=4, rounds=1,
    warmup_rounds=0, sessions=2,
)
@pytest.mark.requires_gpu(sm=100, count=16)
@pytest.mark.throughput_floor(output_throughput=0.001)
def test_serving(inferperf):
    inferperf.measure()
"""

CONFTEST = """
from pytest_inferperf.measure import energy, gpu, telemetry

# The stand-in of NVML knows cards and nothing that they do.
for module in (energy, gpu, telemetry):
    if hasattr(module, "load_nvml"):
        module.load_nvml = lambda: None
"""

INI = """[pytest]
addopts = -p no:cacheprovider -p no:xdist -p no:benchmark
inferperf_max_interference = 1
inferperf_max_throttled = 1
inferperf_min_clock = 0
"""


@dataclass
class Cluster:
    """The project's folder, and the environment of whoever submits jobs in it."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.path,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def suite(self, text: str) -> None:
        (self.path / "suite" / "test_it.py").write_text(text)

    @property
    def out(self) -> Path:
        return self.path / "results" / "4711"

    @property
    def results(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.out / "results.json").read_text())["records"]
        return found


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    suite = tmp_path / "suite"
    suite.mkdir()
    write_weights(write_checkpoint(suite / "tiny-llama"))
    (suite / "pytest.ini").write_text(INI)
    (suite / "conftest.py").write_text(CONFTEST)
    shutil.copytree(EXAMPLES, tmp_path / "docs" / "examples")
    mine = ("CI", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "CUDA_VISIBLE_DEVICES")
    hidden = (*mine, *(name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "PMIX_", "TLLM_"))))
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    paths = (BIN, Path(sys.executable).parent, environment["PATH"])
    cluster = Cluster(
        tmp_path,
        environment
        | {
            "PATH": os.pathsep.join(map(str, paths)),
            "PYTHONPATH": os.pathsep.join(map(str, (STAND_IN, STAND_IN / "light"))),
            "TRTLLM_STAND_IN_GPUS": "8",
            "STAND_IN_LOG": str(tmp_path / "slurm.log"),
            "INFERPERF_LOCK_DIR": str(tmp_path / "locks"),
            "IMAGE": "registry#tensorrt-llm:1.2.1",
            "MODELS": str(tmp_path / "models"),
        },
    )
    cluster.suite(SUITE)
    return cluster
