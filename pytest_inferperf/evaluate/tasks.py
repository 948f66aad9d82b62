"""Finds the lm-eval task a case names: a YAML file of the user's own, or a task that lm-eval ships."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pytest_inferperf.errors import TaskError
from pytest_inferperf.evaluate.isolation import isolated
from pytest_inferperf.model.case import Task

__all__ = ["FoundTask", "find_task"]


@dataclass(frozen=True, kw_only=True)
class FoundTask:
    """A task, or a group of tasks, that lm-eval has loaded."""

    name: str
    source: str
    """The YAML file it was read from; the name where lm-eval does not say."""

    tasks: Mapping[str, Any]
    """lm-eval's own task objects by name, in the order they run. One for a plain task."""

    groups: Mapping[str, Any]
    """lm-eval's own group objects by name; empty for a plain task."""

    @property
    def is_group(self) -> bool:
        """Whether the score is aggregated over several tasks."""
        return bool(self.groups)


def find_task(task: Task, *, search_paths: Sequence[Path] = ()) -> FoundTask:
    """Load the task: the file `task.path`, else `task.name` in `search_paths`, else in lm-eval's own tasks.

    Raises `TaskError` when there is no such task or it cannot be loaded, `MissingExtra` without lm-eval.
    """
    with isolated():
        return _from_file(task, search_paths) if task.path else _from_name(task.name, search_paths)


def _from_file(task: Task, search_paths: Sequence[Path]) -> FoundTask:
    given = Path(task.path).expanduser()
    candidates = [folder / given for folder in (Path.cwd(), *search_paths)]
    path = next((item.resolve() for item in candidates if item.is_file()), None)
    if path is None:
        raise TaskError(_missing_file(given, [item.parent for item in candidates]))
    config = _read(path)
    key = "group" if "group" in config else "task"
    declared = config.get(key)
    if declared is None:
        raise TaskError(
            f"{path} is not an lm-eval task: it has no 'task:' key. Add 'task: {path.stem}' to it "
            f"(its keys: {', '.join(sorted(config)) or 'none'})."
        )
    if declared != path.stem:
        raise TaskError(
            f"{path} declares '{key}: {declared}', but its file name says {path.stem!r}. Baselines are filed under "
            f"the task's name: write '{key}: {path.stem}' in it, or rename the file to {declared}.yaml."
        )
    if key == "group":
        return _load_group(path.stem, (str(path.parent),))
    return _load(_local_tasks(()), str(path), name=path.stem, source=str(path))


def _from_name(name: str, search_paths: Sequence[Path]) -> FoundTask:
    folders = tuple(str(folder) for folder in search_paths if folder.is_dir())
    local = _local_tasks(folders)
    if name in local.all_subtasks:
        return _load(local, name, name=name, source=_source(local, name))
    if name in local.all_groups:
        return _load_group(name, folders)
    shipped = None if name in local.all_tasks else _shipped_file(name)
    if shipped is not None:
        return _load(local, str(shipped), name=name, source=str(shipped))
    every = _every_task(folders)
    if name in every.all_tags:
        members = sorted(every.task_index[name].tags)
        raise TaskError(
            f"{name!r} is a tag of lm-eval, which has no score of its own. "
            f"Give one task to a test: {', '.join(members[:5])}{', …' if len(members) > 5 else ''}."
        )
    if name not in every.all_tasks:
        raise TaskError(_missing_name(name, every.all_tasks, folders))
    return _load(every, name, name=name, source=_source(every, name))


def _load_group(name: str, folders: tuple[str, ...]) -> FoundTask:
    local = _local_tasks(folders)
    manager = local if _is_complete(local.task_index, name) else _every_task(folders)
    return _load(manager, name, name=name, source=_source(manager, name))


def _is_complete(index: Mapping[str, Any], name: object) -> bool:
    """Say whether the index holds a task, or a group with all its members and theirs."""
    entry = index.get(name) if isinstance(name, str) else None
    if entry is None:
        return False
    members = (entry.cfg or {}).get("task")
    if not isinstance(members, list):
        return True
    names = (item.get("task", item.get("group")) if isinstance(item, dict) else item for item in members)
    return all(_is_complete(index, item) for item in names)


def _load(manager: Any, spec: str, *, name: str, source: str) -> FoundTask:
    try:
        loaded = manager.load(spec)
    except Exception as error:
        # A data set that cannot be reached, a template that does not render, a helper that cannot be imported:
        # whatever a task's own code raises is about the task.
        raise TaskError(
            f"the task {name!r} ({source}) cannot be loaded: {type(error).__name__}: {error}. "
            "Check the file, the helpers it names with !function, and that its data set is here or can be reached."
        ) from error
    return FoundTask(name=name, source=source, tasks=loaded["tasks"], groups=loaded.get("groups", {}))


def _read(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config: dict[str, Any] = load_yaml(path, resolve_func=False)
    except Exception as error:
        raise TaskError(
            f"{path} is not an lm-eval task: {type(error).__name__}: {error}. Correct the YAML, or give another file."
        ) from error
    return config


def _local_tasks(folders: tuple[str, ...]) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders), include_defaults=False)


@lru_cache(maxsize=4)
def _every_task(folders: tuple[str, ...]) -> Any:
    """Index every task lm-eval ships: some 14,000 names and 20 seconds, so only when nothing quicker knows the name."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders))


def _shipped_file(name: str) -> Path | None:
    """Find the shipped YAML file that is named like the task and declares it, as most are, without the index."""
    import lm_eval.tasks

    if Path(name).name != name:
        return None
    root = Path(lm_eval.tasks.__file__).parent
    for path in sorted(root.rglob("*.yaml")):
        if path.stem == name and _read(path).get("task") == name:
            return path
    return None


def _source(manager: Any, name: str) -> str:
    return str(manager.task_index[name].yaml_path or name)


def _missing_file(given: Path, folders: Iterable[Path]) -> str:
    places = list(dict.fromkeys(folders))
    found = sorted({item.name for folder in places if folder.is_dir() for item in folder.glob("*.yaml")})
    near = difflib.get_close_matches(given.name, found, n=3, cutoff=0.5)
    guess = f"Did you mean {_either(near)}? " if near else ""
    there = f"YAML files there: {', '.join(found[:10])}. " if found else "There are no YAML files there. "
    return (
        f"there is no task file {str(given)!r} (looked in {', '.join(map(str, places))}). {guess}{there}"
        f'Write task="path/to/{given.stem or "name"}.yaml" for a file of your own, or the name of a task lm-eval '
        "ships: lm-eval ls tasks"
    )


def _missing_name(name: str, known: Sequence[str], folders: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    guess = f"Did you mean {_either(near)}? " if near else ""
    places = ", ".join((*folders, f"the {len(known)} tasks lm-eval knows"))
    return (
        f"there is no task {name!r} (looked in {places}). {guess}"
        f'Write task="path/to/{name}.yaml" for a file of your own; lm-eval ls tasks lists the names'
    )


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)
