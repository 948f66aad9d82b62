"""What the GPUs did, through NVML. Whatever a GPU or its driver does not tell is left out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pytest_inferperf.engines.hardware import load_nvml, visible_indices

__all__ = ["GpuWatch", "load_nvml", "watched_gpus"]


def watched_gpus(nvml: Any, *, count: int, uuids: Sequence[str] = ()) -> list[tuple[int, Any]]:
    """Return index and handle of an engine's GPUs: those it was given, else the first `count` that CUDA would see.

    A GPU that fell off the bus is left out; it keeps its number.
    """

    def ask(name: str, *arguments: Any) -> Any | None:
        try:
            return getattr(nvml, name)(*arguments)
        except nvml.NVMLError:
            return None

    handles = [ask("nvmlDeviceGetHandleByIndex", index) for index in range(ask("nvmlDeviceGetCount") or 0)]
    names = [handle and ask("nvmlDeviceGetUUID", handle) for handle in handles]
    # Old versions of nvidia-ml-py return bytes.
    known = [item.decode() if isinstance(item, bytes) else item or "" for item in names]
    if uuids:
        chosen = [index for index, uuid in enumerate(known) if uuid in uuids]
    else:
        chosen = visible_indices(known, os.environ.get("CUDA_VISIBLE_DEVICES"))[:count]
    return [(index, handles[index]) for index in chosen if handles[index] is not None]


@dataclass
class _Gpu:
    """One GPU, and what was seen of it."""

    index: int
    handle: Any
    max_mhz: float | None
    errors: int | None
    """Uncorrected ECC errors before."""

    reasons: list[int] = field(default_factory=list)
    clocks_mhz: list[float] = field(default_factory=list)
    temperatures_c: list[float] = field(default_factory=list)
    power_limits: list[float] = field(default_factory=list)
    users: set[int] = field(default_factory=set)
    """Processes that computed on it."""


class GpuWatch:
    """Samples the GPUs of an engine, as `watched_gpus` finds them."""

    def __init__(self, nvml: Any, *, count: int, uuids: Sequence[str] = ()) -> None:
        self._nvml = nvml
        self._gpus = []
        for index, handle in watched_gpus(nvml, count=count, uuids=uuids):
            highest = self._ask("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM)
            self._gpus.append(_Gpu(index=index, handle=handle, max_mhz=highest, errors=self._errors(handle)))

    def _ask(self, name: str, *arguments: Any) -> Any | None:
        """Call a function of NVML; None for what it does not support on this GPU or may not tell."""
        try:
            return getattr(self._nvml, name)(*arguments)
        except self._nvml.NVMLError:
            return None

    def _errors(self, handle: Any) -> int | None:
        kind, since = self._nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self._nvml.NVML_VOLATILE_ECC
        return self._ask("nvmlDeviceGetTotalEccErrors", handle, kind, since)

    def _reasons(self, handle: Any) -> int | None:
        # Renamed in driver 535; the old name is to go with CUDA 14.
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            found = self._ask(name, handle) if hasattr(self._nvml, name) else None
            if found is not None:
                return int(found)
        return None

    def _bits(self, *names: str) -> int:
        """Return the mask of some reasons, by the new name or the old."""
        prefixes = ("nvmlClocksEventReason", "nvmlClocksThrottleReason")
        found = 0
        for name in names:
            found |= next(
                getattr(self._nvml, prefix + name) for prefix in prefixes if hasattr(self._nvml, prefix + name)
            )
        return found

    def sample(self) -> None:
        """Look at every GPU once."""
        nvml = self._nvml
        idle = self._bits("GpuIdle")
        for gpu in self._gpus:
            handle = gpu.handle
            reasons = self._reasons(handle)
            if reasons is not None:
                gpu.reasons.append(reasons)
            clock = self._ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM)
            # An idle GPU lowers its clock, and is asked nothing.
            if clock is not None and reasons is not None and not reasons & idle:
                gpu.clocks_mhz.append(clock)
            celsius = self._ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU)
            if celsius is not None:
                gpu.temperatures_c.append(celsius)
            limit_mw = self._ask("nvmlDeviceGetEnforcedPowerLimit", handle)
            default_mw = self._ask("nvmlDeviceGetPowerManagementDefaultLimit", handle)
            if limit_mw is not None and default_mw:
                gpu.power_limits.append(limit_mw / default_mw)
            users = self._ask("nvmlDeviceGetComputeRunningProcesses", handle)
            gpu.users |= {item.pid for item in users or ()}

    def figures(self, *, ours: Collection[int], known: Collection[int]) -> dict[str, float]:
        """Return what was seen; names and units stand in docs/reference/files.md.

        `ours` holds the processes of pytest and the engine, `known` all that this machine (or container) shows.
        """
        found: dict[str, float] = {}
        for gpu in self._gpus:
            errors = self._errors(gpu.handle)
            if errors is not None and gpu.errors is not None:
                found[f"gpu{gpu.index}.ecc_errors"] = float(max(0, errors - gpu.errors))
            found |= {f"gpu{gpu.index}.{name}": value for name, value in self._seen(gpu).items()}
            # In a container NVML may name processes as the host does: then nothing tells ours from others.
            if gpu.users & set(ours):
                found[f"gpu{gpu.index}.other_processes"] = float(len(gpu.users - set(ours)))
            elif gpu.users & set(known):
                found[f"gpu{gpu.index}.other_processes"] = float(len(gpu.users & set(known)))
        return found

    def _seen(self, gpu: _Gpu) -> dict[str, float]:
        # At its default limit, a GPU that is held by its power is at its working point; a lower limit is checked.
        hot = self._bits("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
        capped = self._bits("SwPowerCap")
        found = {}
        if gpu.reasons:
            found["throttled"] = _share(bool(item & hot) for item in gpu.reasons)
            found["power_capped"] = _share(bool(item & capped) for item in gpu.reasons)
        if gpu.clocks_mhz:
            found["sm_clock_mhz.min"] = float(min(gpu.clocks_mhz))
            if gpu.max_mhz:
                found["sm_clock"] = median(gpu.clocks_mhz) / gpu.max_mhz
        if gpu.temperatures_c:
            found["temperature_c.max"] = float(max(gpu.temperatures_c))
        if gpu.power_limits:
            found["power_limit"] = min(gpu.power_limits)
        return found

    def close(self) -> None:
        """Give NVML back."""
        self._ask("nvmlShutdown")


def _share(values: Iterable[bool]) -> float:
    seen = list(values)
    return sum(seen) / len(seen)
