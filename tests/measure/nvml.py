"""A strict stand-in of pynvml (nvidia-ml-py): the functions that are used, with NVML's names, numbers and errors.

What it does not define is an AttributeError, and a call that NVML would refuse is refused. `test_gpu.py` compares it
with the real module.
"""

# ruff: noqa: N802, N803, N815

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class NVMLError(Exception):
    """As pynvml's; `value` is the code."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


@dataclass
class Gpu:
    """What one GPU answers; None is not supported."""

    uuid: str
    max_mhz: int | None = 1980
    mhz: int | None = 1700
    reasons: int | None = 0
    errors: int | None = 0
    celsius: int | None = 60
    limit_mw: int | None = 700_000
    default_mw: int | None = 700_000
    pids: list[int] | None = field(default_factory=list)
    name: str = "NVIDIA B200"
    capability: tuple[int, int] | None = (10, 0)
    memory: int | None = 178 * 2**30
    links: tuple[int, ...] = (1,) * 18
    mig: list[int] | None = field(default_factory=lambda: [0, 0])
    energy_mj: int | None = 0


@dataclass
class ProcessInfo:
    """The one attribute that is read of pynvml's c_nvmlProcessInfo_t."""

    pid: int


@dataclass
class Memory:
    """The one attribute that is read of pynvml's c_nvmlMemory_t."""

    total: int


class Nvml:
    """The module as it was before driver 535: reasons have their old names alone."""

    NVMLError = NVMLError
    NVML_ERROR_UNINITIALIZED = 1
    NVML_ERROR_INVALID_ARGUMENT = 2
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_CLOCK_SM = 1
    NVML_NVLINK_MAX_LINKS = 36
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    nvmlClocksThrottleReasonGpuIdle = 0x1
    nvmlClocksThrottleReasonApplicationsClocksSetting = 0x2
    nvmlClocksThrottleReasonSwPowerCap = 0x4
    nvmlClocksThrottleReasonHwSlowdown = 0x8
    nvmlClocksThrottleReasonSyncBoost = 0x10
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
    nvmlClocksThrottleReasonHwThermalSlowdown = 0x40
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80

    def __init__(self, *gpus: Gpu, driver: bool = True, cuda: int = 12080) -> None:
        self._gpus = list(gpus)
        self._driver = driver
        self._cuda = cuda
        self._open = 0
        self.looks = 0

    def nvmlInit(self) -> None:
        if not self._driver:
            raise NVMLError(self.NVML_ERROR_DRIVER_NOT_LOADED)
        self._open += 1

    def nvmlShutdown(self) -> None:
        self._check()
        self._open -= 1

    @property
    def is_open(self) -> bool:
        return self._open > 0

    def _check(self) -> None:
        if not self._open:
            raise NVMLError(self.NVML_ERROR_UNINITIALIZED)

    def _of(self, handle: Any, name: str) -> Any:
        self._check()
        if not isinstance(handle, Gpu):
            raise NVMLError(self.NVML_ERROR_INVALID_ARGUMENT)
        found = getattr(handle, name)
        if found is None:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return found

    def nvmlDeviceGetCount(self) -> int:
        self._check()
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        self._check()
        if index >= len(self._gpus):
            raise NVMLError(self.NVML_ERROR_INVALID_ARGUMENT)
        if self._gpus[index].uuid == "lost":
            raise NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        return self._gpus[index]

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return str(self._of(handle, "uuid"))

    def nvmlSystemGetDriverVersion(self) -> str:
        self._check()
        return "570.124.06"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        self._check()
        return self._cuda

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return str(self._of(handle, "name"))

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        major, minor = self._of(handle, "capability")
        return int(major), int(minor)

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Memory:
        return Memory(self._of(handle, "memory"))

    def nvmlDeviceGetNvLinkState(self, device: Any, link: int) -> int:
        links = self._of(device, "links")
        if link >= len(links):
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return int(links[link])

    def nvmlDeviceGetMigMode(self, device: Any) -> list[int]:
        return list(self._of(device, "mig"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        return int(self._of(handle, "energy_mj"))

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, type: int) -> int:
        assert type == self.NVML_CLOCK_SM
        return int(self._of(handle, "max_mhz"))

    def nvmlDeviceGetClockInfo(self, handle: Any, type: int) -> int:
        assert type == self.NVML_CLOCK_SM
        self.looks += 1
        return int(self._of(handle, "mhz"))

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, errorType: int, counterType: int) -> int:
        assert (errorType, counterType) == (self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self.NVML_VOLATILE_ECC)
        return int(self._of(handle, "errors"))

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return int(self._of(handle, "celsius"))

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        return int(self._of(handle, "limit_mw"))

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: Any) -> int:
        return int(self._of(handle, "default_mw"))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[ProcessInfo]:
        return [ProcessInfo(pid) for pid in self._of(handle, "pids")]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:
        return int(self._of(handle, "reasons"))


class NewNvml(Nvml):
    """The module since driver 535: reasons are called events."""

    NVML_ERROR_FUNCTION_NOT_FOUND = 13
    nvmlClocksEventReasonGpuIdle = 0x1
    nvmlClocksEventReasonApplicationsClocksSetting = 0x2
    nvmlClocksEventReasonSwPowerCap = 0x4
    nvmlClocksEventReasonHwSlowdown = 0x8
    nvmlClocksEventReasonSyncBoost = 0x10
    nvmlClocksEventReasonSwThermalSlowdown = 0x20
    nvmlClocksEventReasonHwThermalSlowdown = 0x40
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80

    def __init__(self, *gpus: Gpu, driver: bool = True, cuda: int = 12080, library_is_old: bool = False) -> None:
        super().__init__(*gpus, driver=driver, cuda=cuda)
        self._library_is_old = library_is_old

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        if self._library_is_old:
            raise NVMLError(self.NVML_ERROR_FUNCTION_NOT_FOUND)
        return int(self._of(handle, "reasons"))
