"""First tokens by turn of conversations: as lines, and put together from all rounds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from pytest_inferperf.model.results import PerformanceResult, TurnFigures
from pytest_inferperf.report.lines import number

__all__ = ["all_turns", "turn_lines"]


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


def all_turns(performance: PerformanceResult) -> tuple[TurnFigures, ...]:
    """Return a measurement's figures of each turn: requests of all rounds, and medians as those of every other metric.

    Empty where there was no more than one turn. A median is of the rounds in which there is a figure.
    """
    return _together([_together([item.turns for item in session.rounds]) for session in performance.sessions])


def _together(several: Sequence[Sequence[TurnFigures]]) -> tuple[TurnFigures, ...]:
    turns: dict[int, list[TurnFigures]] = {}
    for one in several:
        for item in one:
            turns.setdefault(item.turn, []).append(item)
    return tuple(
        TurnFigures(
            turn=turn,
            requests=sum(item.requests for item in items),
            failed=sum(item.failed for item in items),
            input_tokens=_median([item.input_tokens for item in items]),
            ttft_ms_p50=_median([item.ttft_ms_p50 for item in items]),
            ttft_ms_p99=_median([item.ttft_ms_p99 for item in items]),
        )
        for turn, items in sorted(turns.items())
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
