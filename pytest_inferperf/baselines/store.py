"""Baseline files as values: where they are, reading, writing out, and looking up the entry of a case.

<root>/performance/<hardware>/<model>.json    one entry per precision, parallelism and workload
<root>/accuracy/<model>.json                  one entry per task and metric, one score per precision in it
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pytest_inferperf.baselines.documents import parse_json
from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, PerformanceEntry, accuracy_key, performance_key
from pytest_inferperf.baselines.format import (
    ENGINE_IDENTITY,
    AccuracyFile,
    PerformanceFile,
    parse_accuracy,
    parse_performance,
)
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.results import Hardware, slug
from pytest_inferperf.model.workload import WORKLOAD_IDENTITY

__all__ = [
    "accuracy_identity",
    "accuracy_path",
    "baseline_files",
    "load_accuracy",
    "load_performance",
    "lookup_accuracy",
    "lookup_performance",
    "other_server",
    "performance_identity",
    "performance_path",
    "read_accuracy",
    "read_bytes",
    "read_performance",
    "shown_path",
    "stored_score",
]

_PERFORMANCE_IDENTITY = (*ENGINE_IDENTITY, *WORKLOAD_IDENTITY, "serve", "recipe")
_ACCURACY_IDENTITY = ("task", "num_fewshot", "limit")
_LONGEST_NAME = 255 - len(".json") - len("..0123456789abcdef.tmp")
"""Characters of a file or folder name that leave room for what is added to it while it is written."""


def performance_path(root: Path, hardware: Hardware, case: Case) -> Path:
    """Return the file that holds, or would hold, the performance baseline of a case."""
    folder = _checked(hardware.slug, hardware.name, "the hardware's name")
    return _inside(root, root / "performance" / folder / _model_file(case))


def accuracy_path(root: Path, case: Case) -> Path:
    """Return the file that holds, or would hold, the accuracy baselines of a case's model."""
    return _inside(root, root / "accuracy" / _model_file(case))


def shown_path(root: Path, path: Path) -> str:
    """Name a baseline file relative to the root's parent: `baselines/performance/nvidia-b200-8x/x.json`."""
    parent = root.absolute().parent
    full = path.absolute()
    return full.relative_to(parent).as_posix() if full.is_relative_to(parent) else path.as_posix()


def baseline_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the performance files and the accuracy files below `root`, sorted."""
    performance = sorted((root / "performance").glob("*/*.json"))
    accuracy = sorted((root / "accuracy").glob("*.json"))
    return [_inside(root, path) for path in performance], [_inside(root, path) for path in accuracy]


def lookup_performance(root: Path, hardware: Hardware, case: Case) -> PerformanceEntry | Missing:
    """Find the entry of a case measured on `hardware`.

    Raises `BaselineError` for a file that cannot be read or belongs to another model or other hardware.
    """
    path, key = performance_path(root, hardware, case), performance_key(case)
    shown = shown_path(root, path)
    file = load_performance(root, hardware, case)
    if file is None:
        return Missing(path=shown, key=key, reason="no such file")
    entry = file.entries.get(key)
    if entry is None:
        return Missing(path=shown, key=key, reason="no such entry")
    other = other_server(entry, case)
    return Missing(path=shown, key=key, reason=other) if other else entry


def other_server(entry: PerformanceEntry, case: Case) -> str:
    """Say that an entry was measured behind another server; "" where it was not.

    A key holds the command line in lower case letters, digits, `.` and `-`: `-c 4` and `-C 4` give the same.
    """
    stored = str(entry.identity.get("serve", ""))
    return "" if stored == case.engine.server else f"the entry is that of serve={stored!r}"


def lookup_accuracy(root: Path, case: Case, metric: str) -> AccuracyEntry | Missing:
    """Find the entry of a case's task and an lm-eval metric of it, with the scores of every recorded precision.

    Raises `BaselineError` for a file that cannot be read or belongs to another model.
    """
    path, key = accuracy_path(root, case), accuracy_key(case, metric)
    shown = shown_path(root, path)
    file = load_accuracy(root, case)
    if file is None:
        return Missing(path=shown, key=key, reason="no such file")
    return file.tasks.get(key) or Missing(path=shown, key=key, reason="no such entry")


def stored_score(root: Path, case: Case, *, metric: str | None = None) -> float | None:
    """Return what the case's task is known to score, a share between 0 and 1; None where nothing says so.

    The case's own precision is asked before any other, and `metric` before the others of the task. A file that cannot
    be read says nothing here; the judge reports it.
    """
    try:
        file = load_accuracy(root, case) if case.task is not None else None
    except BaselineError:
        return None
    found = [
        (name != case.engine.precision, entry.metric != metric, name, stored.score)
        for entry in (file.tasks.values() if file is not None else ())
        if entry.higher_is_better and dict(entry.identity) == accuracy_identity(case, entry.metric)
        for name, stored in entry.scores.items()
        if 0 < stored.score <= 1
    ]
    return min(found)[-1] if found else None


def load_performance(root: Path, hardware: Hardware, case: Case) -> PerformanceFile | None:
    """Read the performance file of a case and check that it belongs to it; None where there is none."""
    path = performance_path(root, hardware, case)
    shown = shown_path(root, path)
    raw = read_bytes(path, shown)
    if raw is None:
        return None
    file = _parse_performance(raw, shown)
    _check_model(file.model, case.engine.served_model_name, shown)
    if file.hardware != hardware:
        raise BaselineError(
            f"{shown}: holds baselines of {_hardware_words(file.hardware)}, but the engine runs on"
            f" {_hardware_words(hardware)}. Correct the file's hardware, or move it to where it belongs."
        )
    return file


def load_accuracy(root: Path, case: Case) -> AccuracyFile | None:
    """Read the accuracy file of a case and check that it belongs to it; None where there is none."""
    path = accuracy_path(root, case)
    shown = shown_path(root, path)
    raw = read_bytes(path, shown)
    if raw is None:
        return None
    file = _parse_accuracy(raw, shown)
    _check_model(file.model, case.engine.served_model_name, shown)
    return file


def read_performance(path: Path, *, shown: str = "") -> PerformanceFile:
    """Read a whole performance file. Raises `BaselineError` for whatever is wrong with it."""
    return _parse_performance(_read_existing(path, shown or str(path)), shown or str(path))


def read_accuracy(path: Path, *, shown: str = "") -> AccuracyFile:
    """Read a whole accuracy file. Raises `BaselineError` for whatever is wrong with it."""
    return _parse_accuracy(_read_existing(path, shown or str(path)), shown or str(path))


def read_bytes(path: Path, shown: str) -> bytes | None:
    """Return the bytes of a file, None where there is none. Raises `BaselineError` where it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise BaselineError(f"{shown}: cannot be read: {problem.strerror or problem}.") from None


def performance_identity(case: Case) -> dict[str, str | int]:
    """Return what a performance entry stores beside its key. The model and the hardware are named by the file."""
    return {name: value for name, value in case.identity().items() if name in _PERFORMANCE_IDENTITY}


def accuracy_identity(case: Case, metric: str) -> dict[str, str | int]:
    """Return what an accuracy entry stores beside its key. The precision is a level below it."""
    found = {name: value for name, value in case.identity().items() if name in _ACCURACY_IDENTITY}
    return found | {"metric": metric}


def _model_file(case: Case) -> str:
    name = case.engine.served_model_name
    return _checked(slug(name), name, "served_model_name") + ".json"


def _checked(part: str, name: str, what: str) -> str:
    """Check that a name makes a file or folder name."""
    if len(part) > _LONGEST_NAME:
        raise BaselineError(
            f"{what} {name[:40]!r}… has {len(name)} characters; baselines are filed under it, and a file name has room"
            f" for {_LONGEST_NAME}. Give a shorter one."
        )
    return part


def _inside(root: Path, path: Path) -> Path:
    """Check that a path stays in the root, links included. A name is a slug already; this is the second lock."""
    try:
        real, real_root = path.resolve(), root.resolve()
    except (OSError, RuntimeError) as problem:
        raise BaselineError(f"{shown_path(root, path)}: cannot be read: {problem}.") from None
    if not real.is_relative_to(real_root):
        raise BaselineError(
            f"{shown_path(root, path)}: leads to {real}, outside of {real_root}."
            " Baselines stay inside their root folder."
        )
    return path


def _check_model(found: str, wanted: str, shown: str) -> None:
    if found != wanted:
        raise BaselineError(
            f"{shown}: holds baselines of model {found!r}, but the model is {wanted!r}; both names give the same file"
            " name. Give one of them another served_model_name."
        )


def _hardware_words(hardware: Hardware) -> str:
    return f"{hardware.words} ({hardware.kind})"


def _read_existing(path: Path, shown: str) -> bytes:
    raw = read_bytes(path, shown)
    if raw is None:
        raise BaselineError(f"{shown}: no such file.")
    return raw


def _parse(raw: bytes, shown: str) -> Any:
    hint = f"Restore it (git restore {shown}) or delete it and record it again."
    return parse_json(raw, shown, error=BaselineError, cut_short=hint, hint=hint)


# Every case of a suite looks into the same few files, and checking one takes half a second for 100 entries. The key is
# the whole content, so a changed file is parsed anew whatever its time stamp says; nobody modifies what is returned.
@functools.lru_cache(maxsize=32)
def _parse_performance(raw: bytes, shown: str) -> PerformanceFile:
    return parse_performance(_parse(raw, shown), shown)


@functools.lru_cache(maxsize=32)
def _parse_accuracy(raw: bytes, shown: str) -> AccuracyFile:
    return parse_accuracy(_parse(raw, shown), shown)
