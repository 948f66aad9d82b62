"""The commands that look at many results: `inferperf history`, `trend`, `bisect-range` and `query`."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.report.lines import aligned, number, plural

if TYPE_CHECKING:
    from pytest_inferperf.history.loading import Skipped
    from pytest_inferperf.history.series import StepFound, Trend
    from pytest_inferperf.history.store import Store

__all__ = ["add_history_commands"]

_STORE_HELP = "Folder of result files, one such file, or an address such as s3://bucket/results (default: results)"
_SHOWN_SKIPPED = 20


def add_history_commands(commands: Any) -> None:
    """Add the commands to the subparsers of `inferperf`."""
    history = commands.add_parser(
        "history",
        help="List the runs of a folder or bucket of result files, compact them into one Parquet file, or send one there",
        usage="inferperf history [-h] [--last N] [compact | send FILE] [STORE]",
        description="List the runs of a store of result files, oldest first. With compact, write them all into one Parquet "
        "file in the store, which is read in their place: the JSON files stay as they are, and what the Parquet file holds "
        "of them stays when they are deleted. With send, copy one file to a store at an address, as a run does.",
    )
    history.add_argument("words", metavar="STORE", nargs="*", help=_STORE_HELP)
    history.add_argument("--last", type=_count, default=20, metavar="N", help="Newest runs shown (default: 20)")
    history.set_defaults(run=_history)

    trend = commands.add_parser(
        "trend",
        help="Find the steps in every metric over time; advises, and exits 0 whatever it finds",
        description="Find the steps in every metric over time. It advises: the exit status is 0 whatever it finds.",
    )
    _add_choice(trend)
    trend.set_defaults(run=_trend)

    bisect = commands.add_parser(
        "bisect-range",
        help="Show the two runs around a step, and what differs between them",
        description="Show the two runs around the newest step of the chosen metric, and what differs between them.",
    )
    _add_choice(bisect)
    bisect.add_argument(
        "--step", type=_count, default=1, metavar="N", help="The Nth newest step that trend shows (default: 1)"
    )
    bisect.set_defaults(run=_bisect)

    query = commands.add_parser(
        "query",
        help="Ask a store one SELECT",
        description="Ask a store one SELECT. Tables: runs, metrics, sessions, verdicts, accuracy, and history, which "
        "they are views of. No file can be read or written from SQL.",
    )
    query.add_argument("sql", metavar="SQL", help='Such as "SELECT metric, median(value) FROM metrics GROUP BY metric"')
    query.add_argument("store", metavar="STORE", nargs="?", default="results", help=_STORE_HELP)
    query.add_argument("--csv", action="store_true", help="Write CSV, not an aligned table")
    query.set_defaults(run=_query)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", nargs="?", default="results", help=_STORE_HELP)
    parser.add_argument("--metric", default="", metavar="NAME", help="This metric only, such as ttft_ms.p99")
    parser.add_argument("--case", default="", metavar="TEXT", help="Models, cases and hardware with this in their name")
    parser.add_argument(
        "--last", type=_count, default=500, metavar="N", help="Newest results looked at, of each series (default: 500)"
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def _history(arguments: argparse.Namespace) -> int:
    from pytest_inferperf.history.loading import PARQUET
    from pytest_inferperf.history.store import compact, open_store

    words: list[str] = arguments.words
    if words[:1] == ["send"]:
        return _send(words[1:])
    packs = words[:1] == ["compact"]
    roots = words[1:] if packs else words
    if len(roots) > 1:
        raise SettingsError(f"history: one store is asked for, not {len(roots)}: {' '.join(roots)}")
    root = roots[0] if roots else "results"
    if packs:
        count, skipped = compact(root)
        print(f"{plural(count, 'run')} in {root.rstrip('/')}/{PARQUET}. The JSON files are as they were.")
        _name_skipped(skipped)
        return 0
    store = open_store(root, sealed=False)
    rows = store.rows(
        'SELECT created, "commit", tests, passed, failed, inconclusive, invalid, shared, file FROM runs ORDER BY created, file'
    )
    shown = [(_when(row[0]), row[1] or "-", *map(str, row[2:8]), row[8]) for row in rows[-arguments.last :]]
    header = ("run", "commit", "tests", "passed", "failed", "open", "invalid", "shared", "file")
    print("\n".join(aligned([header, *shown], right={2, 3, 4, 5, 6, 7})))
    left = len(rows) - len(shown)
    print(f"\n{plural(len(rows), 'run')}{f', {left} older not shown (--last)' if left else ''}.")
    _name_skipped(store.skipped)
    return 0


def _send(words: Sequence[str]) -> int:
    from pytest_inferperf.keeping import send_results

    if len(words) != 2:
        raise SettingsError(
            "history send: write inferperf history send FILE STORE, such as: send run.json s3://bucket/results"
        )
    print(f"{words[0]} is now {send_results(Path(words[0]), words[1])}")
    return 0


def _trend(arguments: argparse.Namespace) -> int:
    from pytest_inferperf.history.series import runs_around

    store, trend = _find(arguments)
    for step, (before, after) in zip(trend.steps, runs_around(store, trend.steps), strict=True):
        print(_headline(step))
        print(
            f"  came     between {_when(before.created)} and {_when(after.created)}, commits {_commits(before, after)}"
        )
        print(f"  changed  {_changes(before, after)}")
        print(f"  results  {before.file} and {after.file}")
    worse = sum(not step.better for step in trend.steps)
    if trend.steps:
        print()
    steps = f"{plural(len(trend.steps), 'step')}, {worse} for the worse," if trend.steps else "No steps"
    print(f"{steps} in {len(trend.series)} series{_short(trend)}.")
    if trend.left_out:
        print(f"{plural(trend.left_out, 'result')} of invalid runs and of experiments left out.")
    _name_shared(trend)
    _name_skipped(store.skipped)
    if worse:
        print("Next: inferperf bisect-range shows the two runs around a step, and all that differs between them.")
    return 0


def _bisect(arguments: argparse.Namespace) -> int:
    from pytest_inferperf.history.series import differences, runs_around

    store, trend = _find(arguments)
    if len(trend.steps) < arguments.step:
        raise SettingsError(
            f"{arguments.store}: {plural(len(trend.steps), 'step')} found, so there is none of number {arguments.step}. "
            "See inferperf trend with the same --metric and --case."
        )
    step = trend.steps[-arguments.step]
    ((before, after),) = runs_around(store, [step])
    print(_headline(step))
    for label, run, value in (
        ("before", before, step.series.values[step.at - 1]),
        ("after", after, step.series.values[step.at]),
    ):
        print(
            f"  {label:<6}  {_when(run.created)}  {run.commit or 'no commit'}  {number(value)} {step.series.unit}  {run.file}"
        )
    _name_shared(trend)
    rows = differences(before, after)
    print()
    if rows:
        print("\n".join(aligned([("differs", "before", "after"), *rows], right=set())))
    else:
        print("Nothing that the results hold differs: look at the machine, and at what the commit does not pin.")
    commits = (before.commit.partition("+")[0], after.commit.partition("+")[0])
    if all(commits) and commits[0] != commits[1]:
        print(f"\nNext: git bisect start {commits[1]} {commits[0]}")
    return 0


def _query(arguments: argparse.Namespace) -> int:
    from pytest_inferperf.history.store import open_store

    store = open_store(arguments.store)
    names, rows = store.query(arguments.sql)
    texts = [tuple("" if value is None else str(value) for value in row) for row in rows]
    if arguments.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([names, *texts])
    else:
        print("\n".join(aligned([tuple(names), *texts], right=set())))
    for item in store.skipped:
        print(f"skipped {item.file}: {item.reason}", file=sys.stderr)
    return 0


def _find(arguments: argparse.Namespace) -> tuple[Store, Trend]:
    from pytest_inferperf.history.series import find_trend
    from pytest_inferperf.history.store import open_store

    store = open_store(arguments.store, sealed=False)
    trend = find_trend(store, metric=arguments.metric, case=arguments.case, last=arguments.last)
    if not trend.series and (arguments.metric or arguments.case):
        metrics = ", ".join(row[0] for row in store.rows("SELECT DISTINCT metric FROM metrics ORDER BY metric"))
        raise SettingsError(
            f"{arguments.store}: no results of metric {arguments.metric or 'any'!r} and case "
            f"{arguments.case or 'any'!r}. Metrics: {metrics or 'none'}."
        )
    return store, trend


def _headline(step: StepFound) -> str:
    series = step.series
    unit = "points" if series.is_score else "%"
    scale = 100 if series.is_score else 1
    return (
        f"{'better' if step.better else 'WORSE'} {step.change:+.1f} {unit} ({step.lower:+.1f} to {step.upper:+.1f})  "
        f"{series.label}  {number(scale * step.before)} -> {number(scale * step.after)} {series.unit}"
    )


def _changes(before: Any, after: Any) -> str:
    from pytest_inferperf.history.series import differences

    rows = [item for item in differences(before, after) if item[0] != "git_commit"]
    shown = [f"{name} {old} -> {new}" for name, old, new in rows[:4]]
    more = f", and {len(rows) - len(shown)} more" if len(rows) > len(shown) else ""
    return (", ".join(shown) or "nothing that the results hold, besides the commit") + more


def _commits(before: Any, after: Any) -> str:
    return f"{before.commit or 'unknown'}..{after.commit or 'unknown'}"


def _name_shared(trend: Trend) -> None:
    if trend.shared:
        print(
            f"{plural(trend.shared, 'measurement')} left out: others were let onto the node, and may have slowed it "
            "(column shared of the tables)."
        )


def _short(trend: Trend) -> str:
    from pytest_inferperf.trend.potts import LEAST_POINTS

    short = sum(len(item.values) < LEAST_POINTS for item in trend.series)
    return f" ({short} with fewer than the {LEAST_POINTS} results that a step needs)" if short else ""


def _name_skipped(skipped: Sequence[Skipped]) -> None:
    for item in skipped[:_SHOWN_SKIPPED]:
        print(f"skipped {item.file}: {item.reason}")
    if len(skipped) > _SHOWN_SKIPPED:
        print(f"skipped {len(skipped) - _SHOWN_SKIPPED} more files")


def _when(created: Any) -> str:
    return "unknown date" if created is None else f"{created:%Y-%m-%d %H:%M}"
