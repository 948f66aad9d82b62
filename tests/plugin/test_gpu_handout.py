"""GPUs handed out to engines: by one process, by xdist workers, and what is told to who waits."""

from __future__ import annotations

import json

import pytest

from pytest_inferperf.engines.devices import lease_devices
from pytest_inferperf.engines.hardware import Gpu
from pytest_inferperf.model.case import GpuRequirement
from tests.plugin.conftest import Project

MODULE = """
import pytest

@pytest.mark.parametrize("n", range({tests}))
@pytest.mark.inferperf(model="org/tiny-llama", quant="NVFP4", tp={tp}, isl=16, osl=8, rounds=1, backend="tensorrt_llm")
@pytest.mark.throughput_floor(output_throughput=0.001)
def test_it(inferperf, n):
    inferperf.measure()
"""

GPUS = """

# A machine with GPUs, and a package that runs on them.
import os
from pytest_inferperf.engines import hardware, launch, needs
from pytest_inferperf.engines.hardware import Gpu, GpuMachine

_machine = GpuMachine(
    gpus=tuple(Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0, uuid=f"GPU-{{n}}") for n in "abcd"[:{count}])
)
hardware.look_at_gpus = lambda: _machine


class LeasedEngine(ScriptedEngine):
    devices = ()

    def generate(self, requests, *, concurrency):
        # Whoever shared a card would find the mark of the other.
        for uuid in self.devices:
            os.mkdir(self.root / f"{{uuid}}.busy")
        time.sleep(0.3)
        for uuid in self.devices:
            os.rmdir(self.root / f"{{uuid}}.busy")
        return super().generate(requests, concurrency=concurrency)


def _open(spec, *, lease, **_):
    engine = LeasedEngine(spec, _root)
    engine.devices = lease.uuids
    with (_root / "leases.log").open("a") as log:
        log.write(json.dumps(lease.environment) + "\\n")
    return engine


launch.open_engine = _open
del pytest_inferperf_make_engine
"""


@pytest.fixture
def machine(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("INFERPERF_LOCK_DIR", str(project.path / "locks"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return project


def write(machine: Project, *, gpus: int, tests: int = 1, tp: int = 1) -> None:
    conftest = machine.path / "conftest.py"
    conftest.write_text(conftest.read_text() + GPUS.format(count=gpus))
    (machine.path / "test_it.py").write_text(MODULE.format(tests=tests, tp=tp))


def run(machine: Project, *arguments: str) -> pytest.RunResult:
    return machine.pytester.runpytest_subprocess("-p", "no:benchmark", *arguments, timeout=120)


def leases(machine: Project) -> list[str]:
    return [json.loads(line)["CUDA_VISIBLE_DEVICES"] for line in (machine.path / "leases.log").read_text().splitlines()]


def test_an_engine_gets_as_many_cards_as_it_spans(machine: Project) -> None:
    write(machine, gpus=4, tp=2)
    run(machine).assert_outcomes(passed=1)
    assert leases(machine) == ["GPU-a,GPU-b"]


def test_workers_run_side_by_side_on_cards_of_their_own(machine: Project) -> None:
    """Performance too: no neighbour computes on the same card."""
    write(machine, gpus=2, tests=4)
    run(machine, "-n", "2").assert_outcomes(passed=4)
    assert set(leases(machine)) == {"GPU-a", "GPU-b"}


def test_workers_on_one_card_take_turns(machine: Project) -> None:
    write(machine, gpus=1, tests=2)
    run(machine, "-n", "2").assert_outcomes(passed=2)
    assert set(leases(machine)) == {"GPU-a"}


def test_a_wait_that_is_too_long_fails_and_names_the_holder(machine: Project) -> None:
    write(machine, gpus=1)
    folder = machine.path / "locks"
    folder.mkdir()
    gpu = Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0, uuid="GPU-a")
    held = lease_devices(GpuRequirement(), [gpu], holder="BF16 neighbour", timeout_s=1, folder=folder)
    try:
        result = run(machine, "-o", "inferperf_gpu_timeout=0.5")
    finally:
        held.release()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "waited 0.5 s for 1 GPU of SM 100 or later (inferperf_gpu_timeout): GPU-a is held by process *, BF16 neighbour"
        ]
    )


def test_an_engine_that_fails_to_open_gives_its_card_back(machine: Project) -> None:
    """Whatever it failed with: the engine after it spans more cards."""
    write(machine, gpus=2)
    conftest = machine.path / "conftest.py"
    fault = "    if spec.tp == 1:\n        raise ValueError('a fault of its own')\n    engine = LeasedEngine"
    conftest.write_text(conftest.read_text().replace("    engine = LeasedEngine", fault))
    one = (machine.path / "test_it.py").read_text()
    (machine.path / "test_larger.py").write_text(one.replace("tp=1", "tp=2"))
    run(machine).assert_outcomes(errors=1, passed=1)
    assert leases(machine) == ["GPU-a,GPU-b"]


def test_an_engine_gets_a_card_that_its_tests_ask_for(machine: Project) -> None:
    """Not the first one, which the engine alone would be content with."""
    write(machine, gpus=2)
    conftest = machine.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace("memory_gib=178.0", "memory_gib=100.0 if n == 'a' else 178.0"))
    module = machine.path / "test_it.py"
    module.write_text(
        module.read_text().replace("@pytest.mark.t", "@pytest.mark.requires_gpu(memory_gib=150)\n@pytest.mark.t")
    )
    run(machine).assert_outcomes(passed=1)
    assert leases(machine) == ["GPU-b"]
