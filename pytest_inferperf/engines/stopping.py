"""Stop strings in a growing text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["cut", "held_back"]


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut before the first stop string; say whether there was one."""
    found = [place for place in (text.find(item) for item in stop if item) if place >= 0]
    return (text[: min(found)], True) if found else (text, False)


def held_back(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that may be the beginning of a stop string."""
    lengths = [size for item in stop for size in range(1, len(item)) if text.endswith(item[:size])]
    return max(lengths, default=0)
