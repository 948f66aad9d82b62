"""Write a file so that it is whole at every moment: the old text or the new one, whatever dies in between."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from pytest_inferperf.errors import BaselineError, InferperfError

__all__ = ["LOCK_NAME", "locked", "remove_file", "remove_leftovers", "write_atomic"]

LOCK_NAME = ".lock"
"""The lock file in the root of the baselines. It stays: removing a lock file breaks the lock for those who wait."""

LOCK_TIMEOUT_S = 60.0


@contextlib.contextmanager
def locked(root: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the baselines below `root` against every other writer.

    Raises `BaselineError` when the folder cannot be written or another process keeps the lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(root / LOCK_NAME)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout_s)
    except Timeout:
        raise BaselineError(
            f"{root / LOCK_NAME}: another process has been writing baselines for {timeout_s:g} s."
            " Wait for it to end, then run the command again."
        ) from None
    except OSError as problem:
        raise BaselineError(f"{root}: cannot be locked for writing: {_cause(problem)}.") from None
    try:
        yield
    finally:
        lock.release()


def write_atomic(path: Path, text: str, *, shown: str, error: type[InferperfError] = BaselineError) -> None:
    """Replace the file with `text`, or leave it exactly as it was.

    Raises `error`, which names the file as `shown` and the cause.
    """
    # Through a link, not over it.
    target = Path(os.path.realpath(path))
    with contextlib.suppress(OSError):
        if target.is_dir():
            # Also "/", which has no name that a temporary file could be given.
            raise error(f"{shown}: cannot be written: it is a folder. Name a file.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_new(temporary, text.encode("utf-8"), like=target)
        temporary.replace(target)
    except OSError as problem:
        with contextlib.suppress(OSError):
            temporary.unlink()
        state = "The old file is unchanged" if os.path.lexists(target) else "Nothing was written"
        raise error(f"{shown}: cannot be written: {_cause(problem)}. {state}.") from None
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def remove_file(path: Path, *, shown: str) -> None:
    """Remove a file that holds nothing any more. Raises `BaselineError` where it cannot be."""
    try:
        path.unlink()
    except OSError as problem:
        raise BaselineError(f"{shown}: cannot be removed: {_cause(problem)}. The file is unchanged.") from None
    _sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of writers that were killed. Only for the holder of the lock."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _write_new(path: Path, data: bytes, *, like: Path) -> None:
    # Not `tempfile`: its files are private to the user, and a baseline takes the mode of any other file.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        with contextlib.suppress(FileNotFoundError):
            path.chmod(like.stat().st_mode & 0o777)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # The rename has happened and either version is whole, so a file system that cannot sync a folder is no error.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cause(problem: OSError) -> str:
    if isinstance(problem, FileExistsError):
        # Only making a folder meets this: what should be one is a file.
        return f"{problem.filename} is not a folder"
    return problem.strerror or str(problem)
