"""What every mark parser needs: checked keywords and checked numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import MarkError, article, choices

if TYPE_CHECKING:
    import pytest

__all__ = ["keywords_of", "number"]


def number(mark: pytest.Mark, name: str, value: object) -> float:
    """Return a finite number. Raises `MarkError` for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MarkError(f"{mark.name}: {name}={value!r} is {article(type(value).__name__)}; it takes a number.")
    if not math.isfinite(value):
        raise MarkError(f"{mark.name}: {name}={value!r} is not a finite number.")
    return float(value)


def keywords_of(mark: pytest.Mark, valid: Sequence[str]) -> dict[str, Any]:
    """Return the keywords of a mark that takes nothing else. Raises `MarkError` for others."""
    if mark.args:
        raise MarkError(f"{mark.name}: takes keywords only, not {mark.args[0]!r}. Keywords: {', '.join(valid)}.")
    for name in mark.kwargs:
        if name not in valid:
            raise MarkError(f"{mark.name}: unknown keyword {name!r}.\n{choices(name, valid, what='Keywords')}")
    return dict(mark.kwargs)
