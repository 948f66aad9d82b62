"""Ctrl-C in the middle of a measurement: it ends the run, and what was measured goes with it."""

from __future__ import annotations

from pytest_inferperf.model.results import Round

__all__ = ["MeasurementInterrupted"]


class MeasurementInterrupted(KeyboardInterrupt):
    """Somebody pressed Ctrl-C. `rounds` are those of the session so far; the last may be a part of one."""

    def __init__(self, rounds: tuple[Round, ...]) -> None:
        super().__init__("interrupted while it was measured")
        self.rounds = rounds
