"""Lock files that all users of a machine share: one folder for all, whatever their environment says of temporary files.

The folder is like /tmp itself: everyone may add a file, and nobody but its owner may take one away. Files can be
written by all, since a lock is taken by whoever is next. The locks are a promise among runs of this package, and no
protection against somebody who means harm: such a person could compute on the card.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pytest_inferperf.errors import HardwareError

__all__ = ["lock_folder", "open_lock", "opened", "read_holder", "try_lock", "unlock", "write_holder"]

VARIABLE = "INFERPERF_LOCK_DIR"

LOCK_FOLDER = Path("/tmp/inferperf-gpus")  # noqa: S108
"""Not by $TMPDIR or $XDG_RUNTIME_DIR: those differ between users and jobs, and the cards are the same."""

_SETTLE_S = 1.0
"""How long another process may take between making the folder and opening it to all."""


def lock_folder() -> Path:
    """Return $INFERPERF_LOCK_DIR, else the machine's folder for locks, made where it is missing.

    Raises `HardwareError` for one that we cannot write to, and for one in which anybody could take locks away.
    """
    chosen = os.environ.get(VARIABLE)
    folder = Path(chosen).expanduser() if chosen else LOCK_FOLDER
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            # A mode given to mkdir is cut by the umask.
            folder.chmod(0o1777)
        deadline = time.monotonic() + _SETTLE_S
        while not os.access(folder, os.W_OK | os.X_OK) and time.monotonic() < deadline:
            time.sleep(0.01)
        mode = folder.lstat().st_mode
    except OSError as error:
        raise HardwareError(
            f"GPUs cannot be handed out: {folder}: {error.strerror or error}. {VARIABLE} names another folder, the same "
            "for all that share these GPUs."
        ) from error
    if not stat.S_ISDIR(mode):
        raise HardwareError(f"GPUs cannot be handed out: {folder} is no folder. Remove it.")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise HardwareError(f"GPUs cannot be handed out: anybody can remove files of {folder}. chmod +t {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise HardwareError(
            f"GPUs cannot be handed out: {folder} is for its owner alone. chmod 1777 {folder}, or let {VARIABLE} name "
            "another folder, the same for all that share these GPUs."
        )
    return folder


def open_lock(path: Path) -> int:
    """Open a lock file, made where it is missing, for all users. Raises `HardwareError` naming the file."""
    try:
        try:
            return _open(path)
        except FileNotFoundError:
            _make(path)
            return _open(path)
    except OSError as error:
        raise HardwareError(f"GPUs cannot be handed out: {path}: {error.strerror or error}. Remove it.") from error


def _open(path: Path) -> int:
    # A link that someone else put there is not followed. Without O_CREAT: with it Linux refuses files of other users in
    # such a folder.
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def _make(path: Path) -> None:
    """Put an empty file there at once with its mode, which the umask would cut; one that is there already stays."""
    new = path.with_name(f".{path.name}-{os.getpid()}")
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o666)
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    finally:
        os.close(descriptor)
        new.unlink()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a lock file for a block; a lock on it ends with the block."""
    descriptor = open_lock(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock a file, and say whether that went."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Free a lock and close its file."""
    # Also where a child has inherited it: the engine is closed by then.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def write_holder(descriptor: int, holder: str) -> None:
    """Leave word of who holds a lock."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()}, {holder}".encode(), 0)


def read_holder(descriptor: int) -> str:
    """Return the word that was left; without what could disturb a terminal, since anybody may have written it."""
    text = os.pread(descriptor, 200, 0).decode(errors="replace")
    return "".join(letter for letter in text if letter.isprintable())
