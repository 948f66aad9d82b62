"""One engine a card: locks that die with their processes, by real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_inferperf.engines.devices import DeviceLease, gpus_to_lease, lease_devices
from pytest_inferperf.engines.hardware import Gpu
from pytest_inferperf.engines.supervisor import WorkerProcess
from pytest_inferperf.errors import HardwareError
from pytest_inferperf.model.case import EngineSpec, GpuRequirement


def b200(uuid: str, *, mig: bool = False) -> Gpu:
    return Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0, uuid=uuid, mig=mig)


GPUS = (b200("GPU-a"), b200("GPU-b"), b200("GPU-c"))
ONE, TWO = GpuRequirement(count=1), GpuRequirement(count=2)


class Other:
    """Another pytest: holds cards until it is told to end, or is killed."""

    def __init__(self, folder: Path, count: int) -> None:
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from pytest_inferperf.engines.devices import lease_devices\n"
            "from pytest_inferperf.engines.hardware import Gpu\n"
            "from pytest_inferperf.model.case import GpuRequirement\n"
            "gpus = [Gpu(name='NVIDIA B200', sm=100, memory_gib=178.0, uuid=f'GPU-{n}') for n in 'abc']\n"
            f"lease = lease_devices(GpuRequirement(count={count}), gpus, holder='NVFP4 other', timeout_s=60, "
            f"folder=Path({str(folder)!r}))\n"
            "print(*lease.uuids, flush=True)\n"
            "sys.stdin.read()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def uuids(self) -> list[str]:
        """Wait until it has its cards."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def leases() -> Iterator[list[DeviceLease]]:
    found: list[DeviceLease] = []
    yield found
    for lease in found:
        lease.release()


def lease(folder: Path, need: GpuRequirement, *, timeout_s: float = 60.0, **changes: object) -> DeviceLease:
    return lease_devices(need, GPUS, holder="NVFP4 ours", timeout_s=timeout_s, folder=folder, **changes)  # type: ignore[arg-type]


def test_engines_get_different_cards(tmp_path: Path, leases: list[DeviceLease]) -> None:
    leases += [lease(tmp_path, ONE), lease(tmp_path, TWO)]
    assert sorted(uuid for item in leases for uuid in item.uuids) == ["GPU-a", "GPU-b", "GPU-c"]
    assert leases[1].environment == {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-c"}


def test_too_few_free_cards_are_not_taken_in_part(tmp_path: Path, leases: list[DeviceLease]) -> None:
    leases.append(lease(tmp_path, TWO))
    with pytest.raises(HardwareError):
        lease(tmp_path, TWO, timeout_s=0.2)
    leases.append(lease(tmp_path, ONE, timeout_s=0.2))
    assert leases[1].uuids == ("GPU-c",)


def test_released_cards_are_free_again(tmp_path: Path, leases: list[DeviceLease]) -> None:
    first = lease(tmp_path, GpuRequirement(count=3))
    first.release()
    first.release()
    leases.append(lease(tmp_path, GpuRequirement(count=3), timeout_s=0.2))


def test_a_timeout_says_who_holds_what(tmp_path: Path) -> None:
    other = Other(tmp_path, 2)
    try:
        assert other.uuids() == ["GPU-a", "GPU-b"]
        lines: list[str] = []
        with pytest.raises(HardwareError) as caught:
            lease(tmp_path, TWO, timeout_s=0.3, progress=lines.append)
    finally:
        other.kill()
    holder = f"process {other.process.pid}, NVFP4 other"
    held = f"GPU-a is held by {holder}; GPU-b is held by {holder}"
    assert str(caught.value) == f"waited 0.3 s for 2 GPUs (inferperf_gpu_timeout): {held}"
    assert lines == [f"wait for 2 GPUs, 0 s: {held}"]


def test_a_killed_process_frees_its_cards(tmp_path: Path, leases: list[DeviceLease]) -> None:
    other = Other(tmp_path, 3)
    assert len(other.uuids()) == 3
    other.kill()
    leases.append(lease(tmp_path, GpuRequirement(count=3)))
    assert len(leases[0].uuids) == 3


def test_who_waits_for_many_is_not_overtaken(tmp_path: Path, leases: list[DeviceLease]) -> None:
    """The second waits for all cards; the third wants one that is free, and comes later."""
    leases.append(lease(tmp_path, ONE))
    large = Other(tmp_path, 3)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "queue.lock").exists() or _is_free(tmp_path / "queue.lock"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(HardwareError, match=r"others wait in front|is held by"):
            lease(tmp_path, ONE, timeout_s=0.3)
        leases[0].release()
        assert len(large.uuids()) == 3
    finally:
        large.kill()


def _is_free(path: Path) -> bool:
    import fcntl

    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_an_engine_sees_its_cards_and_holds_them_as_long_as_it_lives(tmp_path: Path, leases: list[DeviceLease]) -> None:
    held = lease(tmp_path, ONE)
    worker = WorkerProcess(what="engine", log_dir=tmp_path, lease=held)
    try:
        shown = Path(f"/proc/{worker.pid}/environ")
        deadline = time.monotonic() + 60
        while not shown.read_bytes():
            # Its memory is being set up.
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert b"CUDA_VISIBLE_DEVICES=GPU-a" in shown.read_bytes().split(b"\0")
        # As when pytest is killed: its own descriptors go, the engine's stay.
        for descriptor in held.descriptors:
            os.close(descriptor)
        held._locks = {}
        with pytest.raises(HardwareError, match=f"GPU-a is held by process {os.getpid()}, NVFP4 ours"):
            lease(tmp_path, GpuRequirement(count=3), timeout_s=0.3)
    finally:
        worker.close()
    leases.append(lease(tmp_path, GpuRequirement(count=3)))


def test_cards_cut_into_instances_are_not_given(tmp_path: Path) -> None:
    gpus = (b200("GPU-a", mig=True), b200("GPU-b"))
    held = lease_devices(ONE, gpus, holder="x", timeout_s=1, folder=tmp_path)
    assert held.uuids == ("GPU-b",)
    held.release()
    with pytest.raises(HardwareError, match="needs 2 GPUs; found "):
        lease_devices(TWO, gpus, holder="x", timeout_s=1, folder=tmp_path)


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({"backend": "tensorrt_llm", "quant": "NVFP4", "tp": 2}, 2),
        ({"backend": "transformers"}, 1),
        ({"backend": "openai", "serve": "vllm", "tp": 3}, 3),
        ({"backend": "openai", "url": "http://host:8000"}, None),
        ({"backend": "tensorrt_llm", "tp": 4}, None),
    ],
)
def test_who_gets_cards(values: dict[str, object], count: int | None) -> None:
    spec = EngineSpec(**{"model": "m", "served_model_name": "m", **values})  # type: ignore[arg-type]
    need = gpus_to_lease(spec, GPUS)
    assert (need.count if need is not None else None) == count
    assert gpus_to_lease(spec, ()) is None
