"""Loaded into the pytest runs of `inferperf selftest`: baselines of their own, chosen tests, and what became of each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.model.injection import parse_injections
from pytest_inferperf.selection import bound_of
from pytest_inferperf.selftest.run import BASELINES, FOLDER, ONLY, OUTCOMES
from pytest_inferperf.session import state_of
from pytest_inferperf.settings import read_settings


# First, before anyone reads where the baselines are.
@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Stand by from the start."""
    config.pluginmanager.register(Witness(config, Path(os.environ[FOLDER])), "inferperf-selftest")


class Witness:
    """Redirects a run to the self-test's folder and writes down what it did there."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._tests: dict[str, dict[str, object]] = {}
        self._use_own_baselines()
        path = folder / ONLY
        self._only: dict[str, list[str]] | None = json.loads(path.read_text()) if path.exists() else None

    def _use_own_baselines(self) -> None:
        copy = self._folder / BASELINES
        if not copy.exists():
            try:
                source = read_settings(self._config).baselines
            except SettingsError:
                return  # The plugin itself reports it.
            if source.is_dir():
                shutil.copytree(source, copy)
            copy.mkdir(exist_ok=True)
        self._config.option.inferperf_baselines = str(copy)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the chosen tests, or all that have gates."""
        only = self._only
        gated = [item for item in items if (bound := bound_of(item)) is not None and bound.gates]
        kept = [item for item in gated if only is None or item.nodeid in only]
        self._config.hook.pytest_deselected(items=list(set(items) - set(kept)))
        items[:] = kept
        for item in kept:
            bound = bound_of(item)
            assert bound is not None
            self._tests[item.nodeid] = {"gates": len(bound.gates), "outcome": "did not run", "reason": ""}

    def pytest_runtestloop(self) -> None:
        """Leave no trace in the user's cache: an injected failure is none to run again."""
        for name in ("lfplugin", "nfplugin", "stepwiseplugin"):
            if self._config.pluginmanager.has_plugin(name):
                self._config.pluginmanager.unregister(name=name)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Inject what the gates of this test need: a slowdown for a neighbour would only make its questions take longer."""
        state = state_of(self._config)
        settings = state.settings
        mine = self._only.get(item.nodeid, []) if self._only is not None else []
        # What a gate finds is asked here, not whether the project lives with it.
        state.settings = replace(settings, injections=parse_injections(mine), waivers=())
        try:
            return (yield)
        finally:
            state.settings = settings

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome of a test, with the first line of its reason."""
        test = self._tests.get(report.nodeid)
        if test is None or (report.passed and report.when != "call"):
            return
        if test["outcome"] != "failed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            test |= {"outcome": report.outcome, "reason": str(reason).strip().partition("\n")[0]}

    def pytest_sessionfinish(self) -> None:
        """Write what became of every test."""
        settings = state_of(self._config).settings
        found = {"alpha": settings.alpha, "tests": self._tests}
        (self._folder / OUTCOMES).write_text(json.dumps(found))
