"""What an update would change, and what it refuses: the rules, over files held in memory. Writes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pytest_inferperf.baselines.accuracy_rules import AccuracyRules
from pytest_inferperf.baselines.changes import last_attempts, why_unusable
from pytest_inferperf.baselines.entries import accuracy_key, performance_key
from pytest_inferperf.baselines.ledger import REPEAT, Ledger
from pytest_inferperf.baselines.performance_rules import PerformanceRules
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.baselines.store import shown_path
from pytest_inferperf.baselines.update_plan import PlannedFile, UpdatePlan
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.model.quant import precision_bits

__all__ = ["Planner"]


class Planner:
    """Takes records into the files that they are about."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._performance = PerformanceRules(ledger)
        self._accuracy = AccuracyRules(ledger)

    def plan(self) -> UpdatePlan:
        """Return the plan: only files in which something changes are in it."""
        root = self._ledger.root
        # First: scores that would be lost are put back here, which takes changes out of the ledger.
        texts = self._performance.files() | self._accuracy.files()
        touched = {item.path for item in self._ledger.changes}
        files = [
            PlannedFile(path=path, shown=shown_path(root, path), before=before, after=after)
            for path, (before, after) in sorted(texts.items())
            if shown_path(root, path) in touched
        ]
        return UpdatePlan(
            root=root,
            changes=tuple(self._ledger.changes),
            refusals=tuple(self._ledger.refusals),
            skipped=tuple(self._ledger.skipped),
            files=tuple(files),
        )

    def usable(self, records: Sequence[ResultRecord]) -> list[ResultRecord]:
        """Return the records that may become baselines, one per key; the others are refused or skipped."""
        chosen: dict[tuple[str, ...], list[ResultRecord]] = {}
        for record in last_attempts(records):
            problem = why_unusable(record)
            if problem:
                self._ledger.refuse(record.nodeid, problem, action=REPEAT)
            elif record.result.performance is None and record.result.accuracy is None:
                compared = record.result.comparisons
                what = (
                    "only compared with another engine, which records nothing" if compared else "nothing was measured"
                )
                self._ledger.skipped.append(f"{record.nodeid}: {what}")
            else:
                chosen.setdefault(_address(record), []).append(record)
        found = [record for same in chosen.values() for record in self._one_of(same)]
        for record in found:
            answers, case = record.result.accuracy, record.result.case
            if answers is not None and case.task is not None:
                with self._broken_files():
                    self._accuracy.expect(case, answers)
        return sorted(found, key=_bits)

    def add(self, record: ResultRecord) -> None:
        """Take one record into the files."""
        result = record.result
        if result.performance is not None and result.engine is not None and result.case.workload is not None:
            with self._broken_files():
                self._performance.add(record, result.performance, result.engine.hardware)
        if result.accuracy is not None and result.case.task is not None:
            with self._broken_files():
                self._accuracy.add(record, result.accuracy)

    def _one_of(self, same: Sequence[ResultRecord]) -> list[ResultRecord]:
        """Return the record of one key that is used; none where the records are of engines with other options."""
        # The one that says most about its own spread.
        first, *others = sorted(same, key=_sessions, reverse=True)
        differing = [item for item in others if item.result.case.engine != first.result.case.engine]
        if differing:
            # Whichever were recorded, the other test would be judged against an engine it does not measure.
            self._ledger.refuse(
                f"{first.nodeid} and {differing[0].nodeid}",
                f"they share the key {_address(first)[-1]!r} but measure engines with different options",
                action="Give one of them another served_model_name",
            )
            return []
        self._ledger.skipped += [f"{item.nodeid}: the same case as {first.nodeid}, which is used" for item in others]
        # The strictest gate of every test of the case says what is a loss.
        gates = tuple(gate for item in (first, *others) for gate in item.gates)
        verdicts = tuple(verdict for item in (first, *others) for verdict in item.verdicts)
        return [replace(first, gates=gates, verdicts=verdicts)]

    @contextlib.contextmanager
    def _broken_files(self) -> Iterator[None]:
        """Turn a baseline file that cannot be read into one refusal, however many records are about it."""
        try:
            yield
        except BaselineError as problem:
            if str(problem) not in self._ledger.refusals:
                self._ledger.refusals.append(str(problem))


def _address(record: ResultRecord) -> tuple[str, ...]:
    """Return what decides where a record is filed; records that share it share a baseline."""
    result, case = record.result, record.result.case
    hardware = result.engine.hardware.slug if result.performance is not None and result.engine is not None else ""
    keys = [performance_key(case)] if result.performance is not None and case.workload is not None else []
    keys += (
        [f"{accuracy_key(case, result.accuracy.metric)} {case.engine.precision}"]
        if result.accuracy is not None and case.task
        else []
    )
    return (case.engine.served_model_name, hardware, " and ".join(keys))


def _bits(record: ResultRecord) -> tuple[int, ...]:
    """Sort coarser precisions first, so that a finer one meets the answers that it must not fall below."""
    bits = precision_bits(record.result.case.engine.precision) if record.result.accuracy is not None else None
    return (sum(bits), *bits) if bits is not None else (0,)


def _sessions(record: ResultRecord) -> int:
    return len(record.result.performance.sessions) if record.result.performance is not None else 0
