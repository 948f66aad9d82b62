"""The SQL that turns result files into one table, and that table into the views that queries name."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from pytest_inferperf.baselines.documents import SCHEMA_VERSION
from pytest_inferperf.model.case import EngineSpec

__all__ = ["ENTRIES", "PROBLEMS", "READ_JSON", "SHARED", "VIEWS", "sql_text"]

_TEXTS = "MAP(VARCHAR, VARCHAR)"
_SHAPE: dict[str, Any] = {
    "schema_version": "BIGINT",
    "created": "VARCHAR",
    "environment": _TEXTS,
    "records": [
        {
            "nodeid": "VARCHAR",
            "status": "VARCHAR",
            "verdicts": [
                {
                    "gate": "VARCHAR",
                    "status": "VARCHAR",
                    "unit": "VARCHAR",
                    "measured": "DOUBLE",
                    "limit": "DOUBLE",
                    "baseline": "DOUBLE",
                    "tolerance": "DOUBLE",
                    "source": "VARCHAR",
                    "reason": "VARCHAR",
                }
            ],
            "result": {
                "case": "JSON",
                "engine": "JSON",
                "invalid": "VARCHAR",
                "context": _TEXTS,
                "placement": {"shared": "BOOLEAN"},
                "performance": {"sessions": [{"rounds": [{"metrics": "MAP(VARCHAR, DOUBLE)"}]}]},
                "accuracy": {
                    "metric": "VARCHAR",
                    "higher_is_better": "BOOLEAN",
                    "score": "DOUBLE",
                    "outcomes": {"count": "BIGINT"},
                    "asked": {"count": "BIGINT"},
                    "duration_s": "DOUBLE",
                },
            },
        }
    ],
}
"""What is read of a result file; whatever else it holds is left in it."""


def sql_text(value: str) -> str:
    """Quote a text for SQL."""
    return "'" + value.replace("'", "''") + "'"


_EXPERIMENTS = [f"--inferperf-set {item.name}" for item in fields(EngineSpec)] + ["--inferperf-set warmup_rounds"]
_IS_EXPERIMENT = (
    "list_has_any(list_transform(map_keys(r.environment), lambda k: split_part(k, '.', 1)), "
    f"[{', '.join(map(sql_text, [*_EXPERIMENTS, '--inferperf-inject']))}])"
)

READ_JSON = f"""
CREATE TABLE parsed AS
SELECT filename AS file, try(decode(content)) AS text,
       CASE WHEN json_valid(text) THEN from_json(text, {sql_text(json.dumps(_SHAPE))}) END AS r
FROM texts
"""
"""Parses the table `texts`; `r` is null for what is not JSON. Not while files are read: those come one in a vector, and
what a function costs for each vector is then paid for each file."""

PROBLEMS = f"""
SELECT file, CASE
    WHEN text IS NULL THEN 'not UTF-8'
    WHEN r IS NULL THEN 'cut short, or not JSON'
    WHEN r.schema_version > {SCHEMA_VERSION} THEN 'schema_version ' || r.schema_version || ' is newer than this package'
    ELSE 'not a result file' END
FROM parsed WHERE r IS NULL OR r.schema_version IS NULL OR r.schema_version > {SCHEMA_VERSION} OR r.records IS NULL
   OR r.created IS NULL
ORDER BY file
"""

SHARED = "SELECT NULL::BOOLEAN AS shared WHERE false"
"""Rows of what compactions of older versions do not hold: null where nobody noted whether a node was shared."""

ENTRIES = f"""
CREATE TABLE entries AS
WITH record AS (
    SELECT p.file, r.created, r.environment, {_IS_EXPERIMENT} AS experiment, unnest(
        CASE WHEN len(r.records) = 0 THEN [NULL] ELSE r.records END) AS record
    FROM parsed AS p
    WHERE r.schema_version <= {SCHEMA_VERSION} AND r.records IS NOT NULL AND r.created IS NOT NULL
), flat AS (
    SELECT *, record.result.performance.sessions AS sessions,
        record.result.case::VARCHAR AS case_json, record.result.engine::JSON AS engine
    FROM record
)
SELECT file, try_cast(created AS TIMESTAMPTZ) AS created, environment,
    coalesce(record.result.context['git_commit'], environment['git_commit'], '') AS "commit",
    coalesce(experiment, false) AS experiment,
    record.nodeid AS nodeid, record.status AS status, coalesce(record.result.invalid, '') AS invalid,
    case_json, engine ->> '$.backend' AS backend,
    (engine ->> '$.hardware.name') || ' x' || (engine ->> '$.hardware.count')
        || coalesce(' on ' || (engine ->> '$.hardware.nodes') || ' nodes', '') AS hardware,
    engine::VARCHAR AS engine, record.result.context AS context,
    list_transform(
        list_sort(list_distinct(flatten(list_transform(sessions,
            lambda s: flatten(list_transform(s.rounds, lambda q: map_keys(q.metrics))))))),
        lambda m: {{'metric': m, 'sessions': list_transform(sessions,
            lambda s: list_aggregate(list_transform(s.rounds, lambda q: q.metrics[m]), 'median'))}}
    ) AS metrics,
    len(flatten(list_transform(sessions, lambda s: s.rounds))) AS rounds,
    sessions IS NOT NULL AND coalesce(record.result.placement.shared, false) AS shared,
    record.verdicts AS verdicts, record.result.accuracy AS accuracy
FROM flat
"""

_WHO = 'file, created, "commit", nodeid, model, "case", hardware'

VIEWS = {
    "runs": 'SELECT file, min(created) AS created, min("commit") AS "commit", count(nodeid) AS tests, '
    "count(*) FILTER (status = 'PASS') AS passed, count(*) FILTER (status = 'FAIL') AS failed, "
    "count(*) FILTER (status = 'INCONCLUSIVE') AS inconclusive, "
    "count(*) FILTER (status = 'INVALID' OR invalid <> '') AS invalid, count(*) FILTER (shared) AS shared, any_value(environment) AS environment "
    "FROM history GROUP BY file",
    "metrics": f"SELECT {_WHO}, backend, m.metric, list_aggregate(m.sessions, 'median') AS value, "
    "len(m.sessions) AS sessions, invalid, experiment, shared FROM (SELECT *, unnest(metrics) AS m FROM history)",
    "sessions": f"SELECT {_WHO}, m.metric, n AS session, m.sessions[n] AS value, invalid, experiment, shared FROM "
    "(SELECT *, unnest(range(1, len(m.sessions) + 1)) AS n FROM (SELECT *, unnest(metrics) AS m FROM history))",
    "verdicts": f"SELECT {_WHO}, v.* FROM (SELECT * EXCLUDE (status), unnest(verdicts) AS v FROM history)",
    "accuracy": f"SELECT {_WHO}, accuracy.metric AS metric, accuracy.score AS score, "
    "accuracy.outcomes.count AS questions, coalesce(accuracy.asked.count, accuracy.outcomes.count) AS planned, "
    "accuracy.higher_is_better AS higher_is_better, accuracy.duration_s AS duration_s, invalid, experiment "
    "FROM history WHERE accuracy IS NOT NULL AND accuracy.score IS NOT NULL",
}
"""What a query may name, over `history`: one row for each test of each run, with its lists."""
