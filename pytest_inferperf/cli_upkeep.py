"""`inferperf baseline prune | migrate | check`: keep a folder of baselines in order."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from pytest_inferperf.baselines.cases import CollectedCases, read_cases
from pytest_inferperf.baselines.check import RULES, Staleness, check_folder
from pytest_inferperf.baselines.patch import write_patch
from pytest_inferperf.baselines.update import apply_update
from pytest_inferperf.baselines.upkeep import plan_migration, plan_prune
from pytest_inferperf.errors import SettingsError, UpdateRefused
from pytest_inferperf.report.lines import plural

__all__ = ["add_upkeep_commands"]

_PATCH_HELP = "Write what would change to FILE, for git apply; touch nothing"
_CASES_HELP = "What pytest --collect-only --inferperf-cases=FILE wrote"


def add_upkeep_commands(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that keep a folder in order to those of `inferperf baseline`."""
    prune = actions.add_parser(
        "prune",
        help="Remove entries that no collected case can reach",
        usage="inferperf baseline prune [--root DIR] [--cases FILE] [--patch FILE] [PYTEST ARGUMENTS...]",
        description="Collect the whole suite (pytest --collect-only), and remove every baseline that none of its cases looks"
        " up, on whatever hardware. Whatever is not listed here goes to pytest: the folders of the suites, above all.",
        epilog="exit status:\n  0  done, or nothing to do\n  1  refused: the selection is not full (-k, -m, a node id, an "
        "error or a skip at collection)\n  2  bad usage, or a file that cannot be read or written",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_root(prune)
    prune.add_argument("--cases", metavar="FILE", type=Path, help=f"{_CASES_HELP}, instead of collecting")
    prune.add_argument("--patch", metavar="FILE", type=Path, help=_PATCH_HELP)
    prune.set_defaults(run=_prune, pytest_arguments=())

    migrate = actions.add_parser(
        "migrate",
        help="Write every file as this version writes it",
        description="Write every baseline file in the newest schema, sorted, one value per line. Values stay what they are.",
    )
    _add_root(migrate)
    migrate.add_argument("--patch", metavar="FILE", type=Path, help=_PATCH_HELP)
    migrate.set_defaults(run=_migrate)

    rules = "\n".join(f"  {name:<12} {text}" for name, text in RULES.items())
    check = actions.add_parser(
        "check",
        help="Look for what is wrong with a folder of baselines",
        description=f"Look for what is wrong with a folder of baselines:\n{rules}",
        epilog="exit status:\n  0  nothing found\n  1  something found\n  2  bad usage, or no such folder",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_root(check)
    check.add_argument("--cases", metavar="FILE", type=Path, help=_CASES_HELP)
    check.add_argument("--max-age-days", metavar="DAYS", type=float, help="Oldest baseline that is not stale")
    check.add_argument(
        "--min-version",
        metavar="NAME=VERSION",
        action="append",
        default=[],
        help="Oldest version in the context of a baseline that is not stale (repeatable), such as torch=2.13",
    )
    check.set_defaults(run=_check)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", type=Path, default=Path("baselines"), help="Root folder of the baselines (default: baselines)"
    )


def _root(arguments: argparse.Namespace) -> Path:
    root: Path = arguments.root
    if not root.is_dir():
        raise SettingsError(f"{root}: no such folder. Name the root folder of the baselines with --root.")
    return root


def _prune(arguments: argparse.Namespace) -> int:
    root = _root(arguments)
    if arguments.cases is not None and arguments.pytest_arguments:
        raise SettingsError("--cases goes without pytest arguments: the cases in the file are all there are.")
    found = read_cases(arguments.cases) if arguments.cases is not None else _collect(arguments.pytest_arguments)
    try:
        plan, removed = plan_prune(root, found)
    except UpdateRefused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 1
    for path in dict.fromkeys(item.shown for item in removed):
        print("\n".join([path, *(f"  {item.label}" for item in removed if item.shown == path)]))
    if not removed:
        print(f"Nothing to prune in {root}: {plural(len(found.cases), 'case')} reach all of it.")
    elif arguments.patch is not None:
        write_patch(plan, arguments.patch)
        print(f"\nNothing was removed. To apply: git apply {arguments.patch}")
    else:
        apply_update(plan)
        print(f"\n{plural(len(removed), 'value')} removed. Review with git diff {root}, then commit.")
    return 0


def _collect(arguments: list[str]) -> CollectedCases:
    """Let pytest collect, in a process of its own. Raises `SettingsError` where it cannot."""
    with tempfile.TemporaryDirectory(prefix="inferperf-") as folder:
        path = Path(folder) / "cases.json"
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", f"--inferperf-cases={path}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace")
        if not path.exists():
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
            raise SettingsError(f"pytest collected nothing (exit status {done.returncode}). It said:\n{said}")
        return read_cases(path)


def _migrate(arguments: argparse.Namespace) -> int:
    root = _root(arguments)
    plan = plan_migration(root)
    for file in plan.files:
        print(file.shown)
    if not plan.files:
        print(f"Every file in {root} is as this version writes it.")
    elif arguments.patch is not None:
        write_patch(plan, arguments.patch)
        print(f"\nNothing was written. To apply: git apply {arguments.patch}")
    else:
        apply_update(plan)
        print(f"\n{plural(len(plan.files), 'file')} rewritten. Review with git diff {root}, then commit.")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    root = _root(arguments)
    if arguments.max_age_days is not None and not arguments.max_age_days > 0:
        raise SettingsError(f"--max-age-days {arguments.max_age_days:g} must be above 0.")
    found = read_cases(arguments.cases) if arguments.cases is not None else None
    if found is not None and found.partial:
        raise SettingsError(
            f"{arguments.cases}: {found.partial}: what is unreachable is known of a full selection only."
        )
    staleness = Staleness(
        now=datetime.now(timezone.utc),
        max_age_days=arguments.max_age_days,
        min_versions=tuple(map(_min_version, arguments.min_version)),
    )
    findings, files = check_folder(root, staleness=staleness, cases=None if found is None else found.cases)
    for item in findings:
        print(item.line)
    print(f"{plural(files, 'file')} in {root}: {plural(len(findings), 'finding') if findings else 'nothing found'}.")
    return 1 if findings else 0


def _min_version(text: str) -> tuple[str, str]:
    from packaging.version import InvalidVersion, Version

    name, equals, version = text.partition("=")
    try:
        Version(version)
    except InvalidVersion:
        equals = ""
    if not name or not equals:
        raise SettingsError(f"--min-version {text!r}: write NAME=VERSION, such as torch=2.13.")
    return name, version
