"""The rules for performance: what a record changes in the files of hardware and model, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_inferperf.baselines.changes import Change, change, measured_metrics
from pytest_inferperf.baselines.entries import (
    LEAST_BASELINE_SESSIONS,
    MetricBaseline,
    PerformanceEntry,
    performance_key,
)
from pytest_inferperf.baselines.format import PerformanceFile, dump_performance
from pytest_inferperf.baselines.ledger import ACCEPT, REPEAT, REPLACE, Ledger
from pytest_inferperf.baselines.losses import figure, new_anchor, worse_metrics
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.baselines.store import (
    load_performance,
    other_server,
    performance_identity,
    performance_path,
    read_bytes,
    shown_path,
)
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import Hardware, PerformanceResult

__all__ = ["PerformanceRules"]

_NAMED = 3
"""Metrics that the first line of a refusal names; all are listed below it."""


class PerformanceRules:
    """Holds the performance files as they would be after the records added so far."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._before: dict[Path, bytes | None] = {}
        self._files: dict[Path, PerformanceFile] = {}

    def files(self) -> dict[Path, tuple[bytes | None, str]]:
        """Return what each file held and what it would hold."""
        return {path: (self._before[path], dump_performance(file)) for path, file in self._files.items()}

    def add(self, record: ResultRecord, measured: PerformanceResult, hardware: Hardware) -> None:
        """Take what one record measured into its file. Raises `BaselineError` for a file that cannot be read."""
        case = record.result.case
        path, key = performance_path(self._ledger.root, hardware, case), performance_key(case)
        shown = shown_path(self._ledger.root, path)
        if path not in self._before:
            before = read_bytes(path, shown)
            self._files[path] = load_performance(self._ledger.root, hardware, case) or PerformanceFile(
                model=case.engine.served_model_name, hardware=hardware, entries={}
            )
            self._before[path] = before
        file = self._files[path]
        old = file.entries.get(key)
        other = other_server(old, case) if old is not None else ""
        if other:
            action = "Give one of them another served_model_name"
            self._ledger.refuse(
                record.nodeid, f"{other}, not of {case.engine.server!r}", f"{shown}: {key}", action=action
            )
            return
        names = measured_metrics(measured)
        wrong = {name: value for name in names for value in _impossible(measured, name)}
        if wrong:
            figures = [f"{name}  {value:g} {parse_metric(name).metric.unit}" for name, value in wrong.items()]
            headline = f"figures must be finite and above 0: {_some(list(wrong))}"
            self._ledger.refuse(record.nodeid, headline, f"{shown}: {key}", *figures, action=REPEAT)
        self._ledger.skipped += [
            f"{record.nodeid}: {gate.name} was not measured"
            for gate in record.gates
            if isinstance(gate, PerformanceGate) and gate.limit is None and gate.name not in names
        ]
        names = [name for name in names if name not in wrong]
        if not names:
            return
        changes, metrics = [], {}
        for name in names:
            row = parse_metric(name).metric
            stored = old.metrics.get(name) if old is not None else None
            sessions = tuple(tuple(rounds) for rounds in measured.rounds(name) if rounds)
            metrics[name] = MetricBaseline(sessions=sessions, tolerance=None if stored is None else stored.tolerance)
            if stored is not None and stored.sessions == sessions:
                continue
            changes.append(
                change(
                    path=shown,
                    key=key,
                    what=name,
                    old=None if stored is None else stored.level,
                    new=metrics[name].level,
                    unit=row.unit,
                    higher_is_better=row.higher_is_better,
                    kind="performance",
                    sessions=len(sessions),
                )
            )
        wanted = self._ledger.wanted(changes)
        if wanted and self._too_few(record, measured, f"{shown}: {key}"):
            return
        if self._ledger.mode == "tighten" and old is not None:
            wanted = self._proven(wanted, old, metrics)
        warmup_rounds = max(session.warmup_rounds for session in measured.sessions)
        if not wanted:
            return
        if self._refuses(record, measured, old, wanted, names, warmup_rounds, f"{shown}: {key}"):
            return
        worse = worse_metrics(record, old, wanted, self._ledger.tolerance) if old is not None else {}
        for name, item in metrics.items():
            metrics[name] = replace(
                item,
                anchor=new_anchor(
                    None if old is None else old.metrics.get(name),
                    None if old is None else old.provenance,
                    item.level,
                    higher_is_better=parse_metric(name).metric.higher_is_better,
                    # Whatever is this much worse and comes so far was accepted.
                    accepted=name in worse,
                ),
            )
        taken = set(names) if self._ledger.mode == "all" else {item.what for item in wanted}
        kept = (
            {}
            if old is None or self._ledger.mode == "all"
            else {name: item for name, item in old.metrics.items() if name not in taken}
        )
        replaced = any(item.old is not None for item in wanted)
        entry = PerformanceEntry(
            path=shown,
            key=key,
            identity=performance_identity(case),
            metrics=kept | {name: metrics[name] for name in taken},
            warmup_rounds=warmup_rounds,
            provenance=self._ledger.provenance(record, old.provenance.reason if old is not None and kept else ""),
            context=dict(old.context if old is not None and kept and not replaced else record.result.context),
        )
        self._files[path] = replace(file, entries={**file.entries, key: entry})
        self._ledger.changes += wanted

    def _too_few(self, record: ResultRecord, measured: PerformanceResult, where: str) -> bool:
        """Refuse a measurement in fewer sessions than its mark asks for, or than a judge of noise needs."""
        load = record.result.case.workload
        asked = load.sessions if load is not None else 0
        needed = asked or self._ledger.least_sessions
        count = len(measured.sessions)
        if count >= needed:
            return False
        whose = "the mark asks for" if asked else "a judge of noise needs"
        self._ledger.refuse(
            record.nodeid,
            f"{count} {'session' if count == 1 else 'sessions'} measured, and {whose} {needed}",
            where,
            action="Repeat the run with --inferperf-set=sessions=10"
            + ("" if asked else ", or accept a baseline without known error: --accept-uncalibrated"),
        )
        return True

    def _refuses(
        self,
        record: ResultRecord,
        measured: PerformanceResult,
        old: PerformanceEntry | None,
        wanted: Sequence[Change],
        names: Sequence[str],
        warmup_rounds: int,
        where: str,
    ) -> bool:
        """Refuse what must not change an entry; False where it may."""
        if old is None:
            return False
        if self._ledger.mode != "all":
            if old.provenance.kind == "published":
                self._ledger.refuse(
                    record.nodeid, f"the baseline is published ({old.provenance.source})", where, action=REPLACE
                )
                return True
            if old.warmup_rounds != warmup_rounds:
                # Values measured after other warm-ups cannot stand in one entry.
                headline = f"the baseline was measured after {old.warmup_rounds} warm-up rounds, this run after {warmup_rounds}"
                self._ledger.refuse(record.nodeid, headline, where, action=REPLACE)
                return True
            return False
        if self._ledger.accept_regression:
            return False
        worse = worse_metrics(record, old, wanted, self._ledger.tolerance)
        lost = {
            name: f"{figure(item.level)} {parse_metric(name).metric.unit} -> not measured"
            for name, item in sorted(old.metrics.items())
            if name not in names
        }
        disarmed = {
            name: f"{len(item.sessions)} sessions -> {len(measured.sessions)}"
            for name, item in sorted(old.metrics.items())
            if name in names and len(measured.sessions) < LEAST_BASELINE_SESSIONS <= len(item.sessions)
        }
        if not worse and not lost and not disarmed:
            return False
        gated = {gate.name for gate in record.gates if isinstance(gate, PerformanceGate)}
        headline = "; ".join(
            f"{what}: {_some([name for name in rows if name in gated] or list(rows), of=len(rows))}"
            for what, rows in (
                ("worse beyond the tolerance", worse),
                ("not measured this time and would be lost", lost),
                (f"fewer than the {LEAST_BASELINE_SESSIONS} sessions that a judge of noise needs", disarmed),
            )
            if rows
        )
        rows = disarmed | worse | lost
        width = max(map(len, rows))
        details = [
            f"{name:<{width}}  {rows[name]}{'  [gated]' if name in gated else ''}"
            for name in sorted(rows, key=lambda name: name not in gated)
        ]
        self._ledger.refuse(record.nodeid, headline, where, *details, action=ACCEPT)
        return True

    def _proven(
        self, better: Sequence[Change], old: PerformanceEntry, metrics: Mapping[str, MetricBaseline]
    ) -> list[Change]:
        """Return the gains that are more than a lucky run, and say which are not."""
        found = []
        for item in better:
            row = parse_metric(item.what).metric
            stored, measured = old.metrics[item.what].sessions, metrics[item.what].sessions
            why = self._ledger.doubt(stored, measured, row.higher_is_better)
            if why:
                self._ledger.skipped.append(f"{item.path}: {item.key}: {item.what} is not tightened: {why}")
            else:
                found.append(item)
        return found


def _impossible(measured: PerformanceResult, name: str) -> list[float]:
    """Return the first value of a metric that cannot be right: time and throughput are above 0 and finite."""
    values = (value for rounds in measured.rounds(name) for value in rounds)
    return [value for value in values if not (math.isfinite(value) and value > 0)][:1]


def _some(names: Sequence[str], *, of: int = 0) -> str:
    """Name the first few metrics, and count the others."""
    shown = names[:_NAMED]
    more = max(of, len(names)) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
