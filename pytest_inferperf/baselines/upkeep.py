"""Plans that keep a folder of baselines in order: prune what no case reaches, migrate what an older version wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_inferperf.baselines.cases import CollectedCases, Unreachable, unreachable
from pytest_inferperf.baselines.documents import SCHEMA_VERSION, parse_json
from pytest_inferperf.baselines.format import (
    dump_accuracy,
    dump_performance,
    parse_accuracy,
    parse_performance,
)
from pytest_inferperf.baselines.store import (
    baseline_files,
    read_accuracy,
    read_bytes,
    read_performance,
    shown_path,
)
from pytest_inferperf.baselines.update_plan import PlannedFile, UpdatePlan
from pytest_inferperf.baselines.validator import SchemaName
from pytest_inferperf.errors import BaselineError, UpdateRefused

__all__ = ["MIGRATIONS", "plan_migration", "plan_prune"]

MIGRATIONS: dict[int, Callable[[SchemaName, dict[str, Any]], dict[str, Any]]] = {}
"""From a schema version to the next: takes which file it is, and its data. Version 1 is the first there was."""


def plan_prune(root: Path, found: CollectedCases) -> tuple[UpdatePlan, tuple[Unreachable, ...]]:
    """Plan to remove what no collected case can reach; a file that holds nothing any more is removed.

    Raises `UpdateRefused` where the selection is not full or empty, `BaselineError` for a file that cannot be read.
    """
    if found.partial:
        raise UpdateRefused(
            f"not pruned: {found.partial}, so what is not reached may belong to a test that was not collected. Collect the"
            " whole suite."
        )
    if not found.cases:
        raise UpdateRefused("not pruned: no case was collected. Name the folders of the suites.")
    removed = unreachable(root, found.cases)
    files = []
    for path in dict.fromkeys(item.path for item in removed):
        own = [item for item in removed if item.path == path]
        is_accuracy = bool(own[0].precision)
        after = _without_scores(path, own) if is_accuracy else _without_entries(path, own)
        shown = own[0].shown
        files.append(PlannedFile(path=path, shown=shown, before=read_bytes(path, shown), after=after))
    return _plan(root, files), tuple(removed)


def plan_migration(root: Path) -> UpdatePlan:
    """Plan to write every file as this version writes it: the newest schema, sorted, one value per line.

    Raises `BaselineError` for a file that cannot be read, or of a version that nothing leads away from.
    """
    files = []
    performance, accuracy = baseline_files(root)
    kinds: Sequence[tuple[SchemaName, Sequence[Path]]] = (("performance", performance), ("accuracy", accuracy))
    for name, paths in kinds:
        for path in paths:
            shown = shown_path(root, path)
            before = read_bytes(path, shown)
            if before is None:
                continue
            data = _newest(name, before, shown)
            after = (
                dump_performance(parse_performance(data, shown))
                if name == "performance"
                else dump_accuracy(parse_accuracy(data, shown))
            )
            if after.encode("utf-8") != before:
                files.append(PlannedFile(path=path, shown=shown, before=before, after=after))
    return _plan(root, files)


def _newest(name: SchemaName, raw: bytes, shown: str) -> Mapping[str, Any]:
    hint = f"Restore it: git restore {shown}"
    data: dict[str, Any] = parse_json(raw, shown, error=BaselineError, cut_short=hint, hint=hint)
    while isinstance(data, dict) and isinstance(data.get("schema_version"), int):
        version = data["schema_version"]
        if version >= SCHEMA_VERSION:
            break
        if version not in MIGRATIONS:
            raise BaselineError(f"{shown}: schema_version {version} is none that was ever written. {hint}")
        data = MIGRATIONS[version](name, data)
    return data


def _without_entries(path: Path, removed: Sequence[Unreachable]) -> str | None:
    file = read_performance(path, shown=removed[0].shown)
    gone = {item.key for item in removed}
    left = {key: entry for key, entry in file.entries.items() if key not in gone}
    return dump_performance(replace(file, entries=left)) if left else None


def _without_scores(path: Path, removed: Sequence[Unreachable]) -> str | None:
    file = read_accuracy(path, shown=removed[0].shown)
    gone = {(item.key, item.precision) for item in removed}
    tasks = {}
    for key, entry in file.tasks.items():
        scores = {name: score for name, score in entry.scores.items() if (key, name) not in gone}
        if scores:
            tasks[key] = replace(entry, scores=scores)
    return dump_accuracy(replace(file, tasks=tasks)) if tasks else None


def _plan(root: Path, files: Sequence[PlannedFile]) -> UpdatePlan:
    return UpdatePlan(root=root, changes=(), refusals=(), skipped=(), files=tuple(files))
