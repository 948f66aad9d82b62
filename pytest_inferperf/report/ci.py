"""What a CI system reads of a run: GitHub's job summary and annotations, GitLab's code quality and metrics reports."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from pytest_inferperf.model.verdicts import Status
from pytest_inferperf.report.lines import number
from pytest_inferperf.report.markdown import markdown
from pytest_inferperf.report.run import CaseReport, RunReport

__all__ = ["CODE_QUALITY", "METRICS", "code_quality", "open_metrics", "workflow_commands", "write_ci_files"]

CODE_QUALITY = "inferperf-code-quality.json"
METRICS = "inferperf-metrics.txt"
_MOST_ANNOTATIONS = 10
"""GitHub shows ten errors and ten warnings of a step."""

_LEVEL = {Status.FAIL: "error", Status.INVALID: "error", Status.INCONCLUSIVE: "warning"}
_SEVERITY = {Status.FAIL: "critical", Status.INVALID: "major", Status.INCONCLUSIVE: "minor"}


def write_ci_files(report: RunReport, environ: Mapping[str, str], root: Path) -> list[str]:
    """Write what the CI system of `environ` reads, and return the lines that it reads from the log.

    Outside CI nothing is written. Raises `OSError` where a file cannot be written.
    """
    lines: list[str] = []
    summary = environ.get("GITHUB_STEP_SUMMARY", "")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as stream:
            stream.write(markdown(report) + "\n")
    if environ.get("GITHUB_ACTIONS", "").lower() == "true":
        lines += workflow_commands(report)
    if environ.get("GITLAB_CI", "").lower() == "true":
        folder = Path(environ.get("CI_PROJECT_DIR") or root)
        (folder / CODE_QUALITY).write_text(code_quality(report), encoding="utf-8")
        (folder / METRICS).write_text(open_metrics(report), encoding="utf-8")
    return lines


def workflow_commands(report: RunReport) -> list[str]:
    """Return a workflow command of GitHub for each gate that did not pass, and for each invalid test."""
    found = []
    for case in report.worst_first:
        for title, message, status in _problems(case):
            place = f"file={_property(_file(case))},title={_property(title)}"
            found.append(f"::{_LEVEL[status]} {place}::{_data(f'{case.nodeid}: {message}')}")
    return found[:_MOST_ANNOTATIONS]


def code_quality(report: RunReport) -> str:
    """Return GitLab's code quality report: an issue for each gate that did not pass."""
    issues = [
        {
            "description": f"{case.nodeid}: {title}: {message}",
            "check_name": "pytest-inferperf",
            # The same gate is the same issue in the next run, whatever its figures.
            "fingerprint": hashlib.sha256(f"{case.nodeid}\0{title}".encode()).hexdigest(),
            "severity": _SEVERITY[status],
            "location": {"path": _file(case), "lines": {"begin": 1}},
        }
        for case in report.cases
        for title, message, status in _problems(case)
    ]
    return json.dumps(issues, indent=2) + "\n"


def open_metrics(report: RunReport) -> str:
    """Return GitLab's metrics report, which merge requests compare: every metric of every test, in OpenMetrics."""
    lines = []
    for case in report.cases:
        for name, value in case.metrics.items():
            label = re.sub(r"[^a-zA-Z0-9_]", "_", name)
            lines.append(f"inferperf_{label}{{test={_quoted(case.nodeid)}}} {value!r}")
    return "".join(f"{line}\n" for line in [*lines, "# EOF"])


def _problems(case: CaseReport) -> list[tuple[str, str, Status]]:
    found: list[tuple[str, str, Status]] = [
        (item.gate, item.reason or f"measured {number(item.measured)}", item.status)
        for item in case.verdicts
        if item.status is not Status.PASS
    ]
    if case.invalid and not found:
        found = [("invalid run", case.invalid, Status.INVALID)]
    return found


def _file(case: CaseReport) -> str:
    return case.nodeid.partition("::")[0]


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", " ").replace("\n", "\\n")
    return f'"{escaped}"'
