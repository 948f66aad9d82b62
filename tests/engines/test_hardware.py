"""What NVML says of a machine, and what it lacks for a test."""

from __future__ import annotations

import sys

import pytest

from pytest_inferperf.engines.hardware import GpuMachine, find_gpus, gpu_words, look_at_gpus, why_missing
from pytest_inferperf.model.case import GpuRequirement
from tests.measure.nvml import Gpu, NewNvml


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def machine(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu, driver: bool = True, cuda: int = 12080) -> NewNvml:
    nvml = NewNvml(*gpus, driver=driver, cuda=cuda)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def test_describes_every_gpu_and_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = machine(monkeypatch, Gpu("GPU-a"), Gpu("GPU-b", limit_mw=500_000, links=(1, 0, 1)))
    found = look_at_gpus()
    assert (found.driver, found.cuda) == ("570.124.06", "12.8")
    first, second = found.gpus
    assert (first.name, first.sm, first.memory_gib, first.uuid) == ("NVIDIA B200", 100, 178.0, "GPU-a")
    assert (first.nvlinks, first.mig, first.power_limit_w) == (18, False, 700.0)
    assert (second.nvlinks, second.power_limit_w) == (2, 500.0)
    assert not nvml.is_open


def test_what_a_gpu_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, Gpu("GPU-a", links=(), mig=None, limit_mw=None))
    (gpu,) = look_at_gpus().gpus
    assert (gpu.nvlinks, gpu.mig, gpu.power_limit_w) == (0, False, None)


def test_a_gpu_that_fell_off_the_bus_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, Gpu("GPU-a"), Gpu("lost"), Gpu("GPU-c"), Gpu("GPU-d", capability=None))
    assert [gpu.uuid for gpu in find_gpus()] == ["GPU-a", "GPU-c"]


@pytest.mark.parametrize(
    ("setting", "expected"), [("1", ["GPU-b"]), ("GPU-c,0", ["GPU-a", "GPU-c"]), ("", []), ("MIG-5f1e", [])]
)
def test_hidden_gpus_are_none(monkeypatch: pytest.MonkeyPatch, setting: str, expected: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    machine(monkeypatch, Gpu("GPU-a"), Gpu("GPU-b"), Gpu("GPU-c"))
    assert [gpu.uuid for gpu in find_gpus()] == expected


def test_without_a_driver_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, driver=False)
    assert look_at_gpus() == GpuMachine()
    assert look_at_gpus().context() == {}


def test_context_holds_driver_and_power_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, Gpu("GPU-a"), Gpu("GPU-b", limit_mw=1_000_000))
    assert look_at_gpus().context() == {
        "driver": "570.124.06",
        "driver_cuda": "12.8",
        "power_limit_w": "700, 1000",
    }


def test_a_gpu_cut_into_instances_meets_no_need(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, Gpu("GPU-a"), Gpu("GPU-b", mig=[1, 1]))
    gpus = find_gpus()
    assert why_missing(GpuRequirement(sm=100), gpus) == ""
    assert why_missing(GpuRequirement(sm=100, count=2), gpus) == (
        "needs 2 GPUs of SM 100 or later; found NVIDIA B200 (SM 100, 178 GiB), "
        "NVIDIA B200 (SM 100, 178 GiB, cut into MIG instances)"
    )


def test_equal_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, *(Gpu(f"GPU-{name}") for name in "abcdefgh"))
    assert gpu_words(find_gpus()) == "8 x NVIDIA B200 (SM 100, 178 GiB)"
