"""Progress lines: rewritten on a terminal, rare elsewhere."""

from __future__ import annotations

import io

from pytest_inferperf.report.progress import ProgressLine


def test_terminal_rewrites_one_line_and_clears_it() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream, is_terminal=True, width=30)
    line("calibrating 1/2")
    line("x" * 100)
    line.clear()
    text = stream.getvalue()
    assert "\n" not in text
    assert all(len(part) <= 29 for part in text.split("\r"))
    assert text.endswith("\r")


def test_whether_a_line_is_due_is_known_before_it_is_made() -> None:
    now = 0.0
    quiet = ProgressLine(io.StringIO(), is_terminal=False, quiet_s=30.0, clock=lambda: now)
    assert ProgressLine(io.StringIO(), is_terminal=True).is_due()
    assert not quiet.is_due()
    now = 30.0
    assert quiet.is_due()
    quiet("step")
    assert not quiet.is_due()


def test_what_leads_a_quiet_line_may_be_nothing() -> None:
    stream = io.StringIO()
    ProgressLine(stream, is_terminal=False, quiet_s=0.0, lead="")("step")
    assert stream.getvalue() == "inferperf: step\n"


def test_elsewhere_a_line_now_and_then() -> None:
    stream = io.StringIO()
    now = 0.0
    line = ProgressLine(stream, is_terminal=False, quiet_s=30.0, clock=lambda: now)
    for second in range(100):
        now = float(second)
        line(f"step {second}")
    line.clear()
    assert stream.getvalue().split() == [
        "inferperf:",
        "step",
        "30",
        "inferperf:",
        "step",
        "60",
        "inferperf:",
        "step",
        "90",
    ]
