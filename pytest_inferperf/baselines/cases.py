"""The cases that a selection of tests collects, as a file: what a baseline must be reachable from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_inferperf.baselines.documents import SCHEMA_VERSION, check_schema, dump_json, parse_json
from pytest_inferperf.baselines.entries import performance_key
from pytest_inferperf.baselines.result_file import case_from_json, gate_from_json, gate_to_json
from pytest_inferperf.baselines.store import (
    accuracy_identity,
    baseline_files,
    read_accuracy,
    read_performance,
    shown_path,
)
from pytest_inferperf.baselines.write import write_atomic
from pytest_inferperf.errors import ResultFileError
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.gates import AccuracyLossCeiling, Gate
from pytest_inferperf.model.results import slug

__all__ = ["CollectedCase", "CollectedCases", "Unreachable", "read_cases", "unreachable", "write_cases"]


@dataclass(frozen=True, kw_only=True)
class CollectedCase:
    """One test: its case and its gates."""

    nodeid: str
    case: Case
    gates: tuple[Gate, ...]


@dataclass(frozen=True, kw_only=True)
class CollectedCases:
    """Everything that was collected."""

    partial: str
    """Why tests may be missing, such as `-k fast`; "" for a full selection."""

    cases: tuple[CollectedCase, ...]


@dataclass(frozen=True, kw_only=True)
class Unreachable:
    """A stored value that no collected case looks up."""

    path: Path
    shown: str
    key: str
    precision: str = ""
    """The score of a task's entry; "" for a performance entry."""

    @property
    def label(self) -> str:
        """Name it: the key, and the precision of a score."""
        return f"{self.key} {self.precision}".rstrip()


def write_cases(path: Path, found: CollectedCases) -> None:
    """Write the file whole or not at all. Raises `ResultFileError` where it cannot be written."""
    data = {
        "schema_version": SCHEMA_VERSION,
        "partial": found.partial,
        "cases": [
            {
                "nodeid": item.nodeid,
                "case": item.case.to_json(),
                "gates": [gate_to_json(gate) for gate in item.gates],
            }
            for item in found.cases
        ],
    }
    write_atomic(path, dump_json(data), shown=str(path), error=ResultFileError)


def read_cases(path: Path) -> CollectedCases:
    """Read a file that `--inferperf-cases` wrote. Raises `ResultFileError` for whatever is wrong with it."""
    hint = "It is written by pytest --collect-only --inferperf-cases=FILE."
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise ResultFileError(f"{path}: cannot be read: {problem.strerror or problem}. {hint}") from None
    data: dict[str, Any] = parse_json(raw, str(path), error=ResultFileError, cut_short=hint, hint=hint)
    check_schema(data, "cases", str(path), error=ResultFileError)
    return CollectedCases(
        partial=data["partial"],
        cases=tuple(
            CollectedCase(
                nodeid=item["nodeid"],
                case=case_from_json(item["case"]),
                gates=tuple(gate_from_json(gate, where=str(path)) for gate in item["gates"]),
            )
            for item in data["cases"]
        ),
    )


def unreachable(root: Path, cases: Sequence[CollectedCase]) -> list[Unreachable]:
    """Return every stored value below `root` that none of the cases looks up, on whatever hardware they run.

    A metric of a task is reachable with the task, since a mark may leave its choice to the task. Raises `BaselineError`
    for a file that cannot be read: what is in it is not known.
    """
    points = [point for item in cases if item.case.workload is not None for point in item.case.points()]
    # Two command lines of servers may give one key; the entry is that of one of them.
    speeds = {(_file_of(point), performance_key(point), point.engine.server) for point in points}
    scores = {address for item in cases for address in _scores(item)}
    performance, accuracy = baseline_files(root)
    found = []
    for path in performance:
        shown = shown_path(root, path)
        for key, stored in sorted(read_performance(path, shown=shown).entries.items()):
            if (path.name, key, str(stored.identity.get("serve", ""))) not in speeds:
                found.append(Unreachable(path=path, shown=shown, key=key))
    for path in accuracy:
        shown = shown_path(root, path)
        for key, entry in sorted(read_accuracy(path, shown=shown).tasks.items()):
            identity = frozenset((name, value) for name, value in entry.identity.items() if name != "metric")
            for precision in sorted(entry.scores):
                if (path.name, identity, precision) not in scores:
                    found.append(Unreachable(path=path, shown=shown, key=key, precision=precision))
    return found


def _scores(item: CollectedCase) -> Iterator[tuple[str, frozenset[tuple[str, str | int]], str]]:
    if item.case.task is None:
        return
    identity = frozenset((name, value) for name, value in accuracy_identity(item.case, "").items() if name != "metric")
    references = [gate.reference for gate in item.gates if isinstance(gate, AccuracyLossCeiling)]
    for precision in (item.case.engine.precision, *references):
        yield _file_of(item.case), identity, precision


def _file_of(case: Case) -> str:
    return f"{slug(case.engine.served_model_name)}.json"
