"""Hunks of large files: git takes them, and they cost what has changed."""

from __future__ import annotations

import difflib
import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.hunks import hunks


def text(entries: dict[str, Any]) -> str:
    return json.dumps({"entries": entries, "model": "tiny", "schema_version": 1}, indent=2, sort_keys=True) + "\n"


def entry(value: int) -> dict[str, Any]:
    return {"context": {"torch": "2.13"}, "sessions": [[value, 1, 2], [3, 4, 5]]}


def changed(rng: random.Random, entries: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in entries.items():
        draw = rng.random()
        if draw > 0.2:
            found[key] = entry(rng.randrange(1000)) if draw < 0.4 else value
        if draw > 0.9:
            found[f"{key}-more"] = entry(7)
    return found


@pytest.mark.parametrize("count", [0, 1, 2, 5, 30])
def test_git_makes_the_new_file_of_the_old_one(tmp_path: Path, count: int) -> None:
    rng = random.Random(count)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    file = tmp_path / "x.json"
    for _ in range(6):
        old = {f"k{rng.randrange(10**6)}": entry(number) for number in range(count)}
        before, after = text(old), text(changed(rng, old) if count else {"k": entry(1)})
        file.write_text(before)
        lines = "".join(hunks(before.splitlines(keepends=True), after.splitlines(keepends=True)))
        patch = f"diff --git a/x.json b/x.json\n--- a/x.json\n+++ b/x.json\n{lines}"
        if before != after:
            subprocess.run(["git", "apply", "-"], input=patch, text=True, cwd=tmp_path, check=True)
        assert file.read_text() == after


@pytest.mark.parametrize("edit", ["", "{}\n", '{\n    "k1": 1,\n    "k1": 2\n}\n', "no\nnewline"])
def test_files_that_are_not_ours_are_made_too(edit: str) -> None:
    """A file that was edited by hand, or did not exist."""
    ours = text({"k1": entry(1), "k2": entry(2)})
    for before, after in ((edit, ours), (ours, edit)):
        old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
        lines = list(hunks(old, new))
        assert [line[1:] for line in lines if line[0] in " -"] == old
        assert [line[1:] for line in lines if line[0] in " +"] == new


def test_one_change_gives_what_difflib_gives() -> None:
    old = {f"k{number}": entry(number) for number in range(20)}
    before, after = (text(item).splitlines(keepends=True) for item in (old, {**old, "k7": entry(99)}))
    assert list(hunks(before, after)) == list(difflib.unified_diff(before, after))[2:]


def test_half_of_ten_thousand_entries_removed() -> None:
    """Generous for a busy machine: `difflib` alone takes a quarter of an hour."""
    old = {f"k{number:05}": entry(number) for number in range(10_000)}
    kept = dict(list(old.items())[::2])
    started = time.process_time()
    lines = list(hunks(text(old).splitlines(keepends=True), text(kept).splitlines(keepends=True)))
    assert time.process_time() - started < 30
    assert sum(line.startswith('-    "k') for line in lines) == 5_000
