"""The hunks of a patch of a baseline file, entry by entry: `difflib` alone does not end on the millions of lines of a large one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

__all__ = ["hunks"]

_ENTRY = re.compile(r' {4}"')
"""How the first line of an entry begins: files are written with two spaces for each level."""

_CONTEXT = 3

_Opcode = tuple[str, int, int, int, int]


def hunks(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the hunks that make `new` of `old`, in the unified format. Lines keep their ends."""
    for group in _groups(_opcodes(old, new)):
        first, last = group[0], group[-1]
        yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@\n"
        for tag, start, end, new_start, new_end in group:
            if tag == "equal":
                yield from (f" {line}" for line in old[start:end])
                continue
            yield from (f"-{line}" for line in old[start:end])
            yield from (f"+{line}" for line in new[new_start:new_end])


def _range(start: int, end: int) -> str:
    """Write a range of lines as patches do: from 1, and before an empty one."""
    length = end - start
    if length == 1:
        return str(start + 1)
    return f"{start + bool(length)},{length}"


def _opcodes(old: Sequence[str], new: Sequence[str]) -> Iterator[_Opcode]:
    """Yield what makes `new` of `old`, as `difflib` names it: entries of one name against each other, others whole."""
    if not old or not new:
        yield from _changed(0, len(old), 0, len(new))
        return
    begins, others = _begins(old), _begins(new)
    place = {new[begin]: number for number, begin in enumerate(others[:-1])}
    at, last = 0, -1
    for number, begin in enumerate(begins[:-1]):
        match = place.get(old[begin], -1) if number else 0
        if match <= last:
            continue
        # Entries between two that are in both are gone, or new.
        yield from _changed(at, begin, others[last + 1] if last >= 0 else 0, others[match])
        end, new_end = begins[number + 1], others[match + 1]
        yield from _within(old, new, begin, end, others[match], new_end)
        at, last = end, match
    yield from _changed(at, len(old), others[last + 1] if last >= 0 else 0, len(new))


def _begins(lines: Sequence[str]) -> list[int]:
    """Return where the head of a file and each of its entries begin, and the end."""
    return [0, *(number for number, line in enumerate(lines) if number and _ENTRY.match(line)), len(lines)]


def _changed(start: int, end: int, new_start: int, new_end: int) -> Iterator[_Opcode]:
    if start < end or new_start < new_end:
        yield ("replace", start, end, new_start, new_end)


def _within(
    old: Sequence[str], new: Sequence[str], start: int, end: int, new_start: int, new_end: int
) -> Iterator[_Opcode]:
    before, after = old[start:end], new[new_start:new_end]
    if before == after:
        yield ("equal", start, end, new_start, new_end)
        return
    for tag, low, high, new_low, new_high in difflib.SequenceMatcher(None, before, after).get_opcodes():
        yield (tag, start + low, start + high, new_start + new_low, new_start + new_high)


def _groups(opcodes: Iterator[_Opcode]) -> Iterator[list[_Opcode]]:
    """Yield what stands in one hunk: changes, with at most twice the context of equal lines between two of them."""
    merged: list[_Opcode] = []
    for tag, start, end, new_start, new_end in opcodes:
        if merged and tag == merged[-1][0] == "equal":
            merged[-1] = ("equal", merged[-1][1], end, merged[-1][3], new_end)
        elif start < end or new_start < new_end:
            merged.append((tag, start, end, new_start, new_end))
    group: list[_Opcode] = []
    for number, (tag, start, end, new_start, new_end) in enumerate(merged):
        is_last = number == len(merged) - 1
        if tag != "equal":
            group.append((tag, start, end, new_start, new_end))
            continue
        length = end - start
        if group and not is_last and length <= 2 * _CONTEXT:
            group.append((tag, start, end, new_start, new_end))
            continue
        if group:
            tail = min(length, _CONTEXT)
            yield [*group, ("equal", start, start + tail, new_start, new_start + tail)]
        head = min(length, _CONTEXT) if not is_last else 0
        group = [("equal", end - head, end, new_end - head, new_end)] if head else []
    if group and any(item[0] != "equal" for item in group):
        yield group
