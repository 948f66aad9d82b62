"""Progress of a load run: a live line on a terminal, quiet lines elsewhere, nothing under -q and in workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TextIO

import pytest

from pytest_inferperf import terminal
from pytest_inferperf.measure import progress
from pytest_inferperf.measure.load import generator
from pytest_inferperf.report.progress import ProgressLine
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from pytest_inferperf.terminal import shown_progress
from tests.plugin.conftest import Project
from tests.plugin.test_output_agreement import on, served

__all__ = ["served"]


@pytest.fixture
def server_url() -> Iterator[str]:
    with serve_in_thread(Behaviour(ttft_ms=40.0, itl_ms=5.0)) as server:
        yield server.url


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look fifty times a second, and let a line be due every time: these runs are short."""

    def watched(state: Callable[[], str], live: Any) -> Any:
        return progress.watched(state, live, every_s=0.02)

    monkeypatch.setattr(generator, "watched", watched)
    monkeypatch.setattr(terminal, "ProgressLine", lambda *args, **kwargs: ProgressLine(*args, **kwargs, quiet_s=0.0))


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("arguments", "shown"), [((), True), (("-q",), False)])
def test_where_there_is_no_terminal_a_line_says_now_and_then_how_far_it_is(
    served: Project, server_url: str, arguments: tuple[str, ...], shown: bool
) -> None:
    served.test(on(server_url))
    result = served.run(*arguments, "-p", "no:benchmark")
    result.assert_outcomes(passed=1)
    lines = [line for line in result.outlines if line.startswith("inferperf: measure") and "requests," in line]
    assert bool(lines) is shown
    for line in lines:
        assert "/12 requests, " in line
        assert " in flight" in line


@pytest.mark.usefixtures("often")
def test_on_a_terminal_one_line_is_rewritten_and_removed(
    served: Project, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_terminal(stream: TextIO, **_: object) -> ProgressLine:
        return ProgressLine(stream, is_terminal=True, width=160)

    monkeypatch.setattr(terminal, "ProgressLine", on_terminal)
    served.test(on(server_url))
    result = served.run("-p", "no:benchmark")
    result.assert_outcomes(passed=1)
    parts = result.outlines  # a carriage return ends a line here
    states = [
        number for number, part in enumerate(parts) if part.startswith("inferperf: measure ") and "/12 requests" in part
    ]
    assert states
    # Overwritten with blanks before pytest goes on.
    assert any(part and not part.strip() for part in parts[states[-1] + 1 :])


def test_workers_show_nothing(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    """They build engines and evaluate: what several print at once nobody can read. Performance they do not measure."""
    config = pytester.parseconfigure("-p", "no:xdist")
    config.workerinput = {"workerid": "gw0"}  # type: ignore[attr-defined]
    with shown_progress(config) as shown:
        assert shown.live is None
        shown("calibrating 1/2")
    assert capsys.readouterr().out == ""
