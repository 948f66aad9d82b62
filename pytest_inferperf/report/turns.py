"""First tokens by turn of conversations, as lines."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_inferperf.model.results import TurnFigures
from pytest_inferperf.report.lines import number

__all__ = ["turn_lines"]


def turn_lines(turns: Sequence[TurnFigures]) -> list[str]:
    """Return a line for each turn; nothing where there are none. What was not measured is a dash."""

    def known(value: float | None, unit: str) -> str:
        return "-" if value is None else f"{number(value)} {unit}"

    lines = []
    for item in turns:
        failed = f", {item.failed} failed" if item.failed else ""
        lines.append(
            f"turn {item.turn:<6}TTFT p50 {known(item.ttft_ms_p50, 'ms')}, p99 {known(item.ttft_ms_p99, 'ms')}; "
            f"{known(item.input_tokens, 'input tokens')} in the mean; n {item.requests}{failed}"
        )
    return [*lines, ""] if lines else []
