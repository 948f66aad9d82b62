"""Distributions of latencies: of every request where a result holds them, else from the percentiles of its rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_inferperf.baselines.entries import MetricBaseline
from pytest_inferperf.model.results import CaseResult, PerformanceResult
from pytest_inferperf.report.lines import number
from pytest_inferperf.report.page.charts import BASELINE, CANDIDATE, Chart

__all__ = ["distributions"]

PERCENTILES = ("p50", "p90", "p95", "p99")
LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_latency_ms")

_POINTS = 200
"""Steps of a drawn distribution: some 4 KB of the page, however many requests there are."""


def distributions(result: CaseResult, stored: Mapping[str, MetricBaseline], notes: list[str]) -> list[Chart]:
    """Draw each latency of this run beside the baseline's percentiles; `notes` gets what could not be read."""
    if result.performance is None:
        return []
    requests, drawn = _requests(result.performance, notes)
    charts = []
    for metric in LATENCIES:
        names = {percentile: f"{metric}.{percentile}" for percentile in PERCENTILES}
        mine = {at: value for at, name in names.items() if (value := result.performance.median(name)) is not None}
        old = {at: stored[name].level for at, name in names.items() if name in stored}
        values = requests.get(metric)
        if values is not None and len(values) > 1:
            charts.append(_of_requests(metric, values, mine, old, drawn=drawn))
        elif len(mine) > 1:
            charts.append(_of_percentiles(metric, mine, old))
    return charts


def _requests(performance: PerformanceResult, notes: list[str]) -> tuple[dict[str, Any], bool]:
    """Return the latencies of the measured requests that are kept, of all sessions, and whether they are a sample."""
    packed = [item.records for session in performance.sessions for item in session.rounds if item.records is not None]
    if not packed:
        return {}, False
    import numpy as np

    from pytest_inferperf.measure.load.records import MEASURED, Records, latencies_ms

    found: list[dict[str, Any]] = []
    for item in packed:
        try:
            columns = Records.unpack(item["rows"]).columns()
        except ValueError as error:
            notes.append(f"the requests of a round cannot be read, so that percentiles are drawn: {error}")
            return {}, False
        measured = (columns["kind"] == MEASURED) & columns["ok"]
        found.append(latencies_ms({name: column[measured] for name, column in columns.items()}))
    joined = {name: np.concatenate([item[name] for item in found]) for name in found[0]}
    return joined, any(item["rows"]["requests"] < item["of"] for item in packed)


def _of_requests(
    metric: str, values: Any, mine: Mapping[str, float], old: Mapping[str, float], *, drawn: bool
) -> Chart:
    """Draw the share of the requests that took no longer; the baseline, whose requests are not kept, at its percentiles."""
    import numpy as np

    shares = np.linspace(0.0, 100.0, min(_POINTS, len(values) - 1) + 1)
    # To five digits, which are as many as a screen shows.
    levels = [float(f"{value:.5g}") for value in np.percentile(values, shares)]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "this run: every request",
            "x": levels,
            "y": [round(float(share), 2) for share in shares],
            "line": {"color": CANDIDATE, "width": 2},
        }
    ]
    if old:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "baseline: p50 to p99",
                "x": list(old.values()),
                "y": [float(at[1:]) for at in old],
                "cliponaxis": False,
                "marker": {"color": BASELINE, "size": 9, "symbol": "diamond"},
            }
        )
    kept = f"{len(values)} requests{', drawn by chance from those' if drawn else ''} of all rounds"
    return Chart(
        title=f"{metric}: every request",
        summary=f"{kept}; {_told(mine, old)}",
        figure={
            "data": data,
            "layout": {
                "xaxis": {"title": {"text": "ms"}, "rangemode": "tozero"},
                "yaxis": {"title": {"text": "% of the requests"}, "range": [0, 101]},
            },
        },
    )


def _of_percentiles(metric: str, mine: Mapping[str, float], old: Mapping[str, float]) -> Chart:
    """Draw a latency from its median to its 99th percentile, this run's beside the baseline's."""
    lines = (("baseline", old, BASELINE), ("this run", mine, CANDIDATE))
    return Chart(
        title=f"{metric}: distribution",
        summary=_told(mine, old),
        figure={
            "data": [
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label,
                    "x": list(values),
                    "y": list(values.values()),
                    "line": {"color": color},
                }
                for label, values, color in lines
                if len(values) > 1
            ],
            "layout": {
                "xaxis": {"title": {"text": "percentile of the requests"}, "type": "category"},
                "yaxis": {"title": {"text": "ms"}, "rangemode": "tozero"},
            },
        },
    )


def _told(mine: Mapping[str, float], old: Mapping[str, float]) -> str:
    """Say each percentile, with its change."""
    parts = []
    for at, value in mine.items():
        change = f" ({100 * (value / old[at] - 1):+.1f} %)" if old.get(at) else ""
        parts.append(f"{at} {number(value)} ms{change}")
    return ", ".join(parts) + (", against the baseline." if old else "; no baseline.")
