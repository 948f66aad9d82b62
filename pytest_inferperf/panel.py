"""What runs where on a Ray cluster, and what waits: the progress line of a run with `-n`, shown by the controller.

Each worker writes what it does into a file of a folder that it was given; one on another machine has no such folder, and is
not shown.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.measure.progress import watched
from pytest_inferperf.report.plan import duration
from pytest_inferperf.session import STATE
from pytest_inferperf.terminal import shown_progress

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

__all__ = ["Panel", "tell"]

_FOLDER = "inferperf_panel"


def tell(config: pytest.Config, engine: str, where: str = "") -> None:
    """Say that an engine waits for a place, or `where` it has one; "" for no engine. Outside of xdist, to nobody."""
    given: dict[str, Any] = getattr(config, "workerinput", {})
    if _FOLDER not in given:
        return
    mine = Path(given[_FOLDER]) / f"{given['workerid']}.new"
    with suppress(OSError):
        mine.write_text(json.dumps({"engine": engine, "where": where, "since": time.time()}))
        mine.rename(mine.with_suffix(".json"))


class Panel:
    """Shows what all workers do, while they do it. Registered in the controller."""

    def __init__(self, config: pytest.Config, left_s: Callable[[], float | None]) -> None:
        """`left_s` says how long the run will take yet; None where nobody knows."""
        self._config = config
        self._left_s = left_s
        self._folder: Path | None = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Give a worker the folder."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="inferperf-"))
            self._config.add_cleanup(self._remove)
        node.workerinput[_FOLDER] = str(self._folder)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Show the line while tests run."""
        if self._folder is None:
            return (yield)
        with shown_progress(self._config) as progress, watched(self.text, progress.live):
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self) -> None:
        """Make room for what pytest writes of a test."""
        line = self._config.stash[STATE].progress if STATE in self._config.stash else None
        if line is not None and self._folder is not None:
            line.clear()

    def text(self) -> str:
        """Say what runs, what waits, each since when, and how long it will take yet."""
        running, waiting, now = [], [], time.time()
        for path in sorted(self._folder.glob("*.json")) if self._folder is not None else ():
            try:
                row = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            since = duration(now - row["since"])
            if row["where"]:
                running.append(f"{row['engine']} on {row['where'].removeprefix('node ')} {since}")
            elif row["engine"]:
                waiting.append(f"{row['engine']} {since}")
        parts = [
            f"{len(rows)} {word} ({', '.join(rows)})" for word, rows in (("run", running), ("wait", waiting)) if rows
        ]
        left_s = self._left_s()
        parts += [f"about {duration(left_s)} left"] if left_s is not None else []
        return "; ".join(parts) or "no engine has asked for a node yet"

    def _remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
