"""What counts as a loss in an update: against the present value, against the best one ever, and against siblings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pytest_inferperf.baselines.changes import Change, relative_loss
from pytest_inferperf.baselines.entries import Anchor, MetricBaseline, PerformanceEntry, Provenance, ScoreEntry
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.model.gates import AccuracyLossCeiling, PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.quant import is_finer
from pytest_inferperf.model.results import AccuracyResult

__all__ = [
    "Doubt",
    "Outdone",
    "figure",
    "lax_siblings",
    "new_anchor",
    "no_doubt",
    "not_outdone",
    "worse_answers",
    "worse_metrics",
]

ACCURACY_POINTS = 0.5
"""Loss in percentage points that counts as a regression of a score whose outcomes are 0 and 1, and rise of the share
of unparseable answers of any; a gate may say less."""

ACCURACY_PERCENT = 1.0
"""Loss in percent that counts as a regression of any other score; a gate may say less."""

_ROUNDING = 1e-9
"""Room for binary fractions: 0.65 - 0.645 is a little over half a point."""

Sessions = Sequence[Sequence[float]]
Doubt = Callable[[Sessions, Sessions, bool], str]
"""Takes stored sessions, measured ones and whether higher is better; says why a gain is not proven, "" where it is."""

Outdone = Callable[[Sequence[float], Sequence[float], bool], str]
"""Takes the outcomes of a finer and of a coarser precision and whether higher is better; says by how much the finer is
worse beyond noise, "" where it may not be."""


def no_doubt(_stored: Sessions, _measured: Sessions, _higher_is_better: bool) -> str:
    """Take every better figure for a gain."""
    return ""


def not_outdone(_finer: Sequence[float], _coarser: Sequence[float], _higher_is_better: bool) -> str:
    """Take every difference between precisions for noise."""
    return ""


def worse_metrics(
    record: ResultRecord, old: PerformanceEntry, wanted: Sequence[Change], default_tolerance: float
) -> dict[str, str]:
    """Return the metrics that are worse beyond the tolerance, each with its figures.

    The loss is that against the present level, or against the anchor where it is larger: steps within the tolerance add
    up.
    """
    found = {}
    for item in wanted:
        if item.old is None:
            continue
        stored = old.metrics[item.what]
        # A verdict knows the tolerance that the ini file of its run gave.
        given = [stored.tolerance, default_tolerance]
        given += [
            gate.tolerance for gate in record.gates if isinstance(gate, PerformanceGate) and gate.name == item.what
        ]
        given += [verdict.tolerance or None for verdict in record.verdicts if verdict.gate == item.what]
        allowed = min(value for value in given if value is not None)
        higher = parse_metric(item.what).metric.higher_is_better
        for level, since in ((item.old, ""), *_anchored(stored.anchor)):
            if relative_loss(level, item.new, higher_is_better=higher) > allowed + _ROUNDING:
                moved = f"{100 * (item.new / level - 1):+.1f} %{since}, "
                found[item.what] = (
                    f"{figure(level)} -> {figure(item.new)} {item.unit} ({moved}allowed {100 * allowed:g} %)"
                )
                break
    return found


def worse_answers(
    record: ResultRecord, moved: Change, old: float, measured: AccuracyResult, anchor: Anchor | None
) -> dict[str, str]:
    """Return what is worse beyond the constants and the gates of the record, with its figures."""
    gates = [gate for gate in record.gates if isinstance(gate, AccuracyLossCeiling)]
    points = [gate.points for gate in gates if gate.points is not None]
    percents = [gate.percent for gate in gates if gate.percent is not None]
    if measured.is_binary:
        points.append(ACCURACY_POINTS)
    else:
        percents.append(ACCURACY_PERCENT)
    sign = 1 if measured.higher_is_better else -1
    found = {}
    for level, since in ((old, ""), *_anchored(anchor)):
        losses = (
            ("points", 100 * (level - moved.new) * sign, points),
            ("%", 100 * relative_loss(level, moved.new, higher_is_better=measured.higher_is_better), percents),
        )
        for unit, loss, limits in losses:
            if limits and loss > min(limits) + _ROUNDING and moved.unit not in found:
                words = f"{loss:.3g} {unit} worse{since}, allowed {min(limits):g}"
                found[moved.unit] = f"{level:g} -> {moved.new:g} ({words})"
    if moved.unparseable is not None:
        before, share = moved.unparseable
        rises = [gate.points if gate.unparseable_points is None else gate.unparseable_points for gate in gates]
        allowed = min([ACCURACY_POINTS, *(value for value in rises if value is not None)])
        if share - before > allowed + _ROUNDING:
            found["unparseable"] = f"{before:.2f} % -> {share:.2f} % of answers (allowed {allowed:g} points more)"
    return found


def new_anchor(
    stored: MetricBaseline | ScoreEntry | None,
    provenance: Provenance | None,
    level: float,
    *,
    higher_is_better: bool,
    accepted: bool,
) -> Anchor | None:
    """Return the anchor that stands beside a new level: the best of what was recorded, None where that is the new level.

    `accepted` is whether a regression beyond the tolerance was accepted: everything begins anew. A published value is a
    limit, not something that was measured, and anchors nothing.
    """
    if stored is None or provenance is None or provenance.kind == "published" or accepted:
        return None
    before = stored.anchor or Anchor(
        level=stored.level if isinstance(stored, MetricBaseline) else stored.score,
        recorded=provenance.recorded,
        commit=provenance.commit,
    )
    return before if relative_loss(before.level, level, higher_is_better=higher_is_better) > 0 else None


def lax_siblings(
    precision: str,
    outcomes: Sequence[float],
    scores: Mapping[str, ScoreEntry],
    *,
    higher_is_better: bool,
    outdone: Outdone,
) -> dict[str, str]:
    """Return the coarser precisions whose stored answers to the same questions are better beyond noise, and by how much."""
    found = {}
    for other, stored in sorted(scores.items()):
        if other != precision and stored.outcomes and is_finer(precision, other):
            why = outdone(outcomes, stored.outcomes, higher_is_better)
            if why:
                found[other] = why
    return found


def figure(value: float) -> str:
    """Show a figure of a refusal."""
    return f"{value:.0f}" if abs(value) >= 1e5 else f"{value:g}"


def _anchored(anchor: Anchor | None) -> list[tuple[float, str]]:
    if anchor is None:
        return []
    since = f" since {anchor.recorded[:10]}" if anchor.recorded else " in all"
    return [(anchor.level, since)]
