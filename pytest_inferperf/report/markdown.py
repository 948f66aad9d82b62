"""A run as Markdown that fits into a comment: the verdict first, then what did not pass, then the rest."""

from __future__ import annotations

import re

from pytest_inferperf.model.verdicts import GateVerdict, Status
from pytest_inferperf.report.lines import SIMULATED, number
from pytest_inferperf.report.run import CaseReport, RunReport

__all__ = ["MOST_BYTES", "markdown"]

MOST_BYTES = 60_000
"""A comment on GitHub takes 65,536 characters."""

_SPECIAL = re.compile(r"[^\w .,:;%+/()=-]|(?<=\w)_|_(?=\w)", re.A)
_ICON = {Status.PASS: "✅", Status.FAIL: "❌", Status.INCONCLUSIVE: "❔", Status.INVALID: "⚠️"}
_HEAD = "| gate | verdict | measured | limit | unit | from |\n| --- | --- | ---: | ---: | --- | --- |"


def markdown(report: RunReport, *, most_bytes: int = MOST_BYTES) -> str:
    """Write a run as Markdown of at most `most_bytes`; tests that find no room are counted."""
    icon = _ICON.get(report.status, "") if report.status is not None else ""
    text = f"{icon} **{_text(report.verdict)}**\n".lstrip()
    if any(case.simulated for case in report.cases):
        text += f"\n_{_text(SIMULATED)}_\n"
    left = list(report.worst_first)
    while left:
        section = _section(left[0])
        closing = f"\n{len(left)} more tests are not shown; the result file holds them.\n"
        if len((text + section + closing).encode()) > most_bytes:
            return text + closing
        text += section
        left.pop(0)
    return text


def _section(case: CaseReport) -> str:
    lines = ["", f"**{_text(case.nodeid)}**", ""]
    if case.invalid:
        lines += [f"INVALID: {_text(case.invalid)}", ""]
    if case.verdicts:
        lines += [_HEAD, *map(_row, case.verdicts)]
    reasons = [f"- {_text(item.gate)}: {_text(item.reason)}" for item in case.verdicts if item.reason]
    notes = [f"- {_text(note)}" for note in dict.fromkeys(note for item in case.verdicts for note in item.notes)]
    if reasons or notes:
        lines += ["", *reasons, *notes]
    return "\n".join(lines) + "\n"


def _row(item: GateVerdict) -> str:
    relation = "≥" if item.higher_is_better else "≤"
    limit = f"{relation} {number(item.limit)}" if item.limit is not None else "-"
    cells = (
        _text(item.gate),
        f"{_ICON[item.status]} {item.status.value}",
        number(item.measured),
        limit,
        _text(item.unit),
        _text(item.source),
    )
    return f"| {' | '.join(cells)} |"


def _text(value: str) -> str:
    """Write a text so that nothing in it is markup, a mention, a link or a new line."""
    flat = " ".join(value.split())
    escaped = _SPECIAL.sub(lambda found: f"&#{ord(found[0])};" if found[0].isascii() else found[0], flat)
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;")
