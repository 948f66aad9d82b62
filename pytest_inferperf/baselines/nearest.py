"""Where a baseline is missing: which one is nearest, and what of the identity differs from it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from pytest_inferperf.baselines.entries import Missing
from pytest_inferperf.baselines.store import (
    baseline_files,
    load_accuracy,
    lookup_accuracy,
    performance_identity,
    read_performance,
    shown_path,
)
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.results import Hardware

__all__ = ["nearest_accuracy", "nearest_performance"]


def nearest_performance(root: Path, hardware: Hardware, case: Case) -> str:
    """Say how the model's entry that differs least from a case differs from it; "" where the model has none.

    Raises `BaselineError` for files outside of the root; a file that cannot be read is not near.
    """
    wanted = {"hardware": _words(hardware), **performance_identity(case)}
    found = []
    for path in baseline_files(root)[0]:
        with contextlib.suppress(BaselineError):
            file = read_performance(path, shown=shown_path(root, path))
            if file.model == case.engine.served_model_name:
                here = {"hardware": _words(file.hardware)}
                found += [
                    (_differences({**here, **entry.identity}, wanted), key) for key, entry in file.entries.items()
                ]
    if not found:
        return ""
    differences, key = min(found, key=lambda item: (len(item[0]), item[1]))
    return f"nearest is {key}; {', '.join(differences)}"


def nearest_accuracy(root: Path, case: Case, metric: str) -> str:
    """Say which precisions answered the task, else which tasks of the model are recorded; "" where there is nothing.

    Raises `BaselineError` for a file that cannot be read.
    """
    entry = lookup_accuracy(root, case, metric)
    if not isinstance(entry, Missing):
        return f"precision {' or '.join(sorted(entry.scores))} -> {case.engine.precision}"
    file = load_accuracy(root, case)
    return (
        f"no entry of this task; recorded: {', '.join(sorted(file.tasks))}" if file is not None and file.tasks else ""
    )


def _differences(stored: Mapping[str, str | int], wanted: Mapping[str, str | int]) -> list[str]:
    names = [name for name in {**wanted, **stored} if stored.get(name) != wanted.get(name)]
    return [f"{name} {stored.get(name, 'none')} -> {wanted.get(name, 'none')}" for name in names]


def _words(hardware: Hardware) -> str:
    return hardware.words
