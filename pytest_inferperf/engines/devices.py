"""GPUs handed out to engines: one engine a card, over all pytest processes on this machine, whoever started them.

A card is held by a lock on its file in `locks.lock_folder`. The kernel frees it when the last process that has the file
open is gone: the engine inherits it, so that a card is not given away while the engine of a killed pytest still dies.
Whoever waits holds a queue, so that an engine that needs many cards is not overtaken for ever by those that need one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_inferperf.engines.hardware import Gpu, need_words, why_missing
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.engines.locks import lock_folder, open_lock, opened, read_holder, try_lock, unlock, write_holder
from pytest_inferperf.engines.mpi_launch import find_launch
from pytest_inferperf.engines.needs import implied_need, on_ray
from pytest_inferperf.errors import HardwareError
from pytest_inferperf.model.case import EngineSpec, GpuRequirement

__all__ = ["DeviceLease", "gpus_to_lease", "lease_devices"]

_POLL_S = 0.1
_PROGRESS_S = 10.0


class DeviceLease:
    """Cards that are ours alone until `release`, which is idempotent."""

    def __init__(self, locks: Mapping[str, int]) -> None:
        self._locks = dict(locks)
        self.uuids = tuple(self._locks)
        """What CUDA_VISIBLE_DEVICES calls the cards."""

    @property
    def environment(self) -> dict[str, str]:
        """What shows an engine its cards, and no others."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.uuids)} if self.uuids else {}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The locks, for the engine's process to inherit."""
        return tuple(self._locks.values())

    def release(self) -> None:
        """Give the cards back."""
        for descriptor in self._locks.values():
            unlock(descriptor)
        self._locks = {}


def gpus_to_lease(spec: EngineSpec, gpus: Sequence[Gpu]) -> GpuRequirement | None:
    """Say which cards an engine is given; None for an endpoint, and where no card of this machine suits it.

    What Ray orchestrates has its cards from Ray. Backends that would run without a GPU get one as well, since they take one where they find it.
    """
    need = implied_need(spec) or GpuRequirement(count=spec.world_size)
    if spec.url or on_ray(spec) or not gpus or why_missing(need, tuple(gpus)) or not all(gpu.uuid for gpu in gpus):
        return None
    return need


def lease_devices(
    need: GpuRequirement,
    gpus: Sequence[Gpu],
    *,
    holder: str,
    timeout_s: float,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DeviceLease:
    """Wait for free cards that suit, and hold them: all at once or none.

    `holder` is what others read who wait for these cards. Raises `HardwareError`, which says who holds what, after
    `timeout_s`, and at once for a machine that has not enough such cards at all.
    """
    lacking = why_missing(need, tuple(gpus))
    if lacking:
        raise HardwareError(lacking)
    where = folder if folder is not None else lock_folder()
    fit = [gpu.uuid for gpu in gpus if not gpu.mig and gpu.sm >= need.sm and gpu.memory_gib >= need.memory_gib]
    if find_launch() is not None:
        # The ranks are no children of ours, and take the first cards whatever we show the engine.
        fit = fit[: need.count]
    start = shown = time.monotonic()
    with contextlib.ExitStack() as stack:
        queue = stack.enter_context(opened(where / "queue.lock"))
        queued = False
        while True:
            queued = queued or try_lock(queue)
            locks = _take(where, fit, need.count, holder) if queued else {}
            if locks:
                return DeviceLease(locks)
            now = time.monotonic()
            if now - start >= timeout_s:
                raise HardwareError(
                    f"waited {timeout_s:g} s for {need_words(need)} (inferperf_gpu_timeout): {_holders(where, fit)}"
                )
            if progress is not None and (shown == start or now - shown >= _PROGRESS_S):
                shown = now
                progress(f"wait for {need_words(need)}, {now - start:.0f} s: {_holders(where, fit)}")
            time.sleep(_POLL_S)


def _take(folder: Path, uuids: Sequence[str], count: int, holder: str) -> dict[str, int]:
    """Lock `count` of the cards; none where so many are not free."""
    locks: dict[str, int] = {}
    for uuid in uuids:
        descriptor = open_lock(_path(folder, uuid))
        if not try_lock(descriptor):
            os.close(descriptor)
            continue
        locks[uuid] = descriptor
        if len(locks) == count:
            for taken in locks.values():
                write_holder(taken, holder)
            return locks
    for descriptor in locks.values():
        unlock(descriptor)
    return {}


def _holders(folder: Path, uuids: Sequence[str]) -> str:
    """Say who holds which of the cards."""
    found = []
    for uuid in uuids:
        with opened(_path(folder, uuid)) as descriptor:
            if try_lock(descriptor):
                continue
            text = read_holder(descriptor) or "someone"
            found.append(f"{uuid} is held by {text}")
    return "; ".join(found) or "others wait in front"


def _path(folder: Path, uuid: str) -> Path:
    return folder / f"{uuid.replace('/', '-')}.lock"
