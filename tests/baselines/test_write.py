"""A file is whole whatever dies while it is written."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_inferperf.baselines.write import locked, remove_leftovers, write_atomic
from pytest_inferperf.errors import BaselineError, ResultFileError


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_writes_and_creates_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomic(path, "ä\n", shown="b.json")
    assert path.read_bytes() == b"\xc3\xa4\n"
    assert names(path.parent) == ["b.json"]


def test_mode_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text("old")
    path.chmod(0o640)
    write_atomic(path, "new", shown="b.json")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to("real.json")
    write_atomic(link, "new", shown="link.json")
    assert link.is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


@pytest.mark.parametrize("call", ["fsync", "replace", "fdopen"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "b.json"
    path.write_text("old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        BaselineError, match=r"^b\.json: cannot be written: No space left on device\. The old file is unchanged\.$"
    ):
        write_atomic(path, "new", shown="b.json")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["b.json"]


def test_full_disk_without_an_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = r"^r\.json: cannot be written: No space left on device\. Nothing was written\.$"
    with pytest.raises(ResultFileError, match=message):
        write_atomic(tmp_path / "r.json", "new", shown="r.json", error=ResultFileError)
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["/", "folder", "file/r.json", "file/deep/r.json", "/proc/none/r.json", "x" * 300])
def test_no_place_to_write(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    with pytest.raises(ResultFileError, match=r"^r\.json: cannot be written: [^.]+\. [^.]+\.$"):
        write_atomic(tmp_path / place, "new", shown="r.json", error=ResultFileError)
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


_WRITE_BIG = """
import sys
from pathlib import Path
from pytest_inferperf.baselines.write import write_atomic
from pytest_inferperf.errors import BaselineError
path = Path(sys.argv[1])
path.exists() or path.write_text("old")
try:
    write_atomic(path, "x" * 1_000_000, shown="b.json")
except BaselineError as error:
    print(error, path.read_text(), sorted(item.name for item in path.parent.iterdir()))
"""


def test_really_full_disk(tmp_path: Path) -> None:
    """A tmpfs of 64 KiB, in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    mount = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}"
    if unshare is None or subprocess.run([unshare, "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this system does not let a test mount a file system of its own")
    done = subprocess.run(
        [
            unshare,
            "-rm",
            "sh",
            "-c",
            f'{mount} && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            _WRITE_BIG,
            str(tmp_path / "b.json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "b.json: cannot be written: No space left on device. The old file is unchanged. old ['b.json']\n"
    )


def test_file_size_limit(tmp_path: Path) -> None:
    """The kernel stops the write in the middle, on any system."""
    done = subprocess.run(
        [sys.executable, "-c", _WRITE_BIG, str(tmp_path / "b.json")],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)),
    )
    assert done.stdout == "b.json: cannot be written: File too large. The old file is unchanged. old ['b.json']\n"


_KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_inferperf.baselines.write import locked, write_atomic
setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
with locked(Path(sys.argv[1])):
    write_atomic(Path(sys.argv[1]) / "b.json", "x" * 100_000, shown="b.json")
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_kill_in_the_middle(tmp_path: Path, call: str) -> None:
    path = tmp_path / "b.json"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), call])
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    # The lock died with its holder, and the next writer clears what the dead one left.
    with locked(tmp_path, timeout_s=1):
        remove_leftovers(path)
        write_atomic(path, "new", shown="b.json")
    assert names(tmp_path) == [".lock", "b.json"]
    assert path.read_text() == "new"


def test_lock_is_held_by_another(tmp_path: Path) -> None:
    message = (
        f"{tmp_path}/.lock: another process has been writing baselines for 0.1 s."
        " Wait for it to end, then run the command again."
    )
    expected = pytest.raises(BaselineError, match=f"^{re.escape(message)}$")
    with locked(tmp_path), expected, locked(tmp_path, timeout_s=0.1):
        pass


def test_root_is_a_file(tmp_path: Path) -> None:
    root = tmp_path / "baselines"
    root.write_text("")
    with (
        pytest.raises(
            BaselineError,
            match=f"^{re.escape(str(root))}: cannot be locked for writing: {re.escape(str(root))} is not a folder.$",
        ),
        locked(root),
    ):
        pass
