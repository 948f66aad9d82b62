"""The devices of this machine: GPUs through NVML, without a CUDA context; nothing is imported before it is asked for."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_inferperf.model.case import GpuRequirement
from pytest_inferperf.model.results import Hardware

__all__ = [
    "Gpu",
    "GpuMachine",
    "cpu_hardware",
    "find_gpus",
    "gpu_words",
    "load_nvml",
    "look_at_gpus",
    "need_words",
    "visible_indices",
    "why_missing",
]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as the driver describes it."""

    name: str
    sm: int
    """SM version: 100 for compute capability 10.0."""

    memory_gib: float
    uuid: str = ""
    """What CUDA_VISIBLE_DEVICES may call it; "" where the driver does not say."""

    nvlinks: int = 0
    """NVLink connections that are up."""

    mig: bool = False
    """Whether it is cut into instances (MIG): then nothing can have all of it."""

    power_limit_w: float | None = None
    """The power cap in force; None where the driver does not say."""


@dataclass(frozen=True, kw_only=True)
class GpuMachine:
    """What NVML says of this machine: all of it that a test, a plan or a report needs."""

    gpus: tuple[Gpu, ...] = ()
    """Those that CUDA_VISIBLE_DEVICES leaves visible, in the order of the PCI bus."""

    driver: str = ""
    """Version of the driver: `570.124.06`; "" without one."""

    cuda: str = ""
    """The newest CUDA version that the driver can run: `12.8`; "" without a driver."""

    def context(self) -> dict[str, str]:
        """Return what is recorded beside results; nothing without a GPU."""
        if not self.gpus:
            return {}
        caps = sorted({gpu.power_limit_w for gpu in self.gpus if gpu.power_limit_w is not None})
        found = {
            "driver": self.driver,
            "driver_cuda": self.cuda,
            "power_limit_w": ", ".join(f"{cap:g}" for cap in caps),
        }
        return {name: value for name, value in found.items() if value}


def load_nvml() -> Any | None:
    """Return pynvml, initialised; None without nvidia-ml-py or without a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def find_gpus() -> tuple[Gpu, ...]:
    """Return the visible NVIDIA GPUs of the machine; empty without a driver or without nvidia-ml-py."""
    return look_at_gpus().gpus


def look_at_gpus() -> GpuMachine:
    """Ask NVML about the machine. What a driver does not know (NVLink on a workstation card) is left out."""
    nvml = load_nvml()
    if nvml is None:
        return GpuMachine()

    def ask(name: str, *arguments: Any) -> Any | None:
        try:
            return getattr(nvml, name)(*arguments)
        except nvml.NVMLError:
            return None

    try:
        handles = [ask("nvmlDeviceGetHandleByIndex", index) for index in range(ask("nvmlDeviceGetCount") or 0)]
        uuids = [_text(handle and ask("nvmlDeviceGetUUID", handle)) for handle in handles]
        seen = visible_indices(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))
        gpus = [_describe(nvml, ask, handles[index], uuids[index]) for index in sorted(seen)]
        version = ask("nvmlSystemGetCudaDriverVersion")
        return GpuMachine(
            gpus=tuple(gpu for gpu in gpus if gpu is not None),
            driver=_text(ask("nvmlSystemGetDriverVersion")),
            cuda=f"{version // 1000}.{version % 1000 // 10}" if version else "",
        )
    finally:
        ask("nvmlShutdown")


def _describe(nvml: Any, ask: Any, handle: Any, uuid: str) -> Gpu | None:
    """Describe one GPU; None for one that fell off the bus."""
    capability = handle and ask("nvmlDeviceGetCudaComputeCapability", handle)
    memory = handle and ask("nvmlDeviceGetMemoryInfo", handle)
    if capability is None or memory is None:
        return None
    links = [ask("nvmlDeviceGetNvLinkState", handle, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)]
    mode = ask("nvmlDeviceGetMigMode", handle)
    limit_mw = ask("nvmlDeviceGetEnforcedPowerLimit", handle)
    return Gpu(
        name=_text(ask("nvmlDeviceGetName", handle)) or "NVIDIA GPU",
        sm=10 * capability[0] + capability[1],
        memory_gib=memory.total / 2**30,
        uuid=uuid,
        nvlinks=sum(bool(link) for link in links),
        mig=bool(mode and mode[0]),
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
    )


def _text(value: Any) -> str:
    # Old versions of nvidia-ml-py return bytes.
    return value.decode() if isinstance(value, bytes) else str(value or "")


def visible_indices(uuids: Sequence[str], setting: str | None) -> list[int]:
    """Return the GPUs that CUDA sees, as NVML counts them.

    As CUDA reads CUDA_VISIBLE_DEVICES: indices and UUIDs (or their beginnings), up to the first that does not exist.
    An index counts in the order of the PCI bus, which is CUDA's own where all GPUs are alike.
    """
    if setting is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for item in (part.strip() for part in setting.split(",")):
        if re.fullmatch(r"\d+", item):
            matches = [int(item)] if int(item) < len(uuids) else []
        else:
            matches = [index for index, uuid in enumerate(uuids) if item and uuid.startswith(item)]
        if len(matches) != 1 or matches[0] in found:
            break
        found += matches
    return found


def why_missing(need: GpuRequirement, gpus: tuple[Gpu, ...]) -> str:
    """Say what a machine lacks: needed and found, in one line. "" when it has everything."""
    fit = [gpu for gpu in gpus if not gpu.mig and gpu.sm >= need.sm and gpu.memory_gib >= need.memory_gib]
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
    counts = Counter(
        f"{gpu.name} (SM {gpu.sm}, {gpu.memory_gib:.0f} GiB{', cut into MIG instances' if gpu.mig else ''})"
        for gpu in gpus
    )
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
