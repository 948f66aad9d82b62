"""Progress of long builds and runs: one line rewritten on a terminal, now and then a quiet line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["ProgressLine"]


class ProgressLine:
    """Shows the latest state of a long job.

    On a terminal the line is rewritten in place; elsewhere a line is written when the first `quiet_s` seconds have
    passed and then at most every `quiet_s` seconds, so that a CI log shows life without filling up. `lead` ends what stands before such a
    line: pytest's dots.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        is_terminal: bool,
        width: int = 100,
        quiet_s: float = 30.0,
        lead: str = "\n",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._is_terminal = is_terminal
        self._width = width
        self._quiet_s = quiet_s
        self._lead = lead
        self._clock = clock
        self._last = clock()
        self._open = False

    def is_due(self) -> bool:
        """Whether a line would be shown now."""
        return self._is_terminal or self._clock() - self._last >= self._quiet_s

    def __call__(self, text: str) -> None:
        """Show `text` as the current state."""
        if self._is_terminal:
            line = f"inferperf: {text}"[: self._width - 1]
            self._stream.write(f"\r{line:<{self._width - 1}}")
            self._stream.flush()
            self._open = True
            return
        if self.is_due():
            self._last = self._clock()
            self._stream.write(f"{self._lead}inferperf: {text}\n")
            self._stream.flush()

    def clear(self) -> None:
        """Remove the line from the terminal."""
        if self._open:
            self._stream.write(f"\r{'':<{self._width - 1}}\r")
            self._stream.flush()
            self._open = False
