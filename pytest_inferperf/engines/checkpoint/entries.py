"""The folders of a checkpoint cache: made beside their place, put there whole, and described by a manifest."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.results import slug

__all__ = ["MANIFEST", "MANIFEST_VERSION", "listed_files", "new_work", "put_in_place", "remove_entry", "sweep"]

MANIFEST = "inferperf.json"
"""Written last: a folder without it was never finished."""

MANIFEST_VERSION = 1

_BUILDING = ".building-"

_FORGOTTEN_S = 24 * 3600.0
"""How long another machine may leave a build untouched before it counts as dead: not every mount shows locks to others."""


def listed_files(manifest: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return the files of a manifest. Raises `CheckpointError` for one of another version, or that makes no sense."""
    files = manifest.get("files")
    if (
        manifest.get("version") != MANIFEST_VERSION
        or not isinstance(files, dict)
        or not all(isinstance(item, dict) for item in files.values())
    ):
        raise CheckpointError(f"{MANIFEST} is not of version {MANIFEST_VERSION}")
    return files


def new_work(entry: Path) -> Path:
    """Make a folder beside an entry, in which it comes to be."""
    work = entry.parent / f"{_BUILDING}{entry.name}-{_machine()}-{uuid.uuid4().hex[:8]}"
    work.mkdir()
    return work


def put_in_place(work: Path, entry: Path) -> None:
    """Put a finished folder, its manifest in it, where the entry belongs.

    Where another machine was first, whose lock was not seen, its entry stays.
    """
    for path in sorted(work.rglob("*")):
        if path.is_file():
            _fsync(path)
    _fsync(work)
    try:
        work.rename(entry)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (entry / MANIFEST).is_file():
            raise
    _fsync(entry.parent)


def remove_entry(entry: Path) -> None:
    """Remove a damaged entry, or the link to one."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def sweep(entry: Path) -> None:
    """Remove what dead builds of an entry left. The lock says that none is alive on this machine."""
    own = f"{_BUILDING}{entry.name}-{_machine()}-"
    for leftover in entry.parent.glob(f"{_BUILDING}{entry.name}-*"):
        if leftover.name.startswith(own) or _is_forgotten(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def _machine() -> str:
    return slug(socket.gethostname())


def _is_forgotten(folder: Path) -> bool:
    newest = 0.0
    with suppress(OSError):
        newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    return time.time() - newest > _FORGOTTEN_S


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
