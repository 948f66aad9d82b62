"""The commands that show a run again, or two side by side: `inferperf report` and `inferperf compare`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, key_names, read_result_file
from pytest_inferperf.baselines.write import write_atomic
from pytest_inferperf.errors import MarkError, ResultFileError
from pytest_inferperf.hiding import hider
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.report.lines import aligned, number, plural, summary_lines
from pytest_inferperf.report.markdown import markdown
from pytest_inferperf.report.run import run_report

__all__ = ["add_report_commands"]


def add_report_commands(commands: Any) -> None:
    """Add both commands to the subparsers of `inferperf`."""
    report = commands.add_parser(
        "report",
        help="Show the verdicts of a result file again",
        description="Show the verdicts of a result file again.",
    )
    report.add_argument("results_file", metavar="RESULTS.json", type=Path, help="What --inferperf-json wrote")
    report.add_argument(
        "--markdown", metavar="PATH", type=Path, help="Write a summary that fits into a pull-request comment"
    )
    report.add_argument(
        "--html", metavar="PATH", type=Path, help="Write an HTML report, one file that needs no network"
    )
    report.add_argument(
        "--baselines",
        metavar="DIR",
        type=Path,
        default=Path("baselines"),
        help="Folder of the baseline files that the HTML report draws beside the run (default: baselines)",
    )
    report.add_argument(
        "--results", metavar="DIR", type=Path, help="Folder of earlier results, whose trends the HTML report draws"
    )
    report.set_defaults(run=_report)
    compare = commands.add_parser(
        "compare",
        help="Show two runs side by side; exits 0 whatever moved",
        description="Show two runs side by side: what both measured, the change, and the context that differs.",
    )
    compare.add_argument("before", metavar="A.json", type=Path, help="What --inferperf-json wrote")
    compare.add_argument("after", metavar="B.json", type=Path, help="What it wrote in another run")
    compare.set_defaults(run=_compare)


def _report(arguments: argparse.Namespace) -> int:
    file = read_result_file(arguments.results_file)
    hide = hider(also={name for record in file.records for name in key_names(record)})
    report = run_report(file.records, created=file.created, environment=file.environment, hide=hide)
    if arguments.html is not None:
        from pytest_inferperf.report.page.content import Where, page_of
        from pytest_inferperf.report.page.write import write_page

        where = Where(baselines=arguments.baselines, history=arguments.results)
        write_page(arguments.html, page_of(file.records, report, where, hide=hide), shown=str(arguments.html))
        print(f"{report.verdict}; written to {arguments.html}")
    if arguments.markdown is not None:
        write_atomic(arguments.markdown, markdown(report), shown=str(arguments.markdown), error=ResultFileError)
        print(f"{report.verdict}; written to {arguments.markdown}")
    if arguments.html is not None or arguments.markdown is not None:
        return 0
    print(f"{report.verdict}\n")
    for line in summary_lines([(case.nodeid, case.verdicts, case.simulated) for case in report.cases]):
        print(line)
    for case in report.cases:
        if case.invalid:
            print(f"{case.nodeid}: INVALID: {case.invalid}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    files = read_result_file(arguments.before), read_result_file(arguments.after)
    hide = hider()
    before, after = (_by_case(file) for file in files)
    rows: list[tuple[str, ...]] = []
    for key in before:
        if key in after:
            rows += _metric_rows(before[key], after[key], files, hide)
    if rows:
        print("\n".join(aligned([("", "A", "B", "change", ""), *rows], right={1, 2, 3})))
    only = [
        (label, record)
        for label, one, other in (("A", before, after), ("B", after, before))
        for key, record in one.items()
        if key not in other
    ]
    for label, record in only:
        print(f"only in {label}: {hide(record.nodeid)}")
    names = sorted({*files[0].environment, *files[1].environment})
    pairs = [(name, *(file.environment.get(name, "-") for file in files)) for name in names]
    different = [tuple(map(hide, item)) for item in pairs if item[1] != item[2]]
    if different:
        print()
        print("\n".join(aligned([("differs", "A", "B"), *different], right=set())))
    print(f"\n{plural(len(before.keys() & after.keys()), 'case')} in both, {len(only)} in one of them.")
    return 0


def _by_case(file: ResultFile) -> dict[object, ResultRecord]:
    return {_key(record.result.case): record for record in file.records}


def _key(case: Case) -> object:
    return tuple(sorted(case.identity().items()))


def _metric_rows(
    before: ResultRecord, after: ResultRecord, files: tuple[ResultFile, ResultFile], hide: Callable[[str], str]
) -> list[tuple[str, ...]]:
    first, second = (
        run_report([record], created=file.created, environment={}, hide=hide).cases[0]
        for record, file in zip((before, after), files, strict=True)
    )
    status = tuple("-" if case.status is None else case.status.value for case in (first, second))
    rows = [(second.nodeid, *status, "", "")]
    for name, old in first.metrics.items():
        new = second.metrics.get(name)
        change = f"{100 * (new / old - 1):+.1f} %" if new is not None and old > 0 else ""
        word = "" if new is None or new == old else _word(name, after, rose=new > old)
        rows.append((f"  {name}", number(old), number(new), change, word))
    return rows


def _word(name: str, record: ResultRecord, *, rose: bool) -> str:
    accuracy = record.result.accuracy
    if accuracy is not None and name == f"{accuracy.task}/{accuracy.metric}":
        return "better" if rose == accuracy.higher_is_better else "worse"
    try:
        return "better" if rose == parse_metric(name).metric.higher_is_better else "worse"
    except MarkError:
        return ""
