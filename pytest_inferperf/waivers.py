"""`inferperf.waivers.toml`: failures of a gate that a project lives with for a time, each with a reason, an issue and an end.

    [[waiver]]
    case = "tests/test_llama.py::test_serving[NVFP4-isl1024-osl1024-c64]"
    gate = "ttft_ms.p99"
    reason = "driver 580 launches kernels more slowly"
    issue = "https://git.example.org/llm/serving/issues/123"
    expires = 2026-12-31

`case` is a test as pytest names it; `*` stands for any characters. `gate` is its name in the report. A waiver holds until
the end of the day it expires, UTC.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from pytest_inferperf.errors import SettingsError, choices

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["FILE_NAME", "Waiver", "read_waivers"]

FILE_NAME = "inferperf.waivers.toml"
"""The file, in pytest's rootdir."""

_FIELDS = ("case", "gate", "reason", "issue", "expires")
_ENTRY = re.compile(r"^\s*\[\[\s*waiver\s*\]\]")


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """One failure that is expected for a time."""

    case: str
    gate: str
    reason: str
    issue: str
    expires: date
    line: int
    """Where it stands in the file, from 1."""

    def covers(self, nodeid: str, gate: str) -> bool:
        """Whether it is about a gate of a test."""
        return gate == self.gate and self.covers_test(nodeid)

    def covers_test(self, nodeid: str) -> bool:
        """Whether it is about a test."""
        return _pattern(self.case).fullmatch(nodeid) is not None

    def has_expired(self, today: date) -> bool:
        """Whether its last day is over."""
        return today > self.expires

    @property
    def note(self) -> str:
        """What a report says beside a waived gate."""
        return f"waived until {self.expires}: {self.reason} ({self.issue})"

    @property
    def place(self) -> str:
        """Name it in a message."""
        return f"{FILE_NAME}: line {self.line}: the waiver of {self.gate} in {self.case}"


def read_waivers(root: Path) -> tuple[Waiver, ...]:
    """Read the waivers of a project; none where there is no file.

    Raises `SettingsError`, with the line and the field, for whatever is wrong with the file.
    """
    try:
        text = (root / FILE_NAME).read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except UnicodeDecodeError:
        raise SettingsError(f"{FILE_NAME}: the bytes are not UTF-8.") from None
    except OSError as problem:
        raise SettingsError(f"{FILE_NAME}: cannot be read: {problem.strerror or problem}.") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise SettingsError(f"{FILE_NAME}: not TOML: {problem}.") from None
    unknown = sorted(set(data) - {"waiver"})
    if unknown:
        raise SettingsError(f"{FILE_NAME}: unknown table {unknown[0]!r}. Each waiver begins with [[waiver]].")
    entries = data.get("waiver", [])
    if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
        raise SettingsError(f"{FILE_NAME}: 'waiver' is no list of tables. Each waiver begins with [[waiver]].")
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines, start=1) if _ENTRY.match(line)]
    if len(starts) != len(entries):
        # Written inline, or inside of a longer string: the file has no line for each.
        starts = [1] * len(entries)
    found: list[Waiver] = []
    for start, entry in zip(starts, entries, strict=True):
        waiver = _waiver(entry, start, lines)
        twin = next((item for item in found if (item.case, item.gate) == (waiver.case, waiver.gate)), None)
        if twin is not None:
            raise SettingsError(f"{waiver.place} stands on line {twin.line} already. Remove one of the two.")
        found.append(waiver)
    return tuple(found)


def _waiver(entry: Mapping[str, Any], start: int, lines: list[str]) -> Waiver:
    def fail(name: str, message: str) -> SettingsError:
        own = range(start, len(lines))
        line = next((number + 1 for number in own if re.match(rf"\s*{re.escape(name)}\s*=", lines[number])), start)
        return SettingsError(f"{FILE_NAME}: line {line}: {message}")

    for name in entry:
        if name not in _FIELDS:
            raise fail(name, f"unknown field {name!r}. {choices(name, _FIELDS, what='Fields')}")
    for name in _FIELDS:
        if name not in entry:
            raise fail(name, f"the field {name!r} is missing. Fields: {', '.join(_FIELDS)}.")
    for name in _FIELDS[:-1]:
        if not isinstance(entry[name], str) or not entry[name].strip():
            raise fail(name, f"{name} = {entry[name]!r}: write a text that is not empty.")
    if "::" not in entry["case"]:
        raise fail(
            "case", f"case = {entry['case']!r}: write a test as pytest names it: tests/test_x.py::test_it[NVFP4-c8]."
        )
    if not re.match(r"https?://\S+$", entry["issue"]):
        raise fail("issue", f"issue = {entry['issue']!r}: write a link: https://…")
    expires = entry["expires"]
    if not isinstance(expires, date) or isinstance(expires, datetime):
        shown = f'"{expires}"' if isinstance(expires, str) else str(expires)
        raise fail("expires", f"expires = {shown}: write a date without quotes: 2026-12-31.")
    return Waiver(**{name: entry[name] for name in _FIELDS}, line=start)


@lru_cache(maxsize=256)
def _pattern(case: str) -> re.Pattern[str]:
    # Not fnmatch: brackets are part of the name of a test.
    return re.compile(".*".join(map(re.escape, case.split("*"))), re.DOTALL)
