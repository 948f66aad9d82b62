"""Progress past pytest's capture: a rewritten line on a terminal, quiet lines in CI, nothing under -q."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator

import pytest

from pytest_inferperf.measure.progress import Progress
from pytest_inferperf.report.progress import ProgressLine
from pytest_inferperf.session import state_of

__all__ = ["shown_progress"]


@contextlib.contextmanager
def shown_progress(config: pytest.Config) -> Iterator[Progress]:
    """Give what shows lines of progress, and remove the line when the block is done.

    Workers of pytest-xdist show none: what several write at once nobody can read. Stages are logged all the same.
    """
    quiet = config.get_verbosity() < 0 or hasattr(config, "workerinput")

    hide = state_of(config).hide

    def show(text: str) -> None:
        text = hide(text)
        logging.getLogger("pytest_inferperf").info(text)
        if not quiet:
            with _uncaptured(config):
                _line(config)(text)

    def show_live(text: Callable[[], str]) -> None:
        # Where no line is due, nothing is read and pytest's capture left alone.
        line = state_of(config).progress
        if line is None or line.is_due():
            with _uncaptured(config):
                _line(config)(hide(text()))

    try:
        yield Progress(show, None if quiet else show_live)
    finally:
        if state_of(config).progress is not None:
            with _uncaptured(config):
                _line(config).clear()


def _line(config: pytest.Config) -> ProgressLine:
    state = state_of(config)
    if state.progress is None:
        width = shutil.get_terminal_size().columns
        state.progress = ProgressLine(sys.stdout, is_terminal=sys.stdout.isatty(), width=width)
    return state.progress


@contextlib.contextmanager
def _uncaptured(config: pytest.Config) -> Iterator[None]:
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    capture.suspend_global_capture(in_=False)
    try:
        yield
    finally:
        capture.resume_global_capture()
