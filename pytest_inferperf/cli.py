"""The `inferperf` command: look at baselines, compare a run with them, and update them, on any machine."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from pytest_inferperf import __version__
from pytest_inferperf.baselines.changes import Change, compare
from pytest_inferperf.baselines.entries import LEAST_BASELINE_SESSIONS, Provenance
from pytest_inferperf.baselines.planner import MODES, UpdatePlan
from pytest_inferperf.baselines.result_file import ResultFile, read_result_file
from pytest_inferperf.baselines.store import (
    AccuracyFile,
    PerformanceFile,
    baseline_files,
    read_accuracy,
    read_performance,
    shown_path,
)
from pytest_inferperf.baselines.update import update
from pytest_inferperf.baselines.write import write_atomic
from pytest_inferperf.cli_load import add_clock_options, add_load_commands, check_clock_command
from pytest_inferperf.errors import InferperfError, ResultFileError, SettingsError, choices
from pytest_inferperf.gates.sessions import doubt_gain
from pytest_inferperf.model.case import is_experiment
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import slug
from pytest_inferperf.report.lines import number, uncalibrated
from pytest_inferperf.report.selftest import report_json, report_lines
from pytest_inferperf.selftest import SelfTest

__all__ = ["main"]

_EXIT_CODES = """\
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown escaped, not as a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if "pytest_arguments" in arguments:
        arguments.pytest_arguments = [item for index, item in enumerate(rest) if item != "--" or "--" in rest[:index]]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        status = run(arguments)
        sys.stdout.flush()
    except InferperfError as error:
        print(f"inferperf: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; keep the interpreter from complaining when it closes stdout.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inferperf",
        description="Look at and update the baselines of pytest-inferperf, prove gates, plan runs, and measure servers.",
        epilog=f"{_EXIT_CODES}  plan ends as pytest does\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"inferperf {__version__}", help="Show the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # What follows is pytest's: no argument of it is taken for an option of ours.
    plan = commands.add_parser(
        "plan",
        help="Say what a pytest run would build, find and take, without running it",
        description="Plan a pytest run: what would be built and loaded, what each gate can find, and how long it takes.",
        epilog="The same as: pytest --inferperf-plan [PYTEST ARGUMENTS]",
        usage="inferperf plan [-h] [PYTEST ARGUMENTS]",
        add_help=False,
        prefix_chars="\0",
    )
    plan.add_argument(
        "arguments", metavar="PYTEST ARGUMENTS", nargs="*", help="Paths, -k, -m and other options of pytest"
    )
    plan.set_defaults(run=_plan, help=plan.format_help)
    baseline = commands.add_parser("baseline", help="Show, compare or update baseline files")
    actions = baseline.add_subparsers(title="commands", metavar="COMMAND", required=True)

    show = actions.add_parser("show", help="Show what is recorded")
    show.add_argument("model", metavar="MODEL", nargs="?", help="Show this model only")
    show.add_argument("--root", type=Path, default=Path("baselines"), help=_ROOT_HELP)
    show.set_defaults(run=_show)

    diff = actions.add_parser("diff", help="Compare the results of a run with the baselines; exits 0 whatever moved")
    diff.add_argument("results", metavar="RESULTS.json", type=Path, help="What --inferperf-json wrote")
    diff.add_argument("--root", type=Path, help=_RESULTS_ROOT_HELP)
    diff.set_defaults(run=_diff)

    change = actions.add_parser(
        "update",
        help="Record the results of a run as baselines; exits 1 when something was refused",
        description="Record the results of a run as baselines. What is refused is left as it was.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    change.add_argument("results", metavar="RESULTS.json", type=Path, help="What --inferperf-json wrote")
    change.add_argument(
        "--mode",
        choices=MODES,
        default="new",
        help="Record what is missing, replace what got better, or replace all (default: new)",
    )
    change.add_argument("--reason", metavar="TEXT", default="", help="Why, kept in the file; --mode all needs it")
    change.add_argument(
        "--accept-regression", action="store_true", help="Record values that are worse beyond the tolerance"
    )
    change.add_argument("--root", type=Path, help=_RESULTS_ROOT_HELP)
    change.set_defaults(run=_update)

    proof = commands.add_parser(
        "selftest",
        help="Prove that gates fail when a regression is injected, and pass when none is",
        usage="inferperf selftest [--strict] [--json PATH] [--keep DIR] [PYTEST ARGUMENTS...]\n"
        "       inferperf selftest --clock [--streams N,...] [--json PATH]",
        description="Run the selected tests clean and with injected regressions, against a copy of the baselines. Whatever"
        " is not listed here, and everything after --, goes to pytest.",
        epilog="exit status:\n  0  every gate passes clean and fails with a regression; --clock: the meter can be trusted"
        "\n  1  one does not, or was not judged; --clock: it cannot, at one of the concurrencies"
        "\n  2  bad usage, or no gate is selected",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    proof.add_argument(
        "--strict", action="store_true", help="Exit 1 also for a gate that cannot detect its own tolerance"
    )
    proof.add_argument("--json", metavar="PATH", type=Path, help="Write the report to this file")
    proof.add_argument("--keep", metavar="DIR", type=Path, help="Keep the results and the output of every run here")
    add_clock_options(proof)
    proof.set_defaults(run=_selftest, pytest_arguments=())
    add_load_commands(commands)
    return parser


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.arguments in (["-h"], ["--help"]):
        print(arguments.help(), end="")
        return 0
    # In a process of its own: this command needs no pytest for anything else.
    return subprocess.run([sys.executable, "-m", "pytest", "--inferperf-plan", *arguments.arguments]).returncode


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
    lines = [shown, f"  {file.model} on {file.hardware.count} x {file.hardware.name}"]
    for key, entry in sorted(file.entries.items()):
        sessions = min(len(item.sessions) for item in entry.metrics.values())
        few = ", uncalibrated" if sessions < LEAST_BASELINE_SESSIONS else ""
        count = f"; {_plural(sessions, 'session')}{few}" if sessions else ""
        lines.append(f"  {key}  ({_origin(entry.provenance)}{count})")
        rows = []
        for name, item in sorted(entry.metrics.items()):
            tolerance = "" if item.tolerance is None else f"tolerance {100 * item.tolerance:g} %"
            rows.append((name, number(item.level), parse_metric(name).metric.unit, tolerance))
        lines += _table(rows, right={1}, indent=4)
    return lines


def _accuracy_lines(file: AccuracyFile, shown: str) -> list[str]:
    lines = [shown, f"  {file.model}"]
    for key, entry in sorted(file.tasks.items()):
        documents = f"; {_plural(entry.num_documents, 'document')}" if entry.documents_digest else ""
        lines.append(f"  {key}  ({entry.metric}{documents})")
        rows = [
            (precision, number(score.score), _origin(score.provenance))
            for precision, score in sorted(entry.scores.items())
        ]
        lines += _table(rows, right={1}, indent=4)
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
    changes, notes = compare(root, results.records)
    lines = _change_lines(changes)
    if lines:
        print("\n".join(lines))
    better = sum(item.better is True for item in changes)
    worse = sum(item.better is False for item in changes)
    missing = sum(item.old is None for item in changes)
    if lines:
        print()
    counts = f"{better} better, {worse} worse, {missing} without a baseline"
    print(f"{_plural(len(changes), 'value')} compared with {root}: {counts}.")
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
    plan, written = update(
        _root(arguments, results),
        results.records,
        mode=arguments.mode,
        reason=arguments.reason,
        accept_regression=arguments.accept_regression,
        now=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        doubt=doubt_gain,
    )
    print("\n".join(_update_lines(plan, len(written))))
    for refusal in plan.refusals:
        print(f"refused: {refusal}", file=sys.stderr)
    return 1 if plan.refusals else 0


def _update_lines(plan: UpdatePlan, written: int) -> list[str]:
    lines = _change_lines(plan.changes)
    lines += [f"skipped: {item}" for item in plan.skipped]
    if lines:
        lines.append("")
    refused = f"; {len(plan.refusals)} refused" if plan.refusals else ""
    if not plan.changes:
        return [*lines, f"Nothing recorded in {plan.root}{refused}."]
    recorded = f"{_plural(len(plan.changes), 'value')} recorded in {_plural(written, 'file')}{refused}."
    return [
        *lines,
        recorded,
        *uncalibrated(item.sessions for item in plan.changes),
        f"Review with git diff {plan.root}, then commit.",
    ]


def _selftest(arguments: argparse.Namespace) -> int:
    if arguments.clock:
        return check_clock_command(arguments)
    if arguments.streams is not None:
        raise SettingsError("--streams goes with --clock.")

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        report = SelfTest(arguments.pytest_arguments, say=say, keep=arguments.keep).run()
    except KeyboardInterrupt:
        print("inferperf: stopped", file=sys.stderr)
        return 130
    except SettingsError:
        raise
    except InferperfError as error:
        print(f"inferperf: {error}", file=sys.stderr)
        return 1
    print("\n".join(["", *report_lines(report)]))
    if arguments.json is not None:
        text = json.dumps(report_json(report), indent=2, sort_keys=True) + "\n"
        write_atomic(arguments.json, text, shown=str(arguments.json), error=ResultFileError)
    return 0 if report.proven and not (arguments.strict and report.unreliable) else 1


def _change_lines(changes: Sequence[Change]) -> list[str]:
    lines: list[str] = []
    for path in dict.fromkeys(item.path for item in changes):
        rows = [
            (
                item.key,
                item.what,
                number(item.old) if item.old is not None else "",
                "->" if item.old is not None else "",
                number(item.new),
                item.unit,
                _verdict(item),
            )
            for item in changes
            if item.path == path
        ]
        lines += [path, *_table(rows, right={2, 4}, indent=2)]
    return lines


def _verdict(item: Change) -> str:
    if item.old is None:
        return "new"
    if item.better is None:
        return "same"
    percent = "" if item.percent is None else f"{item.percent:+.1f} % "
    answers = ""
    if item.unparseable is not None:
        before, now = item.unparseable
        answers = f" (unparseable {before:.2f} % -> {now:.2f} %)"
    return f"{percent}{'better' if item.better else 'worse'}{answers}"


def _table(rows: Sequence[tuple[str, ...]], *, right: set[int], indent: int) -> list[str]:
    """Align columns; an empty column takes no room."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return lines


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


if __name__ == "__main__":
    sys.exit(main())
