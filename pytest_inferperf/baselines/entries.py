"""Baseline entries as values, and the keys they are filed under."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from pytest_inferperf.model.case import Case
from pytest_inferperf.model.results import Repeat, slug

__all__ = [
    "LEAST_BASELINE_SESSIONS",
    "AccuracyEntry",
    "Anchor",
    "MetricBaseline",
    "Missing",
    "PerformanceEntry",
    "Provenance",
    "ScoreEntry",
    "accuracy_key",
    "other_records",
    "performance_key",
    "source_of",
]


LEAST_BASELINE_SESSIONS = 5
"""Fewer stored sessions say too little about their own spread: the plain tolerance judges, labelled uncalibrated."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a value comes from."""

    kind: Literal["measured", "published"]
    source: str = ""
    """The publication of a published value; "" for a measured one."""

    reason: str = ""
    """Why values were last replaced, and others added since, in the words of who changed them."""

    recorded: str = ""
    """Date and time of the last change, ISO 8601, UTC."""

    author: str = ""
    """Who made the last change, as git knows them."""

    commit: str = ""
    """The git commit that the values of the last change were measured at."""

    results: str = ""
    """The result file that they were read from, by digest and name; "" where the run itself recorded them."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The best value that was ever recorded, where the present one is worse: small losses must not add up unseen."""

    level: float
    recorded: str = ""
    """Date and time at which it was recorded, as far as is known; ISO 8601, UTC."""

    commit: str = ""


@dataclass(frozen=True, kw_only=True)
class MetricBaseline:
    """The stored values of one metric."""

    sessions: tuple[tuple[float, ...], ...] = ()
    """A tuple per session, a value per measured round. Empty for a published value."""

    value: float | None = None
    """The published value, an absolute limit; None for a measured metric."""

    tolerance: float | None = None
    """Relative loss that must be caught; None leaves it to the mark or the ini."""

    anchor: Anchor | None = None
    """The best level since a regression was last accepted; None where it is the present one."""

    @property
    def level(self) -> float:
        """The published value, or the median over sessions of the median over rounds."""
        if self.value is not None:
            return self.value
        return median(median(rounds) for rounds in self.sessions)


@dataclass(frozen=True, kw_only=True)
class PerformanceEntry:
    """What one case measured on one kind of hardware."""

    path: str
    """The baseline file, relative to the root folder where it can be."""

    key: str
    metrics: Mapping[str, MetricBaseline]
    """By full metric name: `ttft_ms.p99`."""

    warmup_rounds: int
    provenance: Provenance
    context: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, str | int] = field(default_factory=dict)
    """What the key is computed from: `Case.identity()` without the model."""


@dataclass(frozen=True, kw_only=True)
class ScoreEntry:
    """The answers of one precision to one task."""

    score: float
    outcomes: tuple[float, ...]
    """Per document; empty for a published score."""

    unparseable: tuple[bool, ...] | None
    provenance: Provenance
    task_sizes: tuple[int, ...] | None = None
    """See `AccuracyResult.task_sizes`."""

    context: Mapping[str, str] = field(default_factory=dict)
    repeat: Repeat | None = None
    """The engine asked twice when the score was recorded (A/A); None where it was not."""

    logprobs: Mapping[int, tuple[float, ...]] | None = None
    """Document number to the log-probabilities of its choices; see `AccuracyResult.logprobs`."""

    anchor: Anchor | None = None
    """The best score since a regression was last accepted; None where it is the present one."""


@dataclass(frozen=True, kw_only=True)
class AccuracyEntry:
    """The answers of every recorded precision to one task, as one metric scores them."""

    path: str
    key: str
    metric: str
    higher_is_better: bool
    documents_digest: str
    """"" for an entry that holds published scores only."""

    num_documents: int
    scores: Mapping[str, ScoreEntry]
    """By precision: `BF16`, `NVFP4+kv_fp8`."""

    identity: Mapping[str, str | int] = field(default_factory=dict)
    """What the key is computed from: `task` and `metric`, and `num_fewshot` and `limit` where they are set."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """There is no baseline: absence with its address, never a pass."""

    path: str
    """The file that should hold it, relative to the root folder where it can be."""

    key: str
    reason: str
    """`no such file`, `no such entry`, …"""


def source_of(label: str) -> str:
    """Name what stands in for a baseline file: `against BF16`, `against old.json`."""
    return f"against {label}"


def performance_key(case: Case) -> str:
    """Return the key of a performance entry: `NVFP4+kv_fp8-tp8-isl1024-osl1024-c64`, under open loop `…-r2.5`.

    What stands at its default (tp 1, one request per slot, seed 0) is left out.
    Raises `ValueError` for a case without a workload.
    """
    if case.workload is None:
        raise ValueError("a case without a workload has no performance baseline")
    engine, load = case.engine, case.workload
    parts = [engine.precision]
    sizes = (("tp", engine.tp), ("pp", engine.pp), ("ep", engine.ep))
    parts += [f"{name}{value}" for name, value in sizes if value != 1]
    if engine.server:
        parts.append(f"serve-{slug(engine.server)}")
    parts += load.names()
    if load.requests_per_round != load.default_requests:
        parts.append(f"n{load.requests_per_round}")
    if load.seed:
        parts.append(f"seed{load.seed}")
    return "-".join(parts)


def accuracy_key(case: Case, metric: str) -> str:
    """Return the key of an accuracy entry: `gsm8k-exact_match`, `gsm8k-fewshot5-limit250-exact_match`.

    The precision is a level below it. Raises `ValueError` for a case without a task.
    """
    if case.task is None:
        raise ValueError("a case without a task has no accuracy baseline")
    task = case.task
    parts = [task.name]
    if task.num_fewshot is not None:
        parts.append(f"fewshot{task.num_fewshot}")
    if task.limit is not None:
        parts.append(f"limit{task.limit}")
    parts.append(metric)
    return "-".join(parts)


def other_records(entry: PerformanceEntry, stored: MetricBaseline, rounds: Iterable[int]) -> str:
    """Say that the sessions of a run, of so many rounds each, read other records of a data set than those on file.

    Each round has records of its own, so that their mean lengths differ. "" where both read the same, or drew their
    prompts.
    """
    if "dataset" not in entry.identity or not stored.sessions:
        return ""
    before, now = sorted({len(one) for one in stored.sessions}), sorted(set(rounds))
    if before == now:
        return ""
    words = " and ".join(map(str, before)), " and ".join(map(str, now))
    return f"recorded with {words[0]} rounds, this run has {words[1]}: each round has other records of the data set"
