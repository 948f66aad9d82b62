"""Rows of text as aligned columns."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["table"]


def table(rows: Sequence[tuple[str, ...]], *, right: set[int], indent: int) -> list[str]:
    """Align columns; an empty column takes no room."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return lines
