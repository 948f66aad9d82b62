"""What the page shows beyond the other faces: sessions beside the baseline's, frontiers, flips, contexts, trends."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_inferperf.baselines.entries import (
    AccuracyEntry,
    Anchor,
    MetricBaseline,
    Missing,
    PerformanceEntry,
    Provenance,
    accuracy_key,
    performance_key,
)
from pytest_inferperf.baselines.result_file import ResultRecord, record_points
from pytest_inferperf.baselines.store import lookup_accuracy, lookup_performance
from pytest_inferperf.errors import BaselineError, InferperfError
from pytest_inferperf.model.gates import FrontierFloor
from pytest_inferperf.model.results import CaseResult, Flip, Flips, TurnFigures
from pytest_inferperf.model.verdicts import GateVerdict
from pytest_inferperf.report.lines import number, plural
from pytest_inferperf.report.page.charts import (
    PER_GPU,
    PER_USER,
    Chart,
    frontier,
    metric_names,
    sessions,
    trend_line,
)
from pytest_inferperf.report.page.latencies import distributions
from pytest_inferperf.report.placements import PlacementRow, placement_rows
from pytest_inferperf.report.run import CaseReport, RunReport
from pytest_inferperf.report.turns import all_turns

if TYPE_CHECKING:
    from pytest_inferperf.baselines.against import RunReference
    from pytest_inferperf.history.series import Series, StepFound, Trend

__all__ = ["CasePage", "LoadPage", "Page", "Reason", "Where", "page_of"]

MOST_TRENDS = 40
"""Trend lines of a page; those with the newest steps come first."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a page finds what its result file does not hold."""

    baselines: Path
    against: RunReference | None = None
    """The run that was compared with in the place of the baseline files."""

    history: Path | None = None
    """A folder of earlier results; None for a page without trends."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a gate has its verdict."""

    verdict: GateVerdict
    notes: tuple[str, ...]
    """What no gate before it said."""

    next_step: str
    """A command that can be typed; "" for none."""


@dataclass(frozen=True, kw_only=True)
class LoadPage:
    """One point of a sweep."""

    title: str
    charts: tuple[Chart, ...]
    turns: tuple[TurnFigures, ...]


@dataclass(frozen=True, kw_only=True)
class CasePage:
    """One test."""

    report: CaseReport
    engine: str
    """Model, precision and hardware in one line."""

    reasons: tuple[Reason, ...]
    charts: tuple[Chart, ...]
    turns: tuple[TurnFigures, ...]
    """First tokens by turn; empty where nobody spoke twice, and for a sweep, whose loads have their own."""

    loads: tuple[LoadPage, ...]
    flips: tuple[Flips, ...]
    moved: tuple[tuple[str, str, str], ...] | None
    """Facts of the context that are not those of the baseline: name, baseline's, this run's. None where it says none."""

    configuration: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    """Anchors and provenance of the baseline, and why there is none."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the page shows; every text without secrets."""

    report: RunReport
    cases: tuple[CasePage, ...]
    """In the order of `report.worst_first`."""

    trends: tuple[Chart, ...]
    notes: tuple[str, ...]
    """What is not shown, and why."""

    placements: tuple[PlacementRow, ...] = ()
    """Where engines ran on a cluster."""


def page_of(records: Sequence[ResultRecord], report: RunReport, where: Where, *, hide: Callable[[str], str]) -> Page:
    """Put together a page of records and of the report that was made of them, in the same order."""
    mine = {id(case): record for case, record in zip(report.cases, records, strict=True)}
    trends, notes = _trends(records, where.history, hide)
    return Page(
        report=report,
        cases=tuple(_case(case, mine[id(case)], where, hide) for case in report.worst_first),
        trends=trends,
        notes=tuple(map(hide, notes)),
        placements=placement_rows(records, hide=hide),
    )


def _case(report: CaseReport, record: ResultRecord, where: Where, hide: Callable[[str], str]) -> CasePage:
    result, notes = record.result, list[str]()
    charts: list[Chart] = []
    loads: list[LoadPage] = []
    turns: tuple[TurnFigures, ...] = ()
    context: Mapping[str, str] = {}
    points: list[tuple[CaseResult, PerformanceEntry | None]] = []
    for point in record_points(record):
        entry = _performance(point, where, notes)
        points.append((point.result, entry))
        context = entry.context if entry is not None else context
        workload = point.result.case.workload
        load = workload.load_name if result.frontier is not None and workload is not None else ""
        stored = entry.metrics if entry is not None else {}
        drawn = [*_session_charts(point, stored, load, notes), *distributions(point.result, stored, notes)]
        spoken = all_turns(point.result.performance) if point.result.performance is not None else ()
        if load:
            shown = tuple(chart.shown(hide) for chart in drawn)
            loads.append(LoadPage(title=hide(load), charts=shown, turns=spoken))
        else:
            charts += drawn
            turns = spoken
        notes += [
            _anchor(f"{load} {name}".strip(), item.anchor) for name, item in stored.items() if item.anchor is not None
        ]
    if result.frontier is not None:
        charts += frontier(points, *_traded(record))
    context = _accuracy_context(record, where, notes) or context
    return CasePage(
        report=report,
        engine=hide(_engine(result)),
        reasons=_reasons(report, differs=bool(context)),
        charts=tuple(chart.shown(hide) for chart in charts),
        turns=turns,
        loads=tuple(loads),
        flips=tuple(_hidden(item, hide) for item in (result.accuracy.flips if result.accuracy is not None else ())),
        moved=_moved(context, result.context, hide) if context else None,
        configuration=tuple((hide(name), hide(value)) for name, value in _configuration(result)),
        notes=tuple(map(hide, dict.fromkeys(notes))),
    )


def _moved(
    before: Mapping[str, str], after: Mapping[str, str], hide: Callable[[str], str]
) -> tuple[tuple[str, str, str], ...]:
    names = sorted({*before, *after})
    pairs = [(hide(name), hide(before.get(name, "-")), hide(after.get(name, "-"))) for name in names]
    return tuple(item for item in pairs if item[1] != item[2])


def _reasons(report: CaseReport, *, differs: bool) -> tuple[Reason, ...]:
    """Say each thing once. What differs in the environment has a table of its own, where it could be compared."""
    said = set[str]()
    found = []
    for item in report.verdicts:
        notes = [note for note in item.notes if not (differs and note.startswith("context differs: "))]
        step = item.next_step.replace("{nodeid}", shlex.quote(report.nodeid))
        found.append(
            Reason(
                verdict=item,
                notes=tuple(note for note in dict.fromkeys(notes) if note not in said),
                next_step="" if step in said else step,
            )
        )
        said |= {*notes, step}
    return tuple(found)


def _traded(record: ResultRecord) -> tuple[str, str]:
    """Return the two metrics of a sweep that are traded against each other: those of its frontier gate, else the usual."""
    gates = [gate for gate in record.gates if isinstance(gate, FrontierFloor)]
    return (gates[0].metric.name, gates[0].over.name) if gates else (PER_GPU, PER_USER)


def _performance(record: ResultRecord, where: Where, notes: list[str]) -> PerformanceEntry | None:
    result = record.result
    if result.case.workload is None or result.engine is None or result.performance is None:
        return None
    try:
        found = (
            where.against.performance(result.case, result.engine.hardware, nodeid=record.nodeid)
            if where.against is not None
            else lookup_performance(where.baselines, result.engine.hardware, result.case)
        )
    except BaselineError as error:
        notes.append(str(error))
        return None
    if isinstance(found, Missing):
        notes += _absence(record, found)
        return None
    notes.append(_origin(found.provenance))
    return found


def _absence(record: ResultRecord, missing: Missing) -> list[str]:
    """Say that there is no baseline, where no gate has said so."""
    if any("has no baseline" in item.reason for item in record.verdicts):
        return []
    return [f"no baseline: {missing.path}: {missing.reason} (key {missing.key})"]


def _origin(provenance: Provenance) -> str:
    parts = [
        f"baseline {provenance.kind}",
        provenance.source and f"in {provenance.source}",
        provenance.recorded and f"recorded {provenance.recorded}",
        provenance.author and f"by {provenance.author}",
        provenance.commit and f"at commit {provenance.commit}",
    ]
    return ", ".join(filter(None, parts)) + (f": {provenance.reason}" if provenance.reason else "")


def _accuracy_context(record: ResultRecord, where: Where, notes: list[str]) -> Mapping[str, str]:
    result = record.result
    if result.case.task is None or result.accuracy is None or where.against is not None:
        return {}
    try:
        found = lookup_accuracy(where.baselines, result.case, result.accuracy.metric)
    except BaselineError as error:
        notes.append(str(error))
        return {}
    if not isinstance(found, AccuracyEntry):
        notes += _absence(record, found)
        return {}
    notes += [_anchor(name, item.anchor) for name, item in found.scores.items() if item.anchor is not None]
    own = found.scores.get(result.case.engine.precision)
    return own.context if own is not None else {}


def _session_charts(
    record: ResultRecord, stored: Mapping[str, MetricBaseline], load: str, notes: list[str]
) -> list[Chart]:
    performance = record.result.performance
    if performance is None:
        return []
    verdicts = {item.gate: item for item in record.verdicts}
    charts = []
    for name in metric_names(record):
        verdict, baseline = verdicts.get(name), stored.get(name)
        judged = verdict.baseline if verdict is not None else None
        if baseline is not None and judged is not None and not isclose(baseline.level, judged, rel_tol=1e-6):
            notes.append(
                f"{load} {name}: the baseline has changed since this run was judged; its sessions are not drawn".strip()
            )
            baseline = None
        charts.append(sessions(performance, name, verdict, baseline))
    return charts


def _anchor(name: str, anchor: Anchor) -> str:
    when = f", recorded {anchor.recorded}" if anchor.recorded else ""
    commit = f", commit {anchor.commit}" if anchor.commit else ""
    return f"anchor of {name}: {number(anchor.level)}, the best since a regression was last accepted{when}{commit}"


def _engine(result: CaseResult) -> str:
    engine = result.case.engine
    where = "" if result.engine is None else f" on {result.engine.hardware.label}"
    return f"{engine.served_model_name} {engine.precision}{where}"


def _configuration(result: CaseResult) -> list[tuple[str, str]]:
    """Flatten what the engine says it is, and what the case asked for."""
    found: list[tuple[str, str]] = []
    if result.engine is not None:
        engine = result.engine
        found += [
            ("backend", engine.backend),
            ("hardware", engine.hardware.label),
            ("quantization", engine.quant_algo or "none"),
            ("KV cache quantization", engine.kv_cache_quant_algo or "none"),
            ("compute dtype", engine.compute_dtype),
            ("longest sequence", f"{engine.max_model_len} tokens"),
            ("checkpoint", engine.checkpoint),
            ("checkpoint hash", engine.checkpoint_hash),
            ("load time", f"{engine.load_s:.1f} s"),
        ]
        found += [(f"option {name}", _text(value)) for name, value in sorted(engine.options.items())]
        found += [(f"version of {name}", value) for name, value in sorted(engine.versions.items())]
    case = {name: values for name, values in result.case.to_json().items() if values is not None}
    found += [
        (f"{part}.{name}", _text(value))
        for part, values in case.items()
        for name, value in sorted(values.items())
        if value not in ("", None, {}, [])
    ]
    return found + sorted(result.context.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)


def _hidden(flips: Flips, hide: Callable[[str], str]) -> Flips:
    def one(flip: Flip) -> Flip:
        other = flip.reference_answer
        return replace(
            flip,
            prompt=hide(flip.prompt),
            expected=hide(flip.expected),
            answer=hide(flip.answer),
            reference_answer=None if other is None else hide(other),
        )

    return replace(flips, reference=hide(flips.reference), shown=tuple(map(one, flips.shown)))


def _trends(
    records: Sequence[ResultRecord], folder: Path | None, hide: Callable[[str], str]
) -> tuple[tuple[Chart, ...], list[str]]:
    """Draw what the cases of the run measured over time; say why not where that cannot be."""
    if folder is None:
        return (), []
    from pytest_inferperf.history.series import find_trend, runs_around
    from pytest_inferperf.history.store import open_store

    try:
        store = open_store(str(folder), sealed=False)
    except InferperfError as error:
        return (), [f"no trends: {error}"]
    try:
        trend = find_trend(store)
        drawn = _drawn_steps(records, trend)
        every = [step for _, steps in drawn for step in steps]
        around = dict(zip(map(id, every), runs_around(store, every), strict=True))
    finally:
        store.close()
    notes = [f"trends: {item.file} was skipped: {item.reason}" for item in store.skipped[:20]]
    if trend.shared:
        notes.append(f"trends: {plural(trend.shared, 'measurement')} left out, since others were let onto the node")
    charts = [trend_line(series, [(step, *around[id(step)]) for step in steps]) for series, steps in drawn]
    return tuple(chart.shown(hide) for chart in charts), notes


def _drawn_steps(records: Sequence[ResultRecord], found: Trend) -> list[tuple[Series, list[StepFound]]]:
    """Choose the series of the run's own cases, those with the newest steps first, each with its steps."""
    wanted: set[tuple[str, str, str]] = set()
    for record in records:
        for point in record_points(record):
            case, answers = point.result.case, point.result.accuracy
            model = case.engine.served_model_name
            if point.result.performance is not None and case.workload is not None:
                wanted |= {(model, performance_key(case), name) for name in metric_names(point)}
            if answers is not None and case.task is not None:
                key = f"{case.engine.precision}-{accuracy_key(case, answers.metric)}"
                wanted.add((model, key, answers.metric))
    steps = {id(series): [step for step in found.steps if step.series is series] for series in found.series}
    mine = [item for item in found.series if (item.model, item.case, item.metric) in wanted and len(item.values) > 1]
    mine.sort(
        key=lambda item: max((step.at - len(item.values) for step in steps[id(item)]), default=-(10**9)), reverse=True
    )
    return [(item, steps[id(item)]) for item in mine[:MOST_TRENDS]]
