"""Joules, from the counters that GPUs keep of all the energy they ever took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pytest_inferperf.engines.interface import Engine
from pytest_inferperf.measure.gpu import load_nvml, watched_gpus

__all__ = ["EnergyMeter", "energy_meter"]


class EnergyMeter:
    """Reads the counters of some GPUs together."""

    def __init__(self, nvml: Any | None, handles: Sequence[Any]) -> None:
        self._nvml = nvml
        self._handles = handles

    def read_j(self) -> float | None:
        """Return the energy that all of them took since the driver was loaded; None where one of them cannot say.

        A sum that leaves one out would flatter.
        """
        if self._nvml is None or not self._handles:
            return None
        try:
            counters = [self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles]
        except self._nvml.NVMLError:
            return None
        return float(sum(counters)) / 1000


@contextmanager
def energy_meter(engine: Engine) -> Iterator[EnergyMeter]:
    """Give the meter of an engine's GPUs; one that reads None for an engine on a CPU, or on other machines too."""
    hardware = engine.watched_hardware
    nvml = load_nvml() if hardware.kind == "gpu" and hardware.nodes == 1 else None
    if nvml is None:
        yield EnergyMeter(None, ())
        return
    try:
        found = watched_gpus(nvml, count=hardware.count, uuids=engine.devices)
        # With a GPU that cannot be reached the sum would be too small.
        yield EnergyMeter(nvml, [handle for _, handle in found] if len(found) == hardware.count else ())
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
