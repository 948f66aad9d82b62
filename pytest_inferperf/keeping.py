"""Keeps the result file of every run in one place, a folder or shared storage, under a name of its own."""

from __future__ import annotations

import re
import secrets
import shlex
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pytest_inferperf.baselines.result_file import ResultFile, read_result_file, write_result_file
from pytest_inferperf.errors import ResultFileError, StorageError
from pytest_inferperf.model.results import slug
from pytest_inferperf.storage import is_address, open_storage

__all__ = ["UNSENT", "keep_results", "send_results"]

UNSENT = "inferperf-unsent"
"""Folder, in pytest's rootdir, of results on their way; what is left there did not arrive."""


def keep_results(place: str, file: ResultFile, *, root: Path, shown: Callable[[Path], str]) -> str:
    """Write the results of a run into a folder or shared storage, and return where they are.

    They are written to this machine first: into pytest's rootdir, or a temporary folder where that is read-only. Raises `ResultFileError` as `write_result_file`, and with the place of the
    file and the command to type where it could not be sent.
    """
    name = _name(file)
    if not is_address(place):
        path = Path(place) / name
        write_result_file(path, file)
        return shown(path)
    path = _outbox(root) / Path(name).name
    left_out = ""
    try:
        write_result_file(path, file)
    except ResultFileError as error:
        if not path.exists():
            raise
        left_out = str(error)
    try:
        target = _send(path, place, name)
    except StorageError as error:
        raise ResultFileError(
            f"{error} The results are in {shown(path)}. To send them later: inferperf "
            f"history send {shlex.quote(shown(path))} {shlex.quote(place)}"
        ) from None
    with suppress(OSError):  # it has arrived
        path.unlink()
        path.parent.rmdir()
    if left_out:
        raise ResultFileError(f"{target}: written.\n{left_out}")
    return target


def send_results(path: Path, place: str) -> str:
    """Copy a result file to where the run would have, below the day of its results, and return its address.

    Raises `ResultFileError` for what is no result file or has a name that no store reads, and where another file of this name is there; `StorageError`,
    and as `check_address`.
    """
    if path.name.startswith(".") or path.suffix != ".json":
        named = f"{path.name.lstrip('.').partition('.')[0] or 'run'}.json"
        raise ResultFileError(
            f"history send: {path}: a store reads no file of this name, only those that end in .json and do not start with "
            f"a dot. Rename it first: mv {shlex.quote(str(path))} {shlex.quote(str(path.with_name(named)))}"
        )
    day = _day(read_result_file(path))
    storage = open_storage(place, what="history send")
    name = f"{day}/{path.name}"
    there = storage.read(name)
    if there is not None and there != path.read_bytes():
        raise ResultFileError(
            f"{storage.address}/{name}: another file of this name is there. Rename {path}, and send it again."
        )
    if there is None:
        storage.upload(name, path)
    return f"{storage.address}/{name}"


def _outbox(root: Path) -> Path:
    """Make the folder of results on their way: a temporary one where none can be made, or written to, in `root`."""
    folder = root / UNSENT
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix=f"{UNSENT}-"))


def _send(path: Path, place: str, name: str) -> str:
    storage = open_storage(place, what="inferperf_results")
    storage.upload(name, path)
    return f"{storage.address}/{name}"


def _name(file: ResultFile) -> str:
    """Name a file by time and machine; the rest keeps two runs apart that end in one second."""
    time = "".join(re.findall(r"\d", file.created.partition("T")[2])[:6])
    return f"{_day(file)}/{time}-{slug(socket.gethostname())}-{secrets.token_hex(4)}.json"


def _day(file: ResultFile) -> str:
    day = file.created.partition("T")[0]
    return day if re.fullmatch(r"\d{4}-\d\d-\d\d", day) else "undated"
