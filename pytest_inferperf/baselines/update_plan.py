"""What an update would do, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pytest_inferperf.baselines.changes import Change

__all__ = ["DEFAULT_TOLERANCE", "MODES", "Mode", "PlannedFile", "UpdatePlan"]

Mode = Literal["new", "tighten", "all"]
MODES: tuple[Mode, ...] = get_args(Mode)

DEFAULT_TOLERANCE = 0.05
"""Relative loss of a performance metric that counts as a regression, where nothing says less."""


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file to write."""

    path: Path
    shown: str
    before: bytes | None
    """What the file held when the plan was made; None where there was none."""

    after: str | None
    """What it will hold; None where the file is removed."""


@dataclass(frozen=True, kw_only=True)
class UpdatePlan:
    """What an update would do, decided before anything is written."""

    root: Path
    changes: tuple[Change, ...]
    refusals: tuple[str, ...]
    """What was asked for and is not done: a first line that says it all, indented details, and what to type."""

    skipped: tuple[str, ...]
    """What there was nothing to record of, with the reason."""

    files: tuple[PlannedFile, ...]
