"""A linter for a folder of baselines: what is broken, out of place, out of reach, degenerate or stale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from statistics import fmean, median

from packaging.version import InvalidVersion, Version

from pytest_inferperf.baselines.cases import CollectedCase, unreachable
from pytest_inferperf.baselines.entries import AccuracyEntry, PerformanceEntry, Provenance, ScoreEntry
from pytest_inferperf.baselines.format import AccuracyFile, PerformanceFile
from pytest_inferperf.baselines.store import (
    baseline_files,
    read_accuracy,
    read_performance,
    shown_path,
)
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.model.results import slug

__all__ = ["RULES", "Finding", "Staleness", "check_folder"]

RULES = {
    "broken": "cannot be read: not JSON, a merge conflict, a duplicate key, against the schema, a key that its identity "
    "does not give, a link out of the folder",
    "stray": "no run looks for it there",
    "misplaced": "holds another model or other hardware than its path says, so no run finds it",
    "duplicate": "a second file for what another file holds",
    "degenerate": "gates nothing, or was never measured so: a score of 0, no readable answer, a tolerance of a half or "
    "more, sessions that differ more than tenfold",
    "edited": "a score that is not the mean of its own 0/1 outcomes, or of its tasks' means where they weigh alike",
    "date": "not a date, or one that has not come yet",
    "stale": "older than --max-age-days, or recorded with an older version than --min-version asks for",
    "unreachable": "no case of --cases looks it up",
}
"""What a finding is about."""

_WIDEST = 10.0
"""How many times as fast one session may be as another of the same entry."""

_LAXEST = 0.5
"""A tolerance from here on lets a half be lost."""

_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, and where."""

    shown: str
    """The file, relative to the root's parent."""

    rule: str
    message: str

    @property
    def line(self) -> str:
        """One line of a report."""
        text = self.message if self.message.startswith(self.shown) else f"{self.shown}: {self.message}"
        return f"{text} [{self.rule}]"


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """When a measured value is too old to be trusted."""

    now: datetime
    max_age_days: float | None = None
    min_versions: tuple[tuple[str, str], ...] = ()
    """Names of the context (`torch`, `driver`) and the oldest version that will do."""


def check_folder(
    root: Path, *, staleness: Staleness, cases: Sequence[CollectedCase] | None = None
) -> tuple[list[Finding], int]:
    """Check every file below `root`; return the findings in the order of the files, and the number of files.

    `cases` are those of a full selection. Raises `BaselineError` where the folder itself leads elsewhere.
    """
    performance, accuracy = baseline_files(root)
    findings: list[Finding] = list(_strays(root, {*performance, *accuracy}))
    broken = False
    places: dict[str, str] = {}
    for path in performance:
        shown = shown_path(root, path)
        try:
            file = read_performance(path, shown=shown)
        except BaselineError as problem:
            findings.append(Finding(shown=shown, rule="broken", message=str(problem)))
            broken = True
            continue
        right = root / "performance" / file.hardware.slug / f"{slug(file.model)}.json"
        findings += _place(root, path, shown, right, places)
        findings += _check_performance(file, shown, staleness)
    for path in accuracy:
        shown = shown_path(root, path)
        try:
            answers = read_accuracy(path, shown=shown)
        except BaselineError as problem:
            findings.append(Finding(shown=shown, rule="broken", message=str(problem)))
            broken = True
            continue
        findings += _place(root, path, shown, root / "accuracy" / f"{slug(answers.model)}.json", places)
        findings += _check_accuracy(answers, shown, staleness)
    if cases is not None and not broken:
        findings += [
            Finding(shown=item.shown, rule="unreachable", message=f"{item.label}: no collected case looks it up")
            for item in unreachable(root, cases)
        ]
    return sorted(findings, key=lambda item: item.shown), len(performance) + len(accuracy)


def _strays(root: Path, known: set[Path]) -> Iterator[Finding]:
    for path in sorted(root.rglob("*")):
        if path.suffix in (".json", ".tmp") and path not in known and not path.is_dir():
            where = "baselines lie in performance/HARDWARE/MODEL.json and accuracy/MODEL.json"
            yield Finding(shown=shown_path(root, path), rule="stray", message=f"no run looks for it here: {where}")


def _place(root: Path, path: Path, shown: str, right: Path, places: dict[str, str]) -> list[Finding]:
    if path == right:
        return []
    wanted = shown_path(root, right)
    if right.exists() or wanted in places:
        message = f"holds what belongs into {places.get(wanted, wanted)}, which exists too; merge the two"
        return [Finding(shown=shown, rule="duplicate", message=message)]
    places[wanted] = shown
    return [Finding(shown=shown, rule="misplaced", message=f"no run finds it here; it belongs into {wanted}")]


def _check_performance(file: PerformanceFile, shown: str, staleness: Staleness) -> Iterator[Finding]:
    for key, entry in sorted(file.entries.items()):
        for rule, message in (*_sessions(entry), *_age(entry.provenance, entry.context, staleness)):
            yield Finding(shown=shown, rule=rule, message=f"{key}: {message}")


def _check_accuracy(file: AccuracyFile, shown: str, staleness: Staleness) -> Iterator[Finding]:
    for key, entry in sorted(file.tasks.items()):
        for precision, score in sorted(entry.scores.items()):
            for rule, message in (*_answers(entry, score), *_age(score.provenance, score.context, staleness)):
                yield Finding(shown=shown, rule=rule, message=f"{key} {precision}: {message}")


def _sessions(entry: PerformanceEntry) -> Iterator[tuple[str, str]]:
    for name, item in sorted(entry.metrics.items()):
        levels = [median(rounds) for rounds in item.sessions]
        if levels and max(levels) > _WIDEST * min(levels):
            yield (
                "degenerate",
                f"{name}: sessions from {min(levels):g} to {max(levels):g} are no repetitions of one run",
            )
        if item.tolerance is not None and item.tolerance >= _LAXEST:
            yield "degenerate", f"{name}: a tolerance of {100 * item.tolerance:g} % gates next to nothing"


def _answers(entry: AccuracyEntry, score: ScoreEntry) -> Iterator[tuple[str, str]]:
    if entry.higher_is_better and score.score <= 0:
        yield "degenerate", f"a score of {score.score:g}: nothing can be lost against it"
    if score.unparseable and all(score.unparseable):
        yield "degenerate", "no answer could be read"
    binary = bool(score.outcomes) and all(value in (0.0, 1.0) for value in score.outcomes)
    if binary and entry.higher_is_better and not math.isclose(_mean(score), score.score, abs_tol=_ROUNDING):
        yield "edited", f"the score is {score.score:g}, but its outcomes give {_mean(score):g}"


def _mean(score: ScoreEntry) -> float:
    """Return the mean over documents, or over the tasks of a group that weigh alike."""
    if score.task_sizes is None:
        return fmean(score.outcomes)
    outcomes = iter(score.outcomes)
    return fmean(fmean(islice(outcomes, size)) for size in score.task_sizes)


def _age(provenance: Provenance, context: Mapping[str, str], staleness: Staleness) -> Iterator[tuple[str, str]]:
    if provenance.recorded or provenance.kind == "measured":
        recorded = _date(provenance.recorded)
        if recorded is None:
            yield "date", f"recorded {provenance.recorded!r} is not a date (ISO 8601)"
        elif recorded > staleness.now + timedelta(days=1):
            yield "date", f"recorded {provenance.recorded} has not come yet: a wrong clock, or an edit"
        elif staleness.max_age_days is not None and staleness.now - recorded > timedelta(days=staleness.max_age_days):
            days = (staleness.now - recorded).days
            yield "stale", f"recorded {days} days ago; at most {staleness.max_age_days:g} are allowed"
    for name, least in staleness.min_versions:
        found = context.get(name)
        if found is not None and _version(found) < _version(least):
            yield "stale", f"recorded with {name} {found}; {least} or newer is asked for"


def _date(text: str) -> datetime | None:
    try:
        # Python 3.10 reads no "Z".
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        # A commit or a name has no order: it is older than whatever is asked for.
        return Version("0.dev0")
