"""What the self-test of the clock found, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pytest_inferperf.measure.load.trust import TOLERANCE_PER_ERROR, ClockPoint

__all__ = ["CLOCK_HEAD", "clock_json", "clock_row", "clock_summary"]

_COLUMNS = (
    ("streams", 7),
    ("ttft_ms.mean", 21),
    ("ttft_ms.p99", 21),
    ("itl_ms.mean", 21),
    ("held %", 7),
    ("cores", 6),
    ("server late ms", 14),
    ("its cores", 9),
)
CLOCK_HEAD = "  ".join(name.rjust(width) for name, width in _COLUMNS)


def clock_row(point: ClockPoint) -> str:
    """Return the row of one concurrency: figures with their errors, and what stands behind them."""
    errors = {error.metric: error for error in point.errors}
    cells = [str(point.streams)]
    for name in ("ttft_ms.mean", "ttft_ms.p99", "itl_ms.mean"):
        error = errors.get(name)
        cells.append(f"{error.measured_ms:.2f} ({100 * error.share:+.2f} %)" if error is not None else "-")
    cores = f"{point.clock.cpu_share:.3f}" if point.clock is not None else "-"
    cells += [f"{100 * point.held:.2f}", cores, f"{point.server_late_ms:.3f}", f"{point.server_cores:.3f}"]
    return "  ".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def clock_summary(points: Sequence[ClockPoint]) -> list[str]:
    """Say which ceilings this client can judge, and where it can judge none."""
    lines = [f"Smallest tolerance of a gate that this client can judge ({TOLERANCE_PER_ERROR} times its error):"]
    for point in points:
        if not point.cause:
            parts = (f"{error.metric} {100 * error.tolerance:.2f} %" for error in point.errors)
            lines.append(f"  {point.streams:>5} streams  {'  '.join(parts)}")
    bad = [f"  {point.streams:>5} streams  {point.cause}" for point in points if point.cause]
    if not bad:
        return lines
    good = lines if len(bad) < len(points) else []
    return [
        *good,
        "This client cannot be trusted on this machine at:",
        *bad,
        "Leave it a core of its own, or measure from another machine; then run inferperf selftest --clock again.",
    ]


def clock_json(points: Sequence[ClockPoint]) -> dict[str, Any]:
    """Return everything that was found."""
    rows = []
    for point in points:
        row = asdict(point)
        row["errors"] = [
            {**asdict(error), "share": error.share, "tolerance": error.tolerance} for error in point.errors
        ]
        rows.append(row)
    return {"points": rows, "trusted": bool(points) and not any(point.cause for point in points)}
