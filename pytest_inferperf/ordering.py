"""The longest engine first, with --inferperf-ray and -n: in what xdist deals to its workers.

The tests keep the order of the suite: others count on it. The controller reads past results and hands them to its workers;
they collect, and tell it which tests one engine runs.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.baselines.past import Took, read_past
from pytest_inferperf.collection import spec_of
from pytest_inferperf.errors import ResultFileError
from pytest_inferperf.panel import Panel
from pytest_inferperf.planning.order import Waiting, expected
from pytest_inferperf.selection import bound_of
from pytest_inferperf.session import state_of

if TYPE_CHECKING:
    from xdist.scheduler import Scheduling
    from xdist.workermanage import WorkerController

    from pytest_inferperf.dealing import LongestFirst

__all__ = ["Order", "register_order"]

_PAST = "inferperf_took"
_FOLDER = "inferperf_folder"
_DEALT = "dealt.json"
_ORDERED = ("stepwise", "stepwise_skip", "stepwise_reset", "failedfirst", "newfirst")
"""Options that say themselves which test runs first; those of stepwise that imply it do so later than we look."""

_ORDERING = (
    *("randomly", "random_order", "pytest_order", "pytest_ordering"),
    *("pytest_randomly", "random_order.plugin", "pytest_order.plugin"),
)
"""Plugins, by the names under which pytest knows them, whose users count on the order that they give: their entry points,
and what `-p` imports where none is loaded by itself."""


def register_order(config: pytest.Config) -> None:
    """Show what waits, and deal the longest engine first unless somebody says otherwise: for a run on Ray."""
    settings = state_of(config).settings
    several = hasattr(config, "workerinput") or config.getoption("dist", "no") == "load"
    ordered = any(config.getoption(name, False) for name in _ORDERED) or any(
        map(config.pluginmanager.has_plugin, _ORDERING)
    )
    order = Order(config) if several and not ordered and settings.order == "longest" else None
    if order is not None:
        config.pluginmanager.register(order, "inferperf-order")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Panel(config, order.left_s if order is not None else _unknown), "inferperf-panel")


def _unknown() -> None:
    """Say of a run without an order of ours that nobody knows how long it takes."""


class Order:
    """Has the tests of one engine dealt to one worker, by how long they took."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._problem = ""
        self._folder: Path | None = None
        self._dealer: LongestFirst | None = None
        given: Mapping[str, Any] | None = getattr(config, "workerinput", None)
        if given is None:
            self._past = self._read()
        else:
            self._past = {nodeid: Took(**item) for nodeid, item in given.get(_PAST, {}).items()}
            self._folder = Path(given[_FOLDER]) if _FOLDER in given else None

    def _read(self) -> Mapping[str, Took]:
        path = state_of(self._config).settings.past
        try:
            return {} if path is None else read_past(path).took
        except ResultFileError as error:
            # Another order is no reason to run nothing.
            self._problem = str(error)
            return {}

    @pytest.hookimpl
    def pytest_report_header(self) -> str:
        """Say why engines are not dealt by past results that were named."""
        if not self._problem:
            return ""
        words = f"engines dealt in the order of the suite, since past results cannot be read: {self._problem}"
        return state_of(self._config).hide(f"inferperf: {words}")

    # First: the controller deals once xdist's own has told it what there is.
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tell the controller of the tests of ours."""
        if self._folder is not None:
            self._tell(self._folder, [_waiting(item) for item in session.items if spec_of(item) is not None])

    def _tell(self, folder: Path, tests: list[Waiting]) -> None:
        """Tell the controller to which engine each test belongs, and how long it takes; every worker tells the same."""
        engines: dict[object, str] = {}
        rows = {}
        for test, took in zip(tests, expected(tests, self._past), strict=True):
            first = test.engine not in engines
            name = engines.setdefault(test.engine, f"engine {len(engines) + 1}")
            rows[test.nodeid] = (name, took.work_s + (took.load_s if first else 0.0))
        # A worker on another machine has no such folder: the controller then deals module by module.
        with suppress(OSError):
            mine = folder / f"{os.getpid()}.json"
            mine.write_text(json.dumps(rows))
            mine.rename(folder / _DEALT)

    # In the controller of xdist.

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Hand over to a worker how long tests took."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="inferperf-"))
            self._config.add_cleanup(self._remove)
        node.workerinput[_PAST] = {nodeid: asdict(item) for nodeid, item in self._past.items()}
        node.workerinput[_FOLDER] = str(self._folder)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Scheduling | None:
        """Deal engine by engine, the longest first, unless another --dist says how tests are dealt."""
        if config.getoption("dist") != "load":
            return None
        from pytest_inferperf.dealing import LongestFirst

        self._dealer = LongestFirst(config, log, self._dealt)
        return self._dealer

    def left_s(self) -> float | None:
        """Return the seconds that the run will take yet; None where no past results say so."""
        return self._dealer.left_s() if self._dealer is not None and self._past else None

    def _dealt(self) -> Mapping[str, tuple[str, float]] | None:
        if self._folder is None:
            return None
        try:
            rows = json.loads((self._folder / _DEALT).read_text())
        except (OSError, ValueError):
            return None
        return {nodeid: (name, seconds) for nodeid, (name, seconds) in rows.items()}

    def _remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _waiting(item: pytest.Item) -> Waiting:
    bound = bound_of(item)
    kind = "asks the engine" if bound is None else "measures" if bound.case.workload is not None else "evaluates"
    return Waiting(nodeid=item.nodeid, engine=spec_of(item), kind=kind)
