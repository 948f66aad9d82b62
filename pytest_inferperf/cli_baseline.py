"""`inferperf baseline`: show what is recorded, compare a run with it, and record one, on any machine."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from pytest_inferperf.baselines.changes import Evidence, compare
from pytest_inferperf.baselines.entries import LEAST_BASELINE_SESSIONS, Provenance
from pytest_inferperf.baselines.format import AccuracyFile, PerformanceFile
from pytest_inferperf.baselines.origin import Origin, find_author, results_digest
from pytest_inferperf.baselines.patch import write_patch
from pytest_inferperf.baselines.result_file import ResultFile, read_result_file
from pytest_inferperf.baselines.store import (
    baseline_files,
    read_accuracy,
    read_performance,
    shown_path,
)
from pytest_inferperf.baselines.update import plan_update, update
from pytest_inferperf.baselines.update_plan import MODES, UpdatePlan
from pytest_inferperf.errors import InferperfError, SettingsError, choices
from pytest_inferperf.gates.intervals import accuracy_interval, outdone, performance_interval
from pytest_inferperf.gates.sessions import doubt_gain
from pytest_inferperf.model.case import is_experiment
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import slug
from pytest_inferperf.report.changes import change_lines
from pytest_inferperf.report.lines import number, plural, uncalibrated
from pytest_inferperf.report.table import table

__all__ = ["EXIT_CODES", "add_baseline_commands"]

EXIT_CODES = """\
exit status:
  0  done, or nothing to do
  1  an update was refused
  2  bad usage, or a file that cannot be read or written
"""

_ROOT_HELP = "Root folder of the baselines (default: baselines)"
_RESULTS_ROOT_HELP = "Root folder of the baselines (default: the one that the results name, else baselines)"
_ROOT_KEY = "inferperf_baselines"
"""Where the environment of a result file names the root that its run used, relative to pytest's rootdir."""

_SET_KEY = "--inferperf-set "
"""What precedes, in the environment of a result file, the name of a keyword that its run overrode."""

_EVIDENCE = Evidence(performance=performance_interval, accuracy=accuracy_interval)


def add_baseline_commands(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that show and record to those of `inferperf baseline`."""
    show = actions.add_parser("show", help="Show what is recorded")
    show.add_argument("model", metavar="MODEL", nargs="?", help="Show this model only")
    show.add_argument("--root", type=Path, default=Path("baselines"), help=_ROOT_HELP)
    show.set_defaults(run=_show)

    diff = actions.add_parser(
        "diff",
        help="Compare the results of a run with the baselines; exits 0 whatever moved",
        description="Compare the results of a run with the baselines: each value with its change, the 95 % confidence "
        "interval of the change, the sessions or questions that both rest on, and the identity or context that moved.",
    )
    diff.add_argument("results", metavar="RESULTS.json", type=Path, help="What --inferperf-json wrote")
    diff.add_argument("--root", type=Path, help=_RESULTS_ROOT_HELP)
    diff.set_defaults(run=_diff)

    change = actions.add_parser(
        "update",
        help="Record the results of a run as baselines; exits 1 when something was refused",
        description="Record the results of a run as baselines. What is refused is left as it was.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_recording(change)
    change.add_argument(
        "--mode",
        choices=MODES,
        default="new",
        help="Record what is missing, replace what got better, or replace all (default: new)",
    )
    change.add_argument(
        "--accept-regression", action="store_true", help="Record values that are worse beyond the tolerance"
    )
    change.set_defaults(run=_update)

    tighten = actions.add_parser(
        "tighten",
        help="Hold the proven gains of a run; the same as update --mode tighten",
        description="Replace baselines by the results of a run where these are better, and are proven to be. Nothing else "
        "is touched.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_recording(tighten)
    tighten.set_defaults(run=_update, mode="tighten", accept_regression=False)


def _add_recording(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="RESULTS.json", type=Path, help="What --inferperf-json wrote")
    parser.add_argument("--reason", metavar="TEXT", default="", help="Why, kept in the file; --mode all needs it")
    parser.add_argument(
        "--accept-uncalibrated",
        action="store_true",
        help=f"Record fewer than {LEAST_BASELINE_SESSIONS} sessions, of which the plain tolerance judges",
    )
    parser.add_argument(
        "--patch", metavar="FILE", type=Path, help="Write what would change to FILE, for git apply; record nothing"
    )
    parser.add_argument("--root", type=Path, help=_RESULTS_ROOT_HELP)


def _show(arguments: argparse.Namespace) -> int:
    root: Path = arguments.root
    if not root.is_dir():
        raise SettingsError(f"{root}: no such folder. Name the root folder of the baselines with --root.")
    blocks: list[tuple[str, list[str]]] = []
    problems: list[str] = []
    performance, accuracy = baseline_files(root)
    for path in performance:
        with _collect(problems):
            file = read_performance(path, shown=shown_path(root, path))
            blocks.append((file.model, _performance_lines(file, shown_path(root, path))))
    for path in accuracy:
        with _collect(problems):
            answers = read_accuracy(path, shown=shown_path(root, path))
            blocks.append((answers.model, _accuracy_lines(answers, shown_path(root, path))))
    wanted: str | None = arguments.model
    chosen = [lines for model, lines in blocks if wanted is None or model == wanted or slug(model) == slug(wanted)]
    if wanted is not None and not chosen and not problems:
        models = sorted({model for model, _ in blocks})
        known = choices(wanted, models, what="Models") if models else "There are no baselines yet."
        raise SettingsError(f"{root}: no baselines of model {wanted!r}. {known}")
    if not blocks and not problems:
        chosen = [[f"No baselines in {root}. A run with --inferperf-update=new records them."]]
    print("\n\n".join("\n".join(lines) for lines in chosen))
    if problems:
        raise InferperfError("\n".join(problems))
    return 0


@contextlib.contextmanager
def _collect(problems: list[str]) -> Iterator[None]:
    """Keep an error for the end, so that one damaged file does not hide the others."""
    try:
        yield
    except InferperfError as error:
        problems.append(str(error))


def _performance_lines(file: PerformanceFile, shown: str) -> list[str]:
    lines = [shown, f"  {file.model} on {file.hardware.words}"]
    for key, entry in sorted(file.entries.items()):
        sessions = min(len(item.sessions) for item in entry.metrics.values())
        few = ", uncalibrated" if sessions < LEAST_BASELINE_SESSIONS else ""
        count = f"; {plural(sessions, 'session')}{few}" if sessions else ""
        lines.append(f"  {key}  ({_origin(entry.provenance)}{count})")
        rows = []
        for name, item in sorted(entry.metrics.items()):
            tolerance = "" if item.tolerance is None else f"tolerance {100 * item.tolerance:g} %"
            rows.append((name, number(item.level), parse_metric(name).metric.unit, tolerance))
        lines += table(rows, right={1}, indent=4)
    return lines


def _accuracy_lines(file: AccuracyFile, shown: str) -> list[str]:
    lines = [shown, f"  {file.model}"]
    for key, entry in sorted(file.tasks.items()):
        documents = f"; {plural(entry.num_documents, 'document')}" if entry.documents_digest else ""
        lines.append(f"  {key}  ({entry.metric}{documents})")
        rows = [
            (precision, number(score.score), _origin(score.provenance))
            for precision, score in sorted(entry.scores.items())
        ]
        lines += table(rows, right={1}, indent=4)
    return lines


def _origin(provenance: Provenance) -> str:
    if provenance.kind == "published":
        return f"published: {provenance.source}"
    found = f"measured {provenance.recorded}".rstrip()
    return f"{found}: {provenance.reason}" if provenance.reason else found


def _root(arguments: argparse.Namespace, results: ResultFile) -> Path:
    """Return the root that was asked for, else the one that the run used, which must exist.

    Only `--root` may name a new folder: baselines recorded where no run looks would gate nothing.
    """
    if arguments.root is not None:
        given: Path = arguments.root
        return given
    named = results.environment.get(_ROOT_KEY, "")
    root = Path(named or "baselines")
    if not root.is_dir():
        found = f" (the folder that {arguments.results} names)" if named else ""
        raise SettingsError(
            f"{root}{found}: no such folder in {Path.cwd()}. Run the command in the project's root folder, or name the"
            f" root folder of the baselines, also a new one: --root {root}"
        )
    return root


def _diff(arguments: argparse.Namespace) -> int:
    results = read_result_file(arguments.results)
    root = _root(arguments, results)
    changes, notes = compare(root, results.records, evidence=_EVIDENCE)
    lines = change_lines(changes, evidence=True)
    if lines:
        print("\n".join(lines))
    better = sum(item.better is True for item in changes)
    worse = sum(item.better is False for item in changes)
    missing = sum(item.old is None for item in changes)
    if lines:
        print()
    counts = f"{better} better, {worse} worse, {missing} without a baseline"
    print(f"{plural(len(changes), 'value')} compared with {root}: {counts}.")
    for note in notes:
        print(note)
    if missing:
        where = "" if arguments.root is None else f" --root {root}"
        print(f"To record what is missing: inferperf baseline update {arguments.results}{where}")
    return 0


def _update(arguments: argparse.Namespace) -> int:
    if arguments.accept_regression and arguments.mode != "all":
        raise SettingsError(
            '--accept-regression goes with --mode all --reason "…";'
            f" --mode {arguments.mode} never records a worse value."
        )
    results = read_result_file(arguments.results)
    overrides = [key.removeprefix(_SET_KEY) for key in results.environment if key.startswith(_SET_KEY)]
    for name in filter(is_experiment, overrides):
        raise SettingsError(
            f"{arguments.results}: measured with {_SET_KEY}{name}={results.environment[_SET_KEY + name]}; an override is an "
            "experiment, not a baseline. Write the value into the mark, and repeat the run without the option."
        )
    root = _root(arguments, results)
    rules = {
        "mode": arguments.mode,
        "reason": _reason(arguments),
        "accept_regression": arguments.accept_regression,
        "now": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "doubt": doubt_gain,
        "outdone": outdone,
        "least_sessions": 1 if arguments.accept_uncalibrated else LEAST_BASELINE_SESSIONS,
        "origin": Origin(author=find_author(root), results=results_digest(arguments.results)),
    }
    if arguments.patch is not None:
        plan = plan_update(root, results.records, **rules)
        write_patch(plan, arguments.patch)
        print("\n".join(_update_lines(plan, len(plan.files), patch=arguments.patch)))
    else:
        plan, written = update(root, results.records, **rules)
        print("\n".join(_update_lines(plan, len(written))))
    for refusal in plan.refusals:
        print(f"refused: {refusal}", file=sys.stderr)
    return 1 if plan.refusals else 0


def _reason(arguments: argparse.Namespace) -> str:
    """Return why; whoever sits at a terminal is asked where the mode needs it."""
    given: str = arguments.reason.strip()
    if given or arguments.mode != "all" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return given
    with contextlib.suppress(EOFError):
        return input("Why do the baselines change? It is kept in the file: ").strip()
    return ""


def _update_lines(plan: UpdatePlan, written: int, *, patch: Path | None = None) -> list[str]:
    lines = change_lines(plan.changes)
    lines += [f"skipped: {item}" for item in plan.skipped]
    if lines:
        lines.append("")
    refused = f"; {len(plan.refusals)} refused" if plan.refusals else ""
    if not plan.changes:
        return [*lines, f"Nothing recorded in {plan.root}{refused}."]
    what = "in a patch of" if patch else "recorded in"
    return [
        *lines,
        f"{plural(len(plan.changes), 'value')} {what} {plural(written, 'file')}{refused}.",
        *uncalibrated(item.sessions for item in plan.changes),
        f"Nothing was recorded. To apply: git apply {patch}"
        if patch
        else f"Review with git diff {plan.root}, then commit.",
    ]
