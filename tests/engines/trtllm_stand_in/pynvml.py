"""NVML as far as `engines.hardware` asks it: as many B200 as TRTLLM_STAND_IN_GPUS says."""

from __future__ import annotations

import os
from types import SimpleNamespace

NVML_NVLINK_MAX_LINKS = 0


class NVMLError(Exception):
    pass


def nvmlInit() -> None:  # noqa: N802
    pass


def nvmlShutdown() -> None:  # noqa: N802
    pass


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return int(os.environ.get("TRTLLM_STAND_IN_GPUS", "8"))


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    return index + 1


def nvmlDeviceGetCudaComputeCapability(_handle: int) -> tuple[int, int]:  # noqa: N802
    return 10, 0


def nvmlDeviceGetName(_handle: int) -> str:  # noqa: N802
    return "NVIDIA B200"


def nvmlDeviceGetMemoryInfo(_handle: int) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(total=178 * 2**30)


def nvmlDeviceGetUUID(handle: int) -> str:  # noqa: N802
    return f"GPU-{handle}"


def nvmlDeviceGetMigMode(_handle: int) -> tuple[int, int]:  # noqa: N802
    return 0, 0


def nvmlDeviceGetEnforcedPowerLimit(_handle: int) -> int:  # noqa: N802
    return 1_000_000


def nvmlSystemGetCudaDriverVersion() -> int:  # noqa: N802
    return 13000


def nvmlSystemGetDriverVersion() -> str:  # noqa: N802
    return "580.65"
