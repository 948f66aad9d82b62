"""Which of a project's tests a run selects: what is not selected must not be taken for missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_inferperf.marks.cases import BoundCase

__all__ = ["SELECTION", "Selection", "bound_of"]

_NARROWING = (
    ("keyword", "-k"),
    ("markexpr", "-m"),
    ("deselect", "--deselect"),
    ("ignore", "--ignore"),
    ("ignore_glob", "--ignore-glob"),
    ("lf", "--last-failed"),
    ("stepwise", "--stepwise"),
)
"""Options that leave tests out: their destinations and names."""


class Selection:
    """Watches collection, and says afterwards whether everything there is was selected."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._deselected = 0
        self._uncollected: dict[str, str] = {}

    @pytest.hookimpl
    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Count what options and plugins leave out."""
        self._deselected += len(items)

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep the modules that could not be collected, or skip themselves."""
        if report.outcome != "passed":
            self._uncollected[report.nodeid] = report.outcome

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write the collected cases where `--inferperf-cases` asks for it."""
        path = self._config.getoption("inferperf_cases")
        if path is None or hasattr(self._config, "workerinput"):
            return
        from pytest_inferperf.baselines.cases import CollectedCase, CollectedCases, write_cases
        from pytest_inferperf.errors import InferperfError

        bound = ((item.nodeid, bound_of(item)) for item in session.items)
        cases = tuple(
            CollectedCase(nodeid=nodeid, case=found.case, gates=found.gates)
            for nodeid, found in bound
            if found is not None
        )
        target = self._config.invocation_params.dir / path
        try:
            write_cases(target, CollectedCases(partial=self.why_partial() or self._elsewhere(), cases=cases))
        except InferperfError as error:
            raise pytest.UsageError(str(error)) from None

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """Tell the controller of an xdist worker, which collects nothing itself."""
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        if output is not None:
            output["inferperf_partial"] = self.why_partial()

    def why_partial(self) -> str:
        """Say what left tests out, or may have; "" where everything in the named folders was selected."""
        option = self._config.option
        for name, shown in _NARROWING:
            value: Any = getattr(option, name, None)
            if value:
                return f"{shown} was given"
        named = [argument for argument in self._config.args if "::" in argument]
        if named:
            return f"{named[0]} is a part of a module"
        for nodeid, outcome in self._uncollected.items():
            return f"{nodeid} {'could not be collected' if outcome == 'failed' else 'was skipped at collection'}"
        if self._deselected:
            return f"{self._deselected} tests were deselected"
        if self._config.getoption("inferperf_set"):
            return "--inferperf-set changed the cases"
        return ""

    def _elsewhere(self) -> str:
        """Name a module with cases that lies outside of what was collected; "" where there is none."""
        from pytest_inferperf.marks.modules import has_cases, modules

        config = self._config
        folder = config.invocation_params.dir
        named = [Path(os.path.abspath(folder / argument)) for argument in config.args]
        for path in modules(
            config.rootpath, names=config.getini("python_files"), not_into=config.getini("norecursedirs")
        ):
            if not any(path.is_relative_to(item) for item in named) and has_cases(path):
                return f"{path.relative_to(config.rootpath).as_posix()} has inferperf marks and was not collected"
        return ""


def bound_of(item: pytest.Item) -> BoundCase | None:
    """Return the case and gates of an item; None for a test that is not ours."""
    callspec = getattr(item, "callspec", None)
    bound: BoundCase | None = callspec.params.get("inferperf_case") if callspec is not None else None
    return bound


SELECTION = pytest.StashKey[Selection]()
