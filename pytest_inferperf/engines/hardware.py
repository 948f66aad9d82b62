"""The devices of this machine: GPUs through NVML, without a CUDA context; nothing is imported before it is asked for."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pytest_inferperf.model.case import GpuRequirement
from pytest_inferperf.model.results import Hardware

__all__ = ["Gpu", "cpu_hardware", "find_gpus", "gpu_words", "need_words", "why_missing"]


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
    return f"needs {need_words(need)}; found {gpu_words(gpus)}"


def need_words(need: GpuRequirement) -> str:
    """Say what is needed: `8 GPUs of SM 100 or later with 150 GiB`."""
    wanted = f"{need.count} GPU{'s' if need.count > 1 else ''}"
    if need.sm:
        wanted += f" of SM {need.sm} or later"
    if need.memory_gib:
        wanted += f" with {need.memory_gib:g} GiB"
    return wanted


def gpu_words(gpus: tuple[Gpu, ...]) -> str:
    """Say what is there: `8 x NVIDIA B200 (SM 100, 178 GiB)`."""
    counts = Counter(f"{gpu.name} (SM {gpu.sm}, {gpu.memory_gib:.0f} GiB)" for gpu in gpus)
    return ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items()) or "no NVIDIA GPU"


def cpu_hardware() -> Hardware:
    """Return the CPU of this machine, with the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Hardware(name=_cpu_name(), count=cores, kind="cpu")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    import platform

    return platform.processor() or platform.machine() or "unknown CPU"
