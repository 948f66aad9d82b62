"""Verdicts as text: the rows of a failure, and the summary at the end of a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from pytest_inferperf.baselines.entries import LEAST_BASELINE_SESSIONS
from pytest_inferperf.model.verdicts import GateVerdict, Status, worst

__all__ = [
    "INJECTED",
    "SIMULATED",
    "aligned",
    "compared_with",
    "failure_message",
    "gate_rows",
    "number",
    "plural",
    "summary_lines",
    "uncalibrated",
]

SIMULATED = "simulated quantization: accuracy is real, speed is not that of the format's hardware"
INJECTED = "a regression was injected ({}): this says nothing about the engine itself"
_RECORD_WORSE = '--inferperf-update=all --inferperf-reason="…" --inferperf-accept-regression'
_LABEL = {Status.PASS: "ok", Status.FAIL: "FAIL", Status.INCONCLUSIVE: "OPEN", Status.INVALID: "INVALID"}


def number(value: float | None) -> str:
    """Show a figure with as many digits as a reader compares: at least 4 significant ones, no exponent."""
    if value is None:
        return "-"
    size = abs(value)
    if size >= 1000:
        return f"{value:.1f}"
    if size >= 10:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 1 or value == 0 else f"{value:.4f}"


def plural(count: int, noun: str) -> str:
    """Count things: `1 gate`, `2 gates`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def uncalibrated(sessions: Iterable[int | None]) -> list[str]:
    """Say of values that were recorded whether they rest on too few sessions to know the false alarm rate.

    `sessions` holds the number of each value; None for one that has no sessions.
    """
    few = [count for count in sessions if count is not None and count < LEAST_BASELINE_SESSIONS]
    if not few:
        return []
    return [
        f"uncalibrated: {plural(min(few), 'session')} recorded; with {LEAST_BASELINE_SESSIONS} or more the false alarm "
        "rate is known. pytest --inferperf-update=… measures 10."
    ]


def gate_rows(verdicts: Sequence[GateVerdict]) -> list[str]:
    """Return one aligned line per gate: label, name, measured, relation, limit, unit, baseline, source."""
    cells = [
        (
            _LABEL[item.status],
            item.gate,
            number(item.measured),
            ">=" if item.higher_is_better else "<=",
            number(item.limit),
            item.unit,
            _baseline(item),
            item.source,
        )
        for item in verdicts
    ]
    width = [max((len(row[column]) for row in cells), default=0) for column in range(7)]
    rows = []
    for verdict, row in zip(verdicts, cells, strict=True):
        label, name, measured, relation, limit, unit, baseline, source = row
        rows.append(
            f"{label:<{width[0]}}  {name:<{width[1]}}  {measured:>{width[2]}} {relation} {limit:>{width[4]}} "
            f"{unit:<{width[5]}}  {baseline:<{width[6]}}  {source}".rstrip()
        )
        if verdict.status is not Status.PASS and verdict.reason and verdict.measured is None:
            rows.append(f"{'':<{width[0]}}  {verdict.reason}")
    return rows


def compared_with(item: GateVerdict) -> str:
    """Say what a figure was compared with: a baseline of its own kind, or the score of a reference; "" for nothing."""
    if item.baseline is None:
        return ""
    return "reference" if item.tolerance is None else "baseline"


def _baseline(item: GateVerdict) -> str:
    if item.baseline is None:
        return ""
    allowed = "" if item.tolerance is None else f" {'-' if item.higher_is_better else '+'}{100 * item.tolerance:g} %"
    return f"{compared_with(item)} {number(item.baseline)}{allowed}"


def _next_step(verdicts: Iterable[GateVerdict], rerun: str) -> str:
    """Choose one command: the first that a gate names, else how to accept what was measured."""
    found = list(verdicts)
    for item in found:
        if item.next_step:
            return f"Next: {item.next_step.replace('{nodeid}', rerun)}"
    # No baseline is behind a limit of the mark, or of what the run was compared with.
    regressed = [
        item
        for item in found
        if item.status is Status.FAIL
        and item.limit is not None
        and item.source != "mark"
        and not item.source.startswith("against ")
    ]
    if any("baseline_sessions" in item.details for item in regressed):
        # A judged run stops at the first look that decides: too few sessions for the next baseline.
        return f"To accept: pytest {rerun} {_RECORD_WORSE}, then commit."
    if regressed:
        return (
            'To accept: inferperf baseline update RESULTS.json --mode all --reason "…" --accept-regression, then commit. '
            "RESULTS.json is what --inferperf-json=RESULTS.json writes."
        )
    return ""


def failure_message(verdicts: Sequence[GateVerdict], rerun: str, *, simulated: bool = False, injected: str = "") -> str:
    """Say what a test's gates found: the verdict in the first line, then every gate, then one next step.

    `rerun` is what to type after `pytest` to run the test again; `injected` what was made worse on purpose, and then there
    is no next step.
    """
    bad = [item for item in verdicts if item.status is not Status.PASS]
    status = worst(verdicts)
    first = next(item for item in bad if item.status is status)
    outcome = "failed" if all(item.status is Status.FAIL for item in bad) else "did not pass"
    count = f"{len(bad)} of {plural(len(verdicts), 'gate')} {outcome}"
    if status is Status.INVALID:
        rest = "no gate was judged" if len(bad) == len(verdicts) else count
        head = f"INVALID: {first.reason}; {rest}"
    elif status is Status.INCONCLUSIVE:
        head = f"INCONCLUSIVE: {first.gate} {first.reason}; {count}"
    else:
        head = f"{first.gate} {first.reason}; {count}"
    lines = [head, *(f"  {row}" for row in gate_rows(verdicts))]
    lines += [f"  note: {note}" for note in _notes(verdicts)]
    if simulated:
        lines.append(f"  note: {SIMULATED}")
    if injected:
        return "\n".join([*lines, f"  note: {INJECTED.format(injected)}"])
    step = _next_step(bad, rerun)
    return "\n".join([*lines, step] if step else lines)


def _notes(verdicts: Iterable[GateVerdict]) -> list[str]:
    return list(dict.fromkeys(note for item in verdicts for note in item.notes))


def summary_lines(cases: Sequence[tuple[str, Sequence[GateVerdict], bool]], *, injected: str = "") -> list[str]:
    """Summarise a run: a heading per test, a line per gate, the counts, and one next step.

    `cases` holds (nodeid, verdicts, simulated). Returns nothing when no gate was judged.
    """
    judged = [(nodeid, verdicts, simulated) for nodeid, verdicts, simulated in cases if verdicts]
    if not judged:
        return []
    every = [item for _, verdicts, _ in judged for item in verdicts]
    rows = iter(gate_rows(every))
    lines: list[str] = []
    for nodeid, verdicts, simulated in judged:
        lines.append(f"{nodeid}{'  (simulated)' if simulated else ''}")
        for item in verdicts:
            lines.append(f"  {next(rows)}")
            if item.status is not Status.PASS and item.reason and item.measured is None:
                lines.append(f"  {next(rows)}")
        lines += [f"  note: {note}" for note in _notes(verdicts)]
    counts = {status: sum(item.status is status for item in every) for status in Status}
    lines.append("")
    lines.append(
        f"{plural(len(every), 'gate')} in {plural(len(judged), 'test')}: "
        + ", ".join(f"{count} {_WORD[status]}" for status, count in counts.items() if count)
    )
    if any(simulated for _, _, simulated in judged):
        lines.append(SIMULATED)
    if injected:
        return [*lines, INJECTED.format(injected)]
    for nodeid, verdicts, _ in judged:
        step = _next_step([item for item in verdicts if item.status is not Status.PASS], shlex.quote(nodeid))
        if step:
            lines += ["", step]
            break
    return lines


_WORD = {
    Status.PASS: "passed",
    Status.FAIL: "failed",
    Status.INCONCLUSIVE: "inconclusive",
    Status.INVALID: "invalid",
}


def aligned(rows: Sequence[Sequence[str]], *, right: set[int]) -> list[str]:
    """Align the cells of rows in columns; `right` names the columns that end together."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
