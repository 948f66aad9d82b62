"""The errors users see. A message is complete: what was given, where, what is valid, and what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BaselineError",
    "CheckpointError",
    "ClusterLost",
    "EngineError",
    "HardwareError",
    "InferperfError",
    "InvalidRun",
    "MarkError",
    "MissingExtra",
    "NodeLost",
    "ResultFileError",
    "SettingsError",
    "StorageError",
    "TaskError",
    "UpdateRefused",
    "article",
    "choices",
]


class InferperfError(Exception):
    """Base of every error this package raises on purpose; `str(error)` is the whole message."""


class MarkError(InferperfError):
    """A mark on a test is wrong: unknown keyword, unknown metric, wrong type."""


class SettingsError(InferperfError):
    """A command-line option, ini value or combination of them is wrong."""


class BaselineError(InferperfError):
    """A baseline file cannot be read, does not fit its schema, or cannot be written."""


class ResultFileError(InferperfError):
    """A result file cannot be read or does not fit its schema."""


class StorageError(InferperfError):
    """Shared storage cannot be reached, or refuses."""


class UpdateRefused(InferperfError):
    """A baseline update would lose something the user did not agree to lose."""


class CheckpointError(InferperfError):
    """A checkpoint could not be built, is damaged, or is not what its name says."""


class EngineError(InferperfError):
    """An engine crashed, hung, ran out of memory, or answered nonsense."""


class ClusterLost(EngineError):
    """The whole cluster is gone, mostly with its head: there is no other node to go on."""


class NodeLost(EngineError):
    """An engine is gone with the node of the cluster it ran on: the machine failed, and not the engine."""


class TaskError(InferperfError):
    """An evaluation task does not exist or cannot be loaded."""


class HardwareError(InferperfError):
    """The machine lacks what a test asked for."""


class InvalidRun(InferperfError):
    """A run that must not be judged: its figures cannot be trusted. The message names the cause."""


class MissingExtra(InferperfError):
    """An optional dependency is not installed; the message holds the `pip install` to type."""

    def __init__(self, what: str, extra: str, missing: str | None = None, *, hint: str = "") -> None:
        because = f" ({missing} is not installed)" if missing else ""
        command = f'pip install "pytest-inferperf[{extra}]"'
        super().__init__(f'{what} needs the "{extra}" extra{because}: {command}' + (f". {hint}" if hint else ""))


def article(type_name: str) -> str:
    """Put the article before a type name: `an int`, `a str`."""
    return f"an {type_name}" if type_name[0] in "aeiou" else f"a {type_name}"


def choices(value: object, valid: Iterable[str], *, what: str) -> str:
    """Say which values are valid, with the nearest guess first.

    Returns a sentence such as "Did you mean 'NVFP4'? Quantizations: BF16, FP8, NVFP4."
    """
    names = sorted(valid)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    if not near:
        near = [name for name in names if name.lower() == str(value).lower()]
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return f"{guess}{what}: {', '.join(names)}."
