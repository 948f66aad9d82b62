"""The end of a process's log, as an error quotes it."""

from __future__ import annotations

from pathlib import Path

from pytest_inferperf.hiding import hider

__all__ = ["log_tail"]

LOG_LINES = 15
"""Lines of the log that an error quotes."""

_LOG_BYTES = 1 << 16
"""End of the log that is looked at: an engine may have flooded it."""

_LINE_CHARACTERS = 400


def log_tail(log: Path) -> str:
    """Return the last lines of a log under a heading that names the file."""
    try:
        with log.open("rb") as file:
            start = file.seek(max(0, log.stat().st_size - _LOG_BYTES))
            text = file.read(_LOG_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        return f"Its log {log} cannot be read: {error}"
    if start:
        # The first line may be the rest of one, which began with half a key.
        text = text.partition("\n")[2] or text[len(text) // 2 :]
    # Before it is cut: nothing could tell half a key later.
    text = hider()(text)
    if not text:
        return f"Its log {log} is empty."
    # A carriage return begins a line again: of a progress bar only its last state counts.
    last = [
        line.rstrip("\r").rpartition("\r")[2][:_LINE_CHARACTERS] for line in text.rstrip("\n").split("\n")[-LOG_LINES:]
    ]
    return "\n".join([f"Last lines of {log}:", *(f"  {line}" for line in last)])
