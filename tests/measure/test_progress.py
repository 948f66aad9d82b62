"""Progress of measurements: a thread that reads, a terminal that may be slow, and nobody who looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pytest_inferperf.measure.progress import SILENT, Progress, watched


def threads() -> list[str]:
    return [item.name for item in threading.enumerate() if item.name == "inferperf-progress"]


def test_a_state_is_shown_again_and_again_until_the_block_ends() -> None:
    seen: list[str] = []
    three = threading.Event()

    def live(text: Callable[[], str]) -> None:
        seen.append(text())
        if len(seen) == 3:
            three.set()

    with watched(lambda: f"state {len(seen)}", live, every_s=0.01):
        assert three.wait(20)
    assert seen[:3] == ["state 0", "state 1", "state 2"]
    assert not threads()


def test_where_nobody_looks_there_is_no_thread() -> None:
    with watched(lambda: pytest.fail("was read"), None, every_s=0.001):
        assert not threads()
        time.sleep(0.02)


def test_a_stream_that_is_gone_ends_the_lines_and_nothing_else() -> None:
    asked: list[int] = []

    def live(_text: Callable[[], str]) -> None:
        asked.append(1)
        raise BrokenPipeError

    with watched(str, live, every_s=0.01):
        deadline = time.monotonic() + 20
        while threads() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert asked == [1]


def test_an_error_in_the_block_ends_the_thread_too() -> None:
    with pytest.raises(KeyboardInterrupt), watched(str, lambda _text: None, every_s=0.01):
        raise KeyboardInterrupt
    assert not threads()


def test_lines_say_what_they_are_a_part_of() -> None:
    said: list[str] = []
    shown: list[str] = []
    progress = Progress(said.append, lambda text: shown.append(text())).within("session 2").within("measure")
    progress("round 1/5")
    live = progress.within("round 1/5").live
    assert live is not None
    live(lambda: "8/20 requests")
    assert said == ["session 2: measure: round 1/5"]
    assert shown == ["session 2: measure: round 1/5: 8/20 requests"]
    assert SILENT.within("session 2").live is None
