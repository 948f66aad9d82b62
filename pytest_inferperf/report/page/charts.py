"""Charts as plain data for plotly.js: what is drawn is decided here, how it looks by the page.

A color is the name of a custom property of the page's style (`--candidate`), so that a chart follows light and dark.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from pytest_inferperf.baselines.entries import MetricBaseline, PerformanceEntry
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.errors import MarkError
from pytest_inferperf.model.gates import FrontierFloor
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import CaseResult, PerformanceResult
from pytest_inferperf.model.verdicts import GateVerdict
from pytest_inferperf.report.lines import number, plural

if TYPE_CHECKING:
    from pytest_inferperf.history.series import Run, Series, StepFound

__all__ = [
    "BASELINE",
    "CANDIDATE",
    "PER_GPU",
    "PER_USER",
    "Chart",
    "frontier",
    "metric_names",
    "sessions",
    "trend_line",
]

CANDIDATE, BASELINE, BAND, LIMIT, STEP = "--candidate", "--baseline", "--band", "--fail", "--step"
UNGATED = ("output_throughput", "ttft_ms.p50", "tpot_ms.p50")
"""What is drawn of a case that gates no metric of its own."""

PER_USER, PER_GPU = "output_throughput_per_user", "output_throughput_per_gpu"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart."""

    title: str
    summary: str
    """What it shows, in a sentence."""

    figure: Mapping[str, Any]
    """`data` and `layout` of plotly.js."""

    def shown(self, hide: Callable[[str], str]) -> Chart:
        """Return it without secrets, and without what plotly.js would read as markup."""

        def safe(value: Any) -> Any:
            if isinstance(value, str):
                return html.escape(hide(value), quote=False)
            if isinstance(value, Mapping):
                return {key: safe(item) for key, item in value.items()}
            return [safe(item) for item in value] if isinstance(value, list | tuple) else value

        return replace(self, title=hide(self.title), summary=hide(self.summary), figure=safe(self.figure))


def metric_names(record: ResultRecord) -> list[str]:
    """Return the metrics of a case that are drawn: those of its gates, else a few that say most."""
    performance = record.result.performance
    if performance is None:
        return []
    measured = {name for session in performance.sessions for item in session.rounds for name in item.metrics}
    gated = [item.gate for item in record.verdicts if item.gate in measured]
    for gate in record.gates:
        if isinstance(gate, FrontierFloor):
            gated += [name for name in (gate.metric.name, gate.over.name) if name in measured]
    return list(dict.fromkeys(gated)) or [name for name in UNGATED if name in measured]


def sessions(
    performance: PerformanceResult,
    name: str,
    verdict: GateVerdict | None,
    baseline: MetricBaseline | None,
) -> Chart:
    """Every round of every session, beside those of the baseline, its band and the limit.

    The band spans the medians of the baseline's sessions.
    """
    mine = [values for values in performance.rounds(name) if values]
    stored = [list(values) for values in baseline.sessions] if baseline is not None else []
    levels = [median(values) for values in stored]
    data = [
        *_rounds("baseline", stored, [f"b{place}" for place in range(1, len(stored) + 1)], BASELINE),
        *_rounds("this run", mine, [f"s{place}" for place in range(1, len(mine) + 1)], CANDIDATE),
    ]
    shapes: list[dict[str, Any]] = []
    if levels:
        shapes.append(_across(min(levels), max(levels), fillcolor=BAND, line={"width": 0}, layer="below"))
    level = baseline.level if baseline is not None else verdict.baseline if verdict is not None else None
    if level is not None:
        shapes.append(_across(level, level, line={"color": BASELINE, "width": 1.5, "dash": "dot"}))
    limit = verdict.limit if verdict is not None else None
    notes = []
    if limit is not None:
        shapes.append(_across(limit, limit, line={"color": LIMIT, "width": 1.5}))
        assert verdict is not None
        notes.append(_label(f"limit {number(limit)}", limit, above=not verdict.higher_is_better))
    unit = _unit(name)
    value = performance.median(name)
    against = f"; baseline {number(level)}" if level is not None else "; no baseline"
    bound = f", limit {number(limit)}" if limit is not None else ""
    band = "; the band spans the baseline's sessions" if levels else ""
    return Chart(
        title=name,
        summary=f"{number(value)} {unit} in {plural(len(mine), 'session')}{against}{bound}{band}.",
        figure={
            "data": data,
            "layout": {
                "xaxis": {"title": {"text": "session"}, "type": "category"},
                "yaxis": {"title": {"text": unit}},
                "shapes": shapes,
                "annotations": notes,
            },
        },
    )


def _rounds(label: str, found: Sequence[Sequence[float]], names: Sequence[str], color: str) -> list[dict[str, Any]]:
    if not found:
        return []
    pairs = [(name, value) for name, values in zip(names, found, strict=True) for value in values]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"{label}: a round",
            "showlegend": False,
            "x": [name for name, _ in pairs],
            "y": [value for _, value in pairs],
            "marker": {"color": color, "size": 6, "opacity": 0.55},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"{label}: sessions, with their rounds",
            "x": list(names),
            "y": [median(values) for values in found],
            "marker": {"color": color, "size": 16, "symbol": "line-ew-open", "line": {"width": 3, "color": color}},
        },
    ]


def frontier(
    points: Sequence[tuple[CaseResult, PerformanceEntry | None]], upward: str = PER_GPU, over: str = PER_USER
) -> list[Chart]:
    """Draw one metric against another over the loads of a sweep, with the points joined that no other point dominates."""
    mine, old = [], []
    for result, entry in points:
        load = result.case.workload.load_name if result.case.workload is not None else ""
        measured = result.performance
        if measured is not None:
            mine.append((measured.median(over), measured.median(upward), load))
        if entry is not None and over in entry.metrics and upward in entry.metrics:
            old.append((entry.metrics[over].level, entry.metrics[upward].level, load))
    known = [(x, y, load) for x, y, load in mine if x is not None and y is not None]
    if not known:
        return []
    signs = _sign(over), _sign(upward)
    data = [
        *_frontier("baseline", old, BASELINE, signs, mode="markers"),
        *_frontier("this run", known, CANDIDATE, signs, mode="markers+text"),
    ]
    units = _unit(over), _unit(upward)
    return [
        Chart(
            title=f"Frontier: {upward} over {over}",
            summary="; ".join(f"{load} {number(y)} {units[1]} at {number(x)} {units[0]}" for x, y, load in known) + ".",
            figure={
                "data": data,
                "layout": {
                    "xaxis": {"title": {"text": units[0] or over}, "rangemode": "tozero"},
                    "yaxis": {"title": {"text": units[1] or upward}, "rangemode": "tozero"},
                },
            },
        )
    ]


def _frontier(
    label: str, points: Sequence[tuple[float, float, str]], color: str, signs: tuple[int, int], *, mode: str
) -> list[dict[str, Any]]:
    if not points:
        return []
    best = sorted(one for one in points if not any(_dominates(other, one, signs) for other in points))
    return [
        {
            "type": "scatter",
            "mode": mode,
            "name": label,
            "x": [x for x, _, _ in points],
            "y": [y for _, y, _ in points],
            "text": [load for _, _, load in points],
            "textposition": "top right",
            "textfont": {"color": color},
            "cliponaxis": False,
            "marker": {"color": color, "size": 9},
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"{label}: frontier",
            "showlegend": False,
            "x": [x for x, _, _ in best],
            "y": [y for _, y, _ in best],
            "line": {"color": color, "width": 2},
        },
    ]


def _dominates(other: tuple[float, float, str], one: tuple[float, float, str], signs: tuple[int, int]) -> bool:
    x, y = signs[0] * (other[0] - one[0]), signs[1] * (other[1] - one[1])
    return min(x, y) >= 0 and max(x, y) > 0


def trend_line(series: Series, around: Sequence[tuple[StepFound, Run, Run]]) -> Chart:
    """Draw a metric over the results of a store, with the level between its steps, each with the runs on both sides."""
    values, steps = list(series.values), [step for step, _, _ in around]
    cuts = [0, *(step.at for step in steps), len(values)]
    level = [median(values[low:high]) for low, high in pairwise(cuts) for _ in range(low, high)]
    worse = [step for step in steps if not step.better]
    unit = "points" if series.is_score else "%"
    told = [f"{'better' if step.better else 'worse'} by {abs(step.change):.1f} {unit}" for step in steps]
    came = [f"{text}, {_between(before, after)}" for text, (_, before, after) in zip(told, around, strict=True)]
    runs = list(range(series.older + 1, series.older + len(values) + 1))
    return Chart(
        title=series.label,
        summary=f"{plural(len(values), 'result')}; " + ("; ".join(came) or "no step") + ".",
        figure={
            "data": [
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": "result",
                    "x": runs,
                    "y": values,
                    "marker": {"color": CANDIDATE, "size": 5},
                },
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": "level",
                    "x": runs,
                    "y": level,
                    "line": {"color": STEP if steps else BASELINE, "shape": "hvh", "width": 2},
                },
            ],
            "layout": {
                "xaxis": {"title": {"text": "result, oldest first"}},
                "yaxis": {"title": {"text": series.unit}},
                "shapes": [
                    {
                        "type": "line",
                        "yref": "paper",
                        "y0": 0,
                        "y1": 1,
                        "x0": runs[step.at] - 0.5,
                        "x1": runs[step.at] - 0.5,
                        "line": {"color": LIMIT if step in worse else STEP, "dash": "dot", "width": 1},
                    }
                    for step in steps
                ],
                "annotations": [
                    {
                        "x": runs[step.at] - 0.5,
                        "y": 1,
                        "yref": "paper",
                        "yanchor": "bottom",
                        "showarrow": False,
                        "text": text,
                    }
                    for step, text in zip(steps, told, strict=True)
                ],
            },
        },
    )


def _between(before: Run, after: Run) -> str:
    if before.commit and before.commit == after.commit:
        return f"both sides at commit {_short(after)}"
    days = [f"{run.created:%Y-%m-%d}" if run.created is not None else "unknown date" for run in (before, after)]
    return f"from commit {_short(before)} ({days[0]}) to {_short(after)} ({days[1]})"


def _short(run: Run) -> str:
    """Cut a commit as git shows it, and keep the mark of changes that were not committed."""
    commit, mark, rest = run.commit.partition("+")
    return f"{commit[:12]}{mark}{rest}" or "unknown"


def _across(low: float, high: float, **look: Any) -> dict[str, Any]:
    kind = "line" if low == high else "rect"
    return {"type": kind, "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high, **look}


def _label(text: str, y: float, *, above: bool) -> dict[str, Any]:
    """Label a line on its bad side, over the baseline's sessions, which are on the other."""
    return {
        "text": text,
        "xref": "paper",
        "x": 0,
        "y": y,
        "xanchor": "left",
        "yanchor": "bottom" if above else "top",
        "showarrow": False,
        "font": {"color": LIMIT},
    }


def _sign(name: str) -> int:
    """1 where higher is better, -1 where lower is."""
    try:
        return 1 if parse_metric(name).metric.higher_is_better else -1
    except MarkError:
        return 1


def _unit(name: str) -> str:
    try:
        return parse_metric(name).metric.unit
    except MarkError:
        return ""
