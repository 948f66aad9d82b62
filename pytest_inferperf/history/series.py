"""Series of a store, their steps, and what changed between the two runs around a step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from pytest_inferperf.errors import MarkError
from pytest_inferperf.history.store import Store
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.trend.potts import Step, find_steps

__all__ = ["Run", "Series", "StepFound", "Trend", "differences", "find_trend", "runs_around"]

LAST = 500
"""Results of a series that are looked at by default, the newest ones."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One metric of one case on one hardware, over time."""

    model: str
    case: str
    hardware: str
    metric: str
    is_score: bool
    """Whether it is the score of a task: its steps are differences, those of other metrics ratios."""

    higher_is_better: bool
    unit: str
    values: tuple[float, ...]
    """Oldest first."""

    older: int
    """How many still older ones were not looked at."""

    @property
    def label(self) -> str:
        """What tells it from the others."""
        return f"{self.model} {self.case} {self.metric} on {self.hardware}"


@dataclass(frozen=True, kw_only=True)
class StepFound:
    """One step of a series, in the metric's own words."""

    series: Series
    at: int
    before: float
    after: float
    change: float
    """Percent, or points for a score."""

    lower: float
    upper: float
    """The 95 % interval of `change`, given that the step is here."""

    better: bool


@dataclass(frozen=True, kw_only=True)
class Trend:
    """What was looked at, and the steps that were found, the newest last."""

    series: tuple[Series, ...]
    steps: tuple[StepFound, ...]
    left_out: int
    """Results that are no part of any series: of invalid or failed-on-purpose runs, and figures of 0 or less."""

    shared: int
    """Measurements that are no part of any series because others were let onto their node: they may have slowed it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One end of a step: the run on either side."""

    file: str
    nodeid: str
    created: datetime | None
    commit: str
    facts: Mapping[str, str]
    """Versions, settings and the resolved configuration, by name."""


_POINTS = """
SELECT model, "case", hardware, metric, false AS is_score, true AS higher, value, created, file, nodeid
FROM metrics WHERE invalid = '' AND NOT experiment AND shared IS NOT TRUE AND value > 0
UNION ALL
SELECT model, "case", hardware, metric, true, higher_is_better, score, created, file, nodeid
FROM accuracy WHERE invalid = '' AND NOT experiment AND questions = planned
"""


def find_trend(store: Store, *, metric: str = "", case: str = "", last: int = LAST) -> Trend:
    """Find the steps of every series whose metric is `metric` and whose model, case or hardware contains `case`."""
    rows = store.rows(
        f"""
        SELECT model, "case", coalesce(hardware, 'unknown hardware'), metric, is_score, any_value(higher), list(value ORDER BY created, file, nodeid)
        FROM ({_POINTS})
        WHERE model IS NOT NULL AND ($1 = '' OR metric = $1)
            AND ($2 = '' OR contains(lower(model || ' ' || "case" || ' ' || coalesce(hardware, '')), lower($2)))
        GROUP BY ALL ORDER BY ALL
        """,
        [metric, case],
    )
    series = tuple(_series(row, last) for row in rows)
    scaled = [np.asarray(item.values, dtype=float) for item in series]
    prepared = [values if item.is_score else np.log(values) for item, values in zip(series, scaled, strict=True)]
    steps = [_found(item, step) for item, found in zip(series, find_steps(prepared), strict=True) for step in found]
    (out,) = store.rows("SELECT count(*) FROM history WHERE invalid <> '' OR experiment")[0]
    (shared,) = store.rows("SELECT count(*) FROM history WHERE shared AND invalid = '' AND NOT experiment")[0]
    return Trend(series=series, steps=tuple(steps), left_out=out, shared=shared)


def _series(row: Sequence[Any], last: int) -> Series:
    model, case, hardware, metric, is_score, higher, values = row
    unit = "points" if is_score else ""
    if not is_score:
        try:
            known = parse_metric(metric).metric
            higher, unit = known.higher_is_better, known.unit
        except MarkError:
            # A metric of another version: it has a level, and a direction nobody here knows.
            higher = True
    return Series(
        model=model,
        case=case,
        hardware=hardware,
        metric=metric,
        is_score=is_score,
        higher_is_better=bool(higher),
        unit=unit,
        values=tuple(values[-last:]),
        older=max(len(values) - last, 0),
    )


def _found(series: Series, step: Step) -> StepFound:
    def change(size: float) -> float:
        return 100 * size if series.is_score else 100 * math.expm1(size)

    def level(value: float) -> float:
        return value if series.is_score else math.exp(value)

    return StepFound(
        series=series,
        at=step.at,
        before=level(step.before),
        after=level(step.after),
        change=change(step.size),
        lower=change(step.lower),
        upper=change(step.upper),
        better=(step.size > 0) == series.higher_is_better,
    )


def runs_around(store: Store, steps: Sequence[StepFound]) -> list[tuple[Run, Run]]:
    """Return the last run before each step and the first after it. Two queries, however many steps there are."""
    if not steps:
        return []
    wanted = [
        (
            number,
            step.series.model,
            step.series.case,
            step.series.metric,
            step.series.is_score,
            step.series.hardware,
            step.series.older + step.at,
        )
        for number, step in enumerate(steps)
    ]
    ends = store.rows(
        f"""
        WITH wanted AS (
            SELECT unnest($1) AS step, unnest($2) AS model, unnest($3) AS "case", unnest($4) AS metric,
                unnest($5) AS is_score, unnest($6) AS hardware, unnest($7) AS place
        ), points AS (SELECT * REPLACE (coalesce(hardware, 'unknown hardware') AS hardware) FROM ({_POINTS}))
        SELECT file, nodeid FROM points JOIN wanted USING (model, "case", metric, is_score, hardware)
        QUALIFY row_number() OVER (PARTITION BY step ORDER BY created, file, nodeid) - place BETWEEN 0 AND 1
        ORDER BY step, created, file, nodeid
        """,
        [list(column) for column in zip(*wanted, strict=True)],
    )
    found = _runs(store, ends)
    runs = [found[file, nodeid] for file, nodeid in ends]
    return list(zip(runs[::2], runs[1::2], strict=True))


def _runs(store: Store, places: Sequence[Sequence[str]]) -> dict[tuple[str, str], Run]:
    """Return the runs of some tests by file and node id."""
    rows = store.rows(
        'SELECT file, nodeid, created, "commit", environment, context, engine, case_json FROM history '
        "SEMI JOIN (SELECT unnest($1) AS file, unnest($2) AS nodeid) USING (file, nodeid)",
        [list(column) for column in zip(*places, strict=True)],
    )
    return {(row[0], row[1]): _run(*row) for row in reversed(rows)}


def _run(
    file: str,
    nodeid: str,
    created: datetime | None,
    commit: str | None,
    environment: Mapping[str, Any] | None,
    context: Mapping[str, Any] | None,
    engine: str | None,
    case: str | None,
) -> Run:
    facts = {str(key): str(value) for key, value in {**(environment or {}), **(context or {})}.items()}
    facts |= _flat("engine", json.loads(engine) if engine else None)
    facts |= _flat("case", json.loads(case) if case else None)
    return Run(file=file, nodeid=nodeid, created=created, commit=commit or "", facts=facts)


_NOT_A_CAUSE = {"engine.load_s"}
"""What differs from run to run and explains nothing."""


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        return {key: text for name, item in value.items() for key, text in _flat(f"{prefix}.{name}", item).items()}
    if value is None or prefix in _NOT_A_CAUSE:
        return {}
    return {prefix: json.dumps(value) if isinstance(value, list) else str(value)}


def differences(before: Run, after: Run) -> list[tuple[str, str, str]]:
    """Return (name, before, after) of every fact that is not the same; "-" for one that is not there."""
    names = sorted({*before.facts, *after.facts})
    pairs = [(name, before.facts.get(name, "-"), after.facts.get(name, "-")) for name in names]
    return [item for item in pairs if item[1] != item[2]]
