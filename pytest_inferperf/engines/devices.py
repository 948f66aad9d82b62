"""GPUs handed out to engines: one engine a card, over all pytest processes of a user on this machine.

A card is held by a lock on its file in a folder of the user. The kernel frees it when the last process that has the file
open is gone: the engine inherits it, so that a card is not given away while the engine of a killed pytest still dies.
Whoever waits holds a queue, so that an engine that needs many cards is not overtaken for ever by those that need one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pytest_inferperf.engines.hardware import Gpu, need_words, why_missing
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.engines.needs import implied_need
from pytest_inferperf.errors import HardwareError
from pytest_inferperf.model.case import EngineSpec, GpuRequirement

__all__ = ["DeviceLease", "gpus_to_lease", "lease_devices", "runtime_folder"]

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
            _unlock(descriptor)
        self._locks = {}


def gpus_to_lease(spec: EngineSpec, gpus: Sequence[Gpu]) -> GpuRequirement | None:
    """Say which cards an engine is given; None for an endpoint, and where no card of this machine suits it.

    Backends that would run without a GPU get one as well, since they take one where they find it.
    """
    need = implied_need(spec) or GpuRequirement(count=spec.world_size)
    if spec.url or not gpus or why_missing(need, tuple(gpus)) or not all(gpu.uuid for gpu in gpus):
        return None
    return need


def runtime_folder() -> Path:
    """Return the user's folder for locks, made where it is missing.

    Raises `HardwareError` for one that is not the user's own: others could hold its locks.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "inferperf" if base else Path(tempfile.gettempdir()) / f"inferperf-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise HardwareError(f"GPUs cannot be handed out: {folder}: {error.strerror or error}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise HardwareError(f"GPUs cannot be handed out: {folder} is not a folder of this user. Remove it.")
    return folder


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
    where = folder if folder is not None else runtime_folder()
    fit = [gpu.uuid for gpu in gpus if not gpu.mig and gpu.sm >= need.sm and gpu.memory_gib >= need.memory_gib]
    start = shown = time.monotonic()
    with contextlib.ExitStack() as stack:
        queue = stack.enter_context(_opened(where / "queue.lock"))
        queued = False
        while True:
            queued = queued or _try_lock(queue)
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
        descriptor = _open(_path(folder, uuid))
        if not _try_lock(descriptor):
            os.close(descriptor)
            continue
        locks[uuid] = descriptor
        if len(locks) == count:
            for taken in locks.values():
                os.ftruncate(taken, 0)
                os.pwrite(taken, f"process {os.getpid()}, {holder}".encode(), 0)
            return locks
    for descriptor in locks.values():
        _unlock(descriptor)
    return {}


def _holders(folder: Path, uuids: Sequence[str]) -> str:
    """Say who holds which of the cards."""
    found = []
    for uuid in uuids:
        with _opened(_path(folder, uuid)) as descriptor:
            if _try_lock(descriptor):
                continue
            text = os.pread(descriptor, 200, 0).decode(errors="replace") or "someone"
            found.append(f"{uuid} is held by {text}")
    return "; ".join(found) or "others wait in front"


def _path(folder: Path, uuid: str) -> Path:
    return folder / f"{uuid.replace('/', '-')}.lock"


def _open(path: Path) -> int:
    # A link that someone else put there is not followed.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = _open(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    # Also where a child has inherited it: the engine is closed by then.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
