"""The baselines that a plan finds, each file read once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, PerformanceEntry, accuracy_key, performance_key
from pytest_inferperf.baselines.format import AccuracyFile, PerformanceFile
from pytest_inferperf.baselines.past import Past
from pytest_inferperf.baselines.store import (
    accuracy_identity,
    accuracy_path,
    load_accuracy,
    load_performance,
    other_server,
    performance_path,
    read_performance,
    shown_path,
)
from pytest_inferperf.engines.hardware import cpu_hardware
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.gates.forecast import Unknown
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling, Gate
from pytest_inferperf.model.results import Hardware, slug
from pytest_inferperf.planning.conditions import Conditions

__all__ = ["Files"]


class Files:
    """The baseline files, each read once."""

    def __init__(self, conditions: Conditions) -> None:
        self._root = conditions.baselines
        self._past = conditions.past
        self._run = conditions.against
        self._run_past = Past([conditions.against.file]) if conditions.against is not None else Past()
        self._performance: dict[Path, PerformanceFile | Unknown | None] = {}
        self._accuracy: dict[Path, AccuracyFile | Unknown | None] = {}

    def performance(
        self, case: Case, here: Hardware | None, *, nodeid: str = ""
    ) -> tuple[PerformanceEntry | Missing | Unknown | None, str]:
        """Find the entry of a case for the hardware it will run on, and name that hardware where it is not `here`.

        Without `here` (a hook brings the engine, or the test will not run on this machine) the hardware is that of the
        last past result, else any that has an entry.
        """
        if case.workload is None:
            return None, ""
        if self._run is not None:
            there = here or self._past.hardware(case) or self._run_past.hardware(case) or cpu_hardware()
            found = self._run.performance(case, there, nodeid=nodeid)
            return found, "" if there == here or isinstance(found, Missing) else hardware_words(there)
        key = performance_key(case)
        last = self._past.hardware(case)
        wanted = here or last
        if wanted is not None:
            entry = self._entry(case, wanted)
            if isinstance(entry, PerformanceEntry | Unknown):
                return entry, "" if wanted == here else hardware_words(wanted)
        others, broken = self._stored(case)
        if here is None and others:
            return others[0][1], hardware_words(others[0][0])
        if wanted is None and broken:
            return broken[0], ""
        if wanted is None:
            folder = shown_path(self._root, self._root / "performance")
            return Missing(path=folder, key=key, reason="no entry for any hardware"), ""
        path = performance_path(self._root, wanted, case)
        lack = "no such entry" if self._performance.get(path) is not None else "no such file"
        others_words = f" (there is one for {', '.join(hardware_words(item) for item, _ in others)})" if others else ""
        return Missing(path=shown_path(self._root, path), key=key, reason=lack + others_words), ""

    def _entry(self, case: Case, hardware: Hardware) -> PerformanceEntry | Unknown | None:
        try:
            path = performance_path(self._root, hardware, case)
            if path not in self._performance:
                self._performance[path] = load_performance(self._root, hardware, case)
        except BaselineError as error:
            return Unknown(reason=str(error), broken=True)
        file = self._performance[path]
        return _own(file, case) if isinstance(file, PerformanceFile) else file

    def _stored(self, case: Case) -> tuple[list[tuple[Hardware, PerformanceEntry]], list[Unknown]]:
        """Find the entries of a case on whatever hardware, and the files that might hold one but cannot be read."""
        name = case.engine.served_model_name
        entries: list[tuple[Hardware, PerformanceEntry]] = []
        broken: list[Unknown] = []
        for path in sorted((self._root / "performance").glob(f"*/{slug(name)}.json")):
            if path not in self._performance:
                try:
                    self._performance[path] = read_performance(path, shown=shown_path(self._root, path))
                except BaselineError as error:
                    self._performance[path] = Unknown(reason=str(error), broken=True)
            file = self._performance[path]
            if isinstance(file, Unknown):
                broken.append(file)
            elif file is not None and file.model == name:
                entry = _own(file, case)
                if entry is not None:
                    entries.append((file.hardware, entry))
        return entries, broken

    def accuracy(
        self, case: Case, gates: Sequence[Gate], *, nodeid: str = ""
    ) -> AccuracyEntry | Missing | Unknown | None:
        """Find the entry of a case's task, also where its metric is known only once lm-eval has loaded the task."""
        if case.task is None:
            return None
        metrics = {gate.metric for gate in gates if isinstance(gate, AccuracyLossCeiling | AccuracyFloor)} - {None}
        metric = next(iter(metrics), None) or self._past.metric(case)
        if self._run is not None:
            return self._run.accuracy(case, metric or self._run_past.metric(case) or "METRIC", nodeid=nodeid)
        try:
            path = accuracy_path(self._root, case)
            if path not in self._accuracy:
                self._accuracy[path] = load_accuracy(self._root, case)
        except BaselineError as error:
            return Unknown(reason=str(error), broken=True)
        file = self._accuracy[path]
        if isinstance(file, Unknown):
            return file
        shown = shown_path(self._root, path)
        entries = list(file.tasks.values()) if file is not None else []
        if metric is not None:
            key = accuracy_key(case, metric)
            found = file.tasks.get(key) if file is not None else None
        else:
            key = accuracy_key(case, "METRIC")
            mine = [item for item in entries if item.identity == accuracy_identity(case, item.metric)]
            if len(mine) > 1:
                names = ", ".join(sorted(item.metric for item in mine))
                return Unknown(
                    reason=f"{shown} scores {case.task.name} by {names}; which one judges is known once the task is "
                    "loaded (metric= in the mark says it before)"
                )
            found = mine[0] if mine else None
        return found or Missing(path=shown, key=key, reason="no such entry" if file is not None else "no such file")


def _own(file: PerformanceFile, case: Case) -> PerformanceEntry | None:
    """Return the entry that a run would be judged by: not that of another server with the same key."""
    entry = file.entries.get(performance_key(case))
    return None if entry is None or other_server(entry, case) else entry


def hardware_words(hardware: Hardware) -> str:
    return hardware.words
