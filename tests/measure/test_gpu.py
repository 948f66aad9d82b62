"""What the GPUs did, from a strict stand-in of pynvml."""

from __future__ import annotations

import inspect
import sys

import pynvml
import pytest

from pytest_inferperf.measure.gpu import GpuWatch, load_nvml
from tests.measure.nvml import Gpu, NewNvml, Nvml

ENGINE, STRANGER = 100, 900


def opened(*gpus: Gpu, kind: type[Nvml] = NewNvml) -> Nvml:
    nvml = kind(*gpus)
    nvml.nvmlInit()
    return nvml


def seen(watching: GpuWatch) -> dict[str, float]:
    return watching.figures(ours={ENGINE}, known={1, ENGINE, STRANGER})


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize("kind", [Nvml, NewNvml])
def test_the_stand_in_is_like_the_real_module(kind: type[Nvml]) -> None:
    names = [name for name in dir(kind) if name.startswith(("nvml", "NVML_"))]
    assert len(names) > 25
    for name in names:
        real, ours = getattr(pynvml, name), getattr(kind, name)
        if callable(ours):
            assert list(inspect.signature(real).parameters) == list(inspect.signature(ours).parameters)[1:], name
        else:
            assert real == ours, name
    assert "pid" in [name for name, _ in pynvml.c_nvmlProcessInfo_v2_t._fields_]


def test_a_good_gpu() -> None:
    gpu = Gpu("GPU-a", pids=[ENGINE], errors=3)
    watching = GpuWatch(opened(gpu), count=1)
    for gpu.mhz, gpu.celsius in ((1700, 60), (1980, 71), (1881, 70)):
        watching.sample()
    assert seen(watching) == {
        "gpu0.throttled": 0,
        "gpu0.power_capped": 0,
        "gpu0.sm_clock_mhz.min": 1700,
        "gpu0.sm_clock": pytest.approx(0.95),
        "gpu0.temperature_c.max": 71,
        "gpu0.power_limit": 1,
        "gpu0.other_processes": 0,
        "gpu0.ecc_errors": 0,
    }


@pytest.mark.parametrize("kind", [Nvml, NewNvml])
@pytest.mark.parametrize(
    ("reason", "throttled", "capped"),
    [
        ("ApplicationsClocksSetting", 0, 0),
        ("SyncBoost", 0, 0),
        ("SwPowerCap", 0, 0.5),
        ("HwSlowdown", 0.5, 0),
        ("SwThermalSlowdown", 0.5, 0),
        ("HwThermalSlowdown", 0.5, 0),
        ("HwPowerBrakeSlowdown", 0.5, 0),
    ],
)
def test_reasons(kind: type[Nvml], reason: str, throttled: float, capped: float) -> None:
    gpu = Gpu("GPU-a")
    watching = GpuWatch(opened(gpu, kind=kind), count=1)
    watching.sample()
    gpu.reasons = getattr(kind, f"nvmlClocksThrottleReason{reason}")
    watching.sample()
    found = seen(watching)
    assert (found["gpu0.throttled"], found["gpu0.power_capped"]) == (throttled, capped)


def test_a_new_module_with_an_old_library() -> None:
    nvml = NewNvml(Gpu("GPU-a", reasons=Nvml.nvmlClocksThrottleReasonHwSlowdown), library_is_old=True)
    nvml.nvmlInit()
    watching = GpuWatch(nvml, count=1)
    watching.sample()
    assert seen(watching)["gpu0.throttled"] == 1


def test_the_clock_of_an_idle_gpu_says_nothing() -> None:
    gpu = Gpu("GPU-a", mhz=210, reasons=Nvml.nvmlClocksThrottleReasonGpuIdle)
    watching = GpuWatch(opened(gpu), count=1)
    watching.sample()
    assert "gpu0.sm_clock" not in seen(watching)
    gpu.mhz, gpu.reasons = 990, 0
    watching.sample()
    assert seen(watching)["gpu0.sm_clock"] == pytest.approx(0.5)


def test_errors_of_before_do_not_count() -> None:
    gpu = Gpu("GPU-a", errors=7)
    watching = GpuWatch(opened(gpu), count=1)
    gpu.errors = 9
    assert seen(watching)["gpu0.ecc_errors"] == 2


def test_a_power_limit_below_the_default() -> None:
    gpu = Gpu("GPU-a", limit_mw=350_000)
    watching = GpuWatch(opened(gpu), count=1)
    watching.sample()
    assert seen(watching)["gpu0.power_limit"] == 0.5


@pytest.mark.parametrize(
    ("pids", "expected"),
    [
        ([ENGINE], 0),
        ([ENGINE, STRANGER], 1),
        ([ENGINE, STRANGER, 31337], 2),
        ([STRANGER], 1),
        ([], None),
        ([31337, 31338], None),
        (None, None),
    ],
    ids=["ours", "stranger", "unseen stranger", "stranger alone", "none", "numbers of the host", "not supported"],
)
def test_other_processes(pids: list[int] | None, expected: float | None) -> None:
    watching = GpuWatch(opened(Gpu("GPU-a", pids=pids)), count=1)
    watching.sample()
    assert seen(watching).get("gpu0.other_processes") == expected


def test_a_process_that_came_and_went() -> None:
    gpu = Gpu("GPU-a", pids=[ENGINE])
    watching = GpuWatch(opened(gpu), count=1)
    for gpu.pids in ([ENGINE], [ENGINE, STRANGER], [ENGINE]):
        watching.sample()
    assert seen(watching)["gpu0.other_processes"] == 1


def test_a_gpu_that_tells_nothing() -> None:
    silent = Gpu("GPU-a", None, None, None, None, None, None, None, None)
    watching = GpuWatch(opened(silent), count=1)
    watching.sample()
    assert seen(watching) == {}


@pytest.mark.parametrize(
    ("setting", "count", "expected"),
    [
        (None, 2, {0, 1}),
        (None, 8, {0, 1, 3}),
        ("1", 1, {1}),
        ("3,1", 1, {3}),
        ("3, 1", 2, {1, 3}),
        ("GPU-b,GPU-d", 2, {1, 3}),
        ("GPU-b1", 1, {1}),
        ("0,9,1", 3, {0}),
        ("0,0", 2, {0}),
        ("GPU-", 1, set()),
        ("-1", 1, set()),
        ("", 1, set()),
        ("MIG-5f1e", 1, set()),
    ],
)
def test_which_gpus(monkeypatch: pytest.MonkeyPatch, setting: str | None, count: int, expected: set[int]) -> None:
    """As CUDA reads CUDA_VISIBLE_DEVICES; GPU 2 fell off the bus."""
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    watching = GpuWatch(opened(Gpu("GPU-a0"), Gpu("GPU-b1"), Gpu("lost"), Gpu("GPU-d3")), count=count)
    watching.sample()
    assert {int(name[3]) for name in seen(watching)} == expected


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(driver=False))
    assert load_nvml() is None


def test_without_nvidia_ml_py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert load_nvml() is None


def test_nvml_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = NewNvml(Gpu("GPU-a"))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert load_nvml() is nvml
    watching = GpuWatch(nvml, count=1)
    assert nvml.is_open
    watching.close()
    assert not nvml.is_open
