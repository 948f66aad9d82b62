"""Progress of measurements: what goes on, and from a thread of its own, twice a second, how far it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["EVERY_S", "SILENT", "Live", "Progress", "watched"]

EVERY_S = 0.5

Live = Callable[[Callable[[], str]], None]
"""Shows a state. It is asked for its text only where one is shown: in a log, a line every half a minute."""


@dataclass(frozen=True)
class Progress:
    """Where progress goes. Calling it says what goes on now: a stage, worth a line in a log."""

    say: Callable[[str], None]
    live: Live | None = None
    """Shows how far a stage is; None where nobody looks, and then nothing is counted for it."""

    def __call__(self, text: str) -> None:
        """Say what goes on now."""
        self.say(text)

    def within(self, stage: str) -> Progress:
        """Return a progress whose lines begin with what they are a part of."""
        live = self.live

        def show(text: Callable[[], str]) -> None:
            assert live is not None
            live(lambda: f"{stage}: {text()}")

        return Progress(lambda text: self.say(f"{stage}: {text}"), None if live is None else show)


SILENT = Progress(lambda _text: None)


@contextlib.contextmanager
def watched(state: Callable[[], str], live: Live | None, *, every_s: float = EVERY_S) -> Iterator[None]:
    """Show `state()` again and again while the block runs.

    From a thread of its own: a terminal that is slow, or stopped with Ctrl-S, blocks that thread and not the load. The
    block must not mind that its state is read meanwhile. A stream that is gone ends the lines and nothing else.
    """
    if live is None:
        yield
        return
    over = threading.Event()

    def show() -> None:
        while not over.wait(every_s):
            try:
                live(state)
            except (OSError, ValueError):  # ValueError: the stream was closed
                return

    thread = threading.Thread(target=show, name="inferperf-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
