"""The GPUs of this machine, through NVML: no CUDA context is made, nothing is imported before it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_inferperf.model.case import GpuRequirement

__all__ = ["Gpu", "find_gpus", "why_missing"]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as the driver describes it."""

    name: str
    sm: int
    """SM version: 100 for compute capability 10.0."""

    memory_gib: float


def find_gpus() -> tuple[Gpu, ...]:
    """Return the machine's NVIDIA GPUs; empty without a driver or without nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            found.append(
                Gpu(
                    name=str(pynvml.nvmlDeviceGetName(handle)),
                    sm=10 * major + minor,
                    memory_gib=pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30,
                )
            )
        return tuple(found)
    finally:
        pynvml.nvmlShutdown()


def why_missing(need: GpuRequirement, gpus: tuple[Gpu, ...]) -> str:
    """Say what a machine lacks: needed and found, in one line. "" when it has everything."""
    fit = [gpu for gpu in gpus if gpu.sm >= need.sm and gpu.memory_gib >= need.memory_gib]
    if len(fit) >= need.count:
        return ""
    wanted = f"{need.count} GPU{'s' if need.count > 1 else ''}"
    if need.sm:
        wanted += f" of SM {need.sm} or later"
    if need.memory_gib:
        wanted += f" with {need.memory_gib:g} GiB"
    have = ", ".join(f"{gpu.name} (SM {gpu.sm}, {gpu.memory_gib:.0f} GiB)" for gpu in gpus) or "no NVIDIA GPU"
    return f"needs {wanted}; found {have}"
