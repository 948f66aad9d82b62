"""A file that a workload is read from: its bytes once, its label, and errors that name the place."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.hiding import excerpt

__all__ = ["Place", "label_of", "parse_line", "read_file", "state_of_file"]

_DIGEST_LENGTH = 8
_SHOWN = 80


class Place:
    """Where in a file something stands; `wrong` makes the error that says so."""

    def __init__(self, path: Path, unit: str, number: int) -> None:
        self._path, self._unit, self._number = path, unit, number

    def wrong(self, what: str, value: object = None) -> SettingsError:
        """Return an error that names the file, the place, what is wrong, and the value that is."""
        shown = "" if value is None else f", not {excerpt(json.dumps(value, ensure_ascii=False), _SHOWN)}"
        return SettingsError(f"{self._path}, {self._unit} {self._number}: {what}{shown}.")


def label_of(path: Path, raw: bytes) -> str:
    """Return what a file is called in ids and baselines: its stem and 8 digits of its digest.

    The same file elsewhere has the same label, another content has another one.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem)
    return f"{stem}-{hashlib.sha256(raw).hexdigest()[:_DIGEST_LENGTH]}"


def state_of_file(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does, so that it is read once. Raises `SettingsError` where it cannot be read."""
    try:
        stat = path.stat()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}.") from None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read_file(path: Path) -> tuple[bytes, str]:
    """Return a file as bytes and as text. Raises `SettingsError` for one that cannot be read, is empty, or no UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}.") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is no UTF-8. Convert the file to UTF-8."
        ) from None
    if not text.strip():
        raise SettingsError(f"{path}: the file is empty.")
    return raw, text


def parse_line(place: Place, line: str) -> dict[str, Any]:
    """Read one line of a JSONL file, which is an object. Raises `SettingsError`."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise place.wrong(f"not JSON ({error}): {excerpt(line.strip(), _SHOWN)!r}") from None
    if not isinstance(value, dict):
        raise place.wrong("a line is an object", value)
    return value
