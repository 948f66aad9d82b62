"""The `inferperf` command: look at baselines, compare a run with them, and update them, on any machine."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pytest_inferperf import __version__
from pytest_inferperf.baselines.write import write_atomic
from pytest_inferperf.cli_baseline import EXIT_CODES, add_baseline_commands
from pytest_inferperf.cli_begin import add_begin_commands
from pytest_inferperf.cli_history import add_history_commands
from pytest_inferperf.cli_load import add_clock_options, add_load_commands, check_clock_command
from pytest_inferperf.cli_report import add_report_commands
from pytest_inferperf.cli_upkeep import add_upkeep_commands
from pytest_inferperf.errors import InferperfError, ResultFileError, SettingsError
from pytest_inferperf.hiding import hidden_output, hide_in, hider
from pytest_inferperf.report.selftest import report_json, report_lines
from pytest_inferperf.selftest.run import SelfTest

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown escaped, not as a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with hidden_output():
        arguments = _arguments(_parser(), argv)
    with hidden_output(also=[getattr(arguments, "api_key_env", None) or ""]):
        return _run(arguments)


def _arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    arguments, rest = parser.parse_known_args(argv)
    if "pytest_arguments" in arguments:
        arguments.pytest_arguments = [item for index, item in enumerate(rest) if item != "--" or "--" in rest[:index]]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _run(arguments: argparse.Namespace) -> int:
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
        epilog=f"{EXIT_CODES}  plan ends as pytest does\n",
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
    baseline = commands.add_parser("baseline", help="Show, compare, update, and keep in order baseline files")
    actions = baseline.add_subparsers(title="commands", metavar="COMMAND", required=True)

    add_baseline_commands(actions)
    add_upkeep_commands(actions)

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
    add_begin_commands(commands)
    add_load_commands(commands)
    add_history_commands(commands)
    add_report_commands(commands)
    return parser


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.arguments in (["-h"], ["--help"]):
        print(arguments.help(), end="")
        return 0
    # In a process of its own: this command needs no pytest for anything else.
    return subprocess.run([sys.executable, "-m", "pytest", "--inferperf-plan", *arguments.arguments]).returncode


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
        text = json.dumps(hide_in(report_json(report), hider()), indent=2, sort_keys=True) + "\n"
        write_atomic(arguments.json, text, shown=str(arguments.json), error=ResultFileError)
    return 0 if report.proven and not (arguments.strict and report.unreliable) else 1


if __name__ == "__main__":
    sys.exit(main())
