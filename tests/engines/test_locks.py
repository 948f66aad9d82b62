"""Where locks on GPUs lie: one place a machine, for every user and whatever their folders for temporary files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_inferperf.engines import locks
from pytest_inferperf.engines.devices import lease_devices
from pytest_inferperf.engines.hardware import Gpu
from pytest_inferperf.engines.locks import lock_folder, open_lock, opened, read_holder, try_lock
from pytest_inferperf.errors import HardwareError
from pytest_inferperf.model.case import GpuRequirement


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine whose folder for locks is not there yet, and a user who lets nobody read their files."""
    monkeypatch.delenv("INFERPERF_LOCK_DIR", raising=False)
    monkeypatch.setattr(locks, "LOCK_FOLDER", tmp_path / "locks")
    monkeypatch.setattr(locks, "_SETTLE_S", 0.0)
    before = os.umask(0o077)
    yield tmp_path / "locks"
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_place_does_not_depend_on_the_users_environment(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME"):
        monkeypatch.setenv(name, str(machine.parent / name))
        assert lock_folder() == machine


def test_the_place_on_a_real_machine_is_absolute_and_names_no_user() -> None:
    out = subprocess.run(
        [sys.executable, "-c", "from pytest_inferperf.engines.locks import LOCK_FOLDER; print(LOCK_FOLDER)"],
        env={**os.environ, "TMPDIR": "/elsewhere", "XDG_RUNTIME_DIR": "/elsewhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "/tmp/inferperf-gpus"


def test_everyone_may_lock_and_nobody_may_take_a_lock_away(machine: Path) -> None:
    with opened(lock_folder() / "GPU-a.lock"):
        assert mode(machine) == 0o1777
        assert mode(machine / "GPU-a.lock") == 0o666
    assert [path.name for path in machine.iterdir()] == ["GPU-a.lock"]


def test_two_with_other_folders_for_temporary_files_do_not_share_a_card(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two users or two jobs of Slurm have them."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pytest_inferperf.engines import locks\n"
        "from pytest_inferperf.engines.devices import lease_devices\n"
        "from pytest_inferperf.engines.hardware import Gpu\n"
        "from pytest_inferperf.model.case import GpuRequirement\n"
        f"locks.LOCK_FOLDER = Path({str(machine)!r})\n"
        "gpu = Gpu(name='NVIDIA B200', sm=100, memory_gib=178.0, uuid='GPU-a')\n"
        "lease = lease_devices(GpuRequirement(), [gpu], holder='theirs', timeout_s=60)\n"
        "print(*lease.uuids, flush=True)\n"
        "sys.stdin.read()\n"
    )
    gpu = Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0, uuid="GPU-a")
    theirs = {**os.environ, "TMPDIR": str(machine.parent / "theirs"), "XDG_RUNTIME_DIR": str(machine.parent / "run")}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=theirs, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "GPU-a\n"
        with pytest.raises(HardwareError, match=f"GPU-a is held by process {other.pid}, theirs"):
            lease_devices(GpuRequirement(), [gpu], holder="ours", timeout_s=0.2)
        other.communicate("")
    lease_devices(GpuRequirement(), [gpu], holder="ours", timeout_s=60).release()


def test_the_variable_names_another_place(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that containers share, say."""
    monkeypatch.setenv("INFERPERF_LOCK_DIR", str(machine.parent / "shared"))
    assert lock_folder() == machine.parent / "shared"
    assert not machine.exists()


def test_a_folder_of_ones_own_is_taken_as_it_is(machine: Path) -> None:
    machine.mkdir(mode=0o700)
    assert lock_folder() == machine
    assert mode(machine) == 0o700


def test_a_folder_whose_files_anybody_can_remove_is_refused(machine: Path) -> None:
    machine.mkdir()
    machine.chmod(0o777)
    with pytest.raises(HardwareError, match=r"anybody can remove files of .*\. chmod \+t "):
        lock_folder()


def test_a_link_or_a_file_in_its_place_is_refused(machine: Path) -> None:
    (machine.parent / "elsewhere").mkdir()
    machine.symlink_to(machine.parent / "elsewhere")
    with pytest.raises(HardwareError, match=r"is no folder\. Remove it\."):
        lock_folder()
    machine.unlink()
    machine.write_text("")
    with pytest.raises(HardwareError, match=r"is no folder\. Remove it\."):
        lock_folder()


def test_a_folder_that_cannot_be_made_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERPERF_LOCK_DIR", str(machine / "deeper" / "down"))
    with pytest.raises(HardwareError, match=r"down: No such file or directory\. INFERPERF_LOCK_DIR names another"):
        lock_folder()


def test_a_folder_that_others_closed_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(HardwareError, match=r"is for its owner alone\. chmod 1777 "):
        lock_folder()


def test_a_lock_that_is_a_link_is_not_followed(machine: Path) -> None:
    target = machine.parent / "victim"
    target.write_text("mine")
    (lock_folder() / "GPU-a.lock").symlink_to(target)
    with pytest.raises(HardwareError, match=r"GPU-a\.lock: .*\. Remove it\."):
        open_lock(machine / "GPU-a.lock")
    assert target.read_text() == "mine"


def test_a_holder_that_somebody_else_wrote_cannot_disturb_a_terminal(machine: Path) -> None:
    path = lock_folder() / "GPU-a.lock"
    with opened(path) as descriptor:
        assert try_lock(descriptor)
        os.pwrite(descriptor, b"\x1b[2Jprocess 1\n\xff", 0)
        assert read_holder(descriptor) == "[2Jprocess 1\ufffd"
