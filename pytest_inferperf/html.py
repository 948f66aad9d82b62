"""Writes the HTML report of a run when the session ends."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf.errors import InferperfError
from pytest_inferperf.recorder import now
from pytest_inferperf.session import STATE, State

__all__ = ["PageWriter", "register_writer"]


def register_writer(config: pytest.Config) -> None:
    """Register what writes the page; never in an xdist worker. Raises `MissingExtra` where the page cannot be made."""
    if hasattr(config, "workerinput"):
        return
    from pytest_inferperf.report.page.write import check_extra

    check_extra()
    config.pluginmanager.register(PageWriter(config), "inferperf-html")


class PageWriter:
    """Makes a page of the records of the session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._shown = str(config.getoption("inferperf_html"))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the page; one that could not be written turns the session red."""
        if STATE not in self._config.stash or self._config.getoption("collectonly"):
            return
        state = self._config.stash[STATE]
        if not state.records:
            return
        try:
            self._write(state, _stopped(session))
        except InferperfError as error:
            state.lines.append(f"ERROR: {error}")
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        else:
            state.lines.append(f"HTML report written to {self._shown}")

    def _write(self, state: State, stopped: str) -> None:
        from pytest_inferperf.report.page.content import Where, page_of
        from pytest_inferperf.report.page.write import write_page
        from pytest_inferperf.report.run import run_report

        settings, records, hide = state.settings, state.kept(), state.hide
        past = settings.past
        where = Where(
            baselines=settings.baselines,
            against=settings.against_run,
            history=past if past is not None and past.is_dir() else None,
        )
        report = run_report(records, created=now(), environment=state.context or {}, hide=hide)
        path = Path(os.path.abspath(self._config.invocation_params.dir / Path(self._shown).expanduser()))
        page = page_of(records, report, where, hide=hide)
        if stopped:
            page = replace(page, notes=(hide(f"{stopped}: tests that are not here did not run"), *page.notes))
        write_page(path, page, shown=self._shown)


def _stopped(session: pytest.Session) -> str:
    """Say what ended the run before its last test; "" where nothing did."""
    why = session.shouldfail or session.shouldstop
    if why:
        return f"the run was stopped ({why})"
    return "the run was interrupted" if session.exitstatus == pytest.ExitCode.INTERRUPTED else ""
