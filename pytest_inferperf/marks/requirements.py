"""The `requires_gpu` mark becomes a requirement here, or a clear `MarkError`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from pytest_inferperf.errors import MarkError, article
from pytest_inferperf.marks.arguments import keywords_of, number
from pytest_inferperf.model.case import GpuRequirement

if TYPE_CHECKING:
    import pytest

__all__ = ["parse_requires_gpu"]


def parse_requires_gpu(marks: Sequence[pytest.Mark]) -> GpuRequirement | None:
    """Turn the innermost `requires_gpu` mark, the first, into a requirement; None without one. Raises `MarkError`."""
    if not marks:
        return None
    mark = marks[0]
    values = keywords_of(mark, [item.name for item in fields(GpuRequirement)])
    for name, value in values.items():
        if number(mark, name, value) < 0:
            raise MarkError(f"{mark.name}: {name}={value!r} is negative.")
        if name != "memory_gib" and not isinstance(value, int):
            raise MarkError(f"{mark.name}: {name}={value!r} is {article(type(value).__name__)}; it takes an int.")
    if values.get("count", 1) < 1:
        raise MarkError(f"{mark.name}: count={values['count']!r} is below its minimum 1.")
    return GpuRequirement(**values)
