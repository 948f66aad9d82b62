"""Changes of baselines as text: a row for each value, and what moved beside it."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_inferperf.baselines.changes import Change
from pytest_inferperf.report.lines import number, plural
from pytest_inferperf.report.table import table

__all__ = ["change_lines"]


def change_lines(changes: Sequence[Change], *, evidence: bool = False) -> list[str]:
    """Return the changes file by file; with `evidence` also what each rests on, and the identity or context that moved."""
    lines: list[str] = []
    for path in dict.fromkeys(item.path for item in changes):
        own = [item for item in changes if item.path == path]
        rows = [
            (
                item.key,
                item.what,
                number(item.old) if item.old is not None else "",
                "->" if item.old is not None else "",
                number(item.new),
                item.unit,
                _verdict(item),
                *((_interval(item), _rests_on(item)) if evidence else ()),
            )
            for item in own
        ]
        lines += [path, *table(rows, right={2, 4}, indent=2)]
        if evidence:
            lines += [f"  {line}" for line in dict.fromkeys(line for item in own for line in _moved(item))]
    return lines


def _verdict(item: Change) -> str:
    if item.old is None:
        return "new"
    if item.better is None:
        return "same"
    percent = "" if item.percent is None else f"{item.percent:+.1f} % "
    answers = ""
    if item.unparseable is not None:
        before, now = item.unparseable
        answers = f" (unparseable {before:.2f} % -> {now:.2f} %)"
    return f"{percent}{'better' if item.better else 'worse'}{answers}"


def _interval(item: Change) -> str:
    if item.old is None:
        return ""
    if item.interval is None:
        return "no interval"
    low, high = item.interval
    return f"95 % between {low:+.1f} % and {high:+.1f} %"


def _rests_on(item: Change) -> str:
    unit = "session" if item.kind == "performance" else "question"
    if item.rests_on is None:
        return ""
    before, now = item.rests_on
    return plural(now, unit) if item.old is None else f"{before} -> {plural(now, unit)}"


def _moved(item: Change) -> list[str]:
    lines = [f"{item.key}: identity moved: {item.identity}"] if item.identity else []
    return [*lines, *(f"{item.key}: context moved: {moved}" for moved in item.context)]
