"""Reports of tests leave the process without secrets: to the terminal, to JUnit, to xdist's controller."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_inferperf.selection import bound_of
from pytest_inferperf.session import STATE

__all__ = ["HiddenReports"]


class HiddenReports:
    """Hides secrets in tracebacks, captured output, logs and properties of the tests that use the plugin."""

    # Outermost: whatever another plugin adds to a report is in it by then.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Return the report of a test of ours as one without secrets."""
        report = yield
        if STATE not in item.config.stash or not (_ours(item) or report.when == "teardown"):
            return report
        from pytest_inferperf.hiding import hide_in

        hook = item.config.hook
        data: dict[str, Any] = hook.pytest_report_to_serializable(config=item.config, report=report)
        hidden = hide_in(data, item.config.stash[STATE].hide)
        if hidden == data:
            return report
        clean: pytest.TestReport = hook.pytest_report_from_serializable(config=item.config, data=hidden)
        return clean


def _ours(item: pytest.Item) -> bool:
    return bound_of(item) is not None or "inferperf_engine" in getattr(item, "fixturenames", ())
