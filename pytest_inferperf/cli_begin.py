"""`inferperf init` and `inferperf doctor`: begin in a repository of one's own, and know what the machine can run."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from pytest_inferperf.doctor import Diagnosis, diagnose, diagnosis_json
from pytest_inferperf.report.table import table
from pytest_inferperf.scaffold import CI, DEFAULT_MODEL, scaffold

__all__ = ["add_begin_commands"]


def add_begin_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that one begins with."""
    init = commands.add_parser(
        "init",
        help="Make a suite, a folder of baselines, settings and a CI job in a repository of your own",
        description="Make a suite, a folder of baselines, pytest's settings and a CI job. What exists is left as it is.",
    )
    init.add_argument("folder", metavar="DIR", type=Path, nargs="?", default=Path(), help="The repository (default: .)")
    init.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"Hub id, or folder in Hugging Face layout (default: {DEFAULT_MODEL})"
    )
    init.add_argument("--ci", choices=(*CI, "none"), default="github", help="CI system of the job (default: github)")
    init.set_defaults(run=_init)

    doctor = commands.add_parser(
        "doctor",
        help="Say what this machine can run, what is missing, and what to do about it",
        description="Say what this machine can run, what is missing, and what to do about it. Nothing is built or loaded.",
        epilog="exit status:\n  0  a run can begin\n  1  something is missing that a run cannot do without",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--json", action="store_true", help="Print JSON")
    doctor.set_defaults(run=_doctor)


def _init(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    made = scaffold(folder, model=arguments.model, ci=() if arguments.ci == "none" else (arguments.ci,))
    for item in made:
        print(f"{'made' if item.made else 'kept'}  {item.path}{f'  ({item.note})' if item.note else ''}")
    steps = [] if folder == Path() else [f"cd {shlex.quote(str(folder))}"]
    steps += ["inferperf doctor", "inferperf plan", "pytest --inferperf-update=new", "git add suites baselines"]
    print("\n".join(["", "Next:", *(f"  {step}" for step in steps)]))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    found = diagnose(Path.cwd())
    report = diagnosis_json(found)
    print(json.dumps(report, indent=2) if arguments.json else "\n".join(_lines(found)))
    return 0 if report["ok"] else 1


def _lines(found: list[Diagnosis]) -> list[str]:
    rows = [(item.state, item.name, item.found, f"-> {item.next_step}" if item.next_step else "") for item in found]
    missing = [item.name for item in found if item.state == "missing"]
    last = f"Missing: {', '.join(missing)}." if missing else "A run can begin."
    return [*table(rows, right=set(), indent=0), "", last]
