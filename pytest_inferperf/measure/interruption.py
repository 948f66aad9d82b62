"""Ctrl-C in the middle of a measurement: it ends the run, and what was measured goes with it."""

from __future__ import annotations

from pytest_inferperf.model.results import Comparison, Round

__all__ = ["ComparisonInterrupted", "MeasurementInterrupted", "rounds_so_far"]


class MeasurementInterrupted(KeyboardInterrupt):
    """Somebody pressed Ctrl-C. `rounds` are those of the session so far; the last may be a part of one."""

    def __init__(self, rounds: tuple[Round, ...]) -> None:
        super().__init__("interrupted while it was measured")
        self.rounds = rounds


class ComparisonInterrupted(KeyboardInterrupt):
    """Somebody pressed Ctrl-C while two engines were compared. The last block of `found` may be a part of one."""

    def __init__(self, found: Comparison) -> None:
        super().__init__("interrupted while it was compared")
        self.found = found


def rounds_so_far(error: KeyboardInterrupt) -> tuple[Round, ...]:
    """Return what was measured of a session when somebody pressed Ctrl-C."""
    return error.rounds if isinstance(error, MeasurementInterrupted) else ()
