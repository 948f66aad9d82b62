"""What the machine did while the measured rounds ran: figures, never verdicts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from pytest_inferperf.engines.mpi_launch import launched_processes
from pytest_inferperf.measure.cpu import CpuWatch
from pytest_inferperf.measure.gpu import GpuWatch, load_nvml
from pytest_inferperf.model.results import Hardware

__all__ = ["Telemetry"]

ROOT = Path("/")
"""Above /proc and /sys."""

PERIOD_S = 0.2
MAX_COST = 0.005
"""Share of a core that sampling may cost: where a look takes longer than 1 ms, looks are further apart."""


class Telemetry:
    """A context manager around measured rounds; when it is left, `figures` holds what happened inside.

    Counters are read at both ends; clocks and GPUs by a thread in between, where there are any.
    """

    def __init__(
        self,
        hardware: Hardware,
        *,
        devices: Sequence[str] = (),
        root: Path | None = None,
        period_s: float = PERIOD_S,
    ) -> None:
        """Watch `hardware`: the GPUs whose UUIDs are `devices`, or without any the first that are visible."""
        self.figures: Mapping[str, float] = {}
        """Figure (`cpu.others`, `gpu0.sm_clock`) to value. What could not be read is absent."""

        self._hardware = hardware
        self._devices = devices
        self._root = ROOT if root is None else root
        self._period_s = period_s
        self._stop = threading.Event()

    def __enter__(self) -> Telemetry:
        nvml = load_nvml() if self._hardware.kind == "gpu" else None
        self._gpus = None if nvml is None else GpuWatch(nvml, count=self._hardware.count, uuids=self._devices)
        self._cpus = CpuWatch(root=self._root, pid=os.getpid(), also=launched_processes(), cpus=os.sched_getaffinity(0))
        looks: list[Callable[[], None]] = [self._cpus.sample] if self._cpus.can_sample else []
        looks += [self._gpus.sample] if self._gpus is not None else []
        self._thread = threading.Thread(target=self._sample, args=(looks,), name="inferperf-telemetry", daemon=True)
        if looks:
            self._thread.start()
        return self

    def _sample(self, looks: list[Callable[[], None]]) -> None:
        while True:
            before_s = time.thread_time()
            for look in looks:
                look()
            cost_s = time.thread_time() - before_s
            if self._stop.wait(max(self._period_s, cost_s / MAX_COST)):
                return

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        figures = self._cpus.figures()
        if self._gpus is not None:
            figures |= self._gpus.figures(ours=self._cpus.ours, known=self._cpus.known)
            self._gpus.close()
        self.figures = figures
