"""What was measured, as data: rounds, sessions, per-sample outcomes, and the machine they came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Literal

from pytest_inferperf.model.case import Case, ReferenceEngine
from pytest_inferperf.model.workload import Workload

__all__ = [
    "UNVERIFIED",
    "Abba",
    "AccuracyResult",
    "Answered",
    "CaseResult",
    "Comparison",
    "EngineInfo",
    "Flip",
    "Flips",
    "Frontier",
    "Hardware",
    "PerformanceResult",
    "Point",
    "Repeat",
    "Round",
    "Session",
    "TurnFigures",
    "slug",
]


UNVERIFIED = "unverified"
"""A format that nobody outside of the server can read back: it runs what it runs, and the case says what was asked."""


def slug(name: str) -> str:
    """Turn a name into one path component: lower case letters, digits, `.` and `-`, never starting with a dot."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "unnamed"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The devices an engine runs on: the part of a performance baseline's identity that a mark does not say."""

    name: str
    """Exact product name: `NVIDIA B200`, `AMD EPYC 7763`."""

    count: int
    """Devices the engine uses: GPUs, or CPU cores."""

    kind: Literal["cpu", "gpu"]

    nodes: int = 1
    """Machines that the devices are in."""

    @property
    def slug(self) -> str:
        """The folder its baselines live in: `nvidia-b200-8x`, `amd-epyc-2x`, `nvidia-gb200-8x-2nodes`."""
        return f"{slug(self.name)}-{self.count}x" + (f"-{self.nodes}nodes" if self.nodes > 1 else "")

    @property
    def words(self) -> str:
        """What a message calls it: `8 x NVIDIA B200`, `8 x NVIDIA GB200 on 2 nodes`."""
        return f"{self.count} x {self.name}" + (f" on {self.nodes} nodes" if self.nodes > 1 else "")

    @property
    def label(self) -> str:
        """What a report calls it: `NVIDIA B200 x8`, `NVIDIA GB200 x8 on 2 nodes`."""
        return f"{self.name} x{self.count}" + (f" on {self.nodes} nodes" if self.nodes > 1 else "")

    def to_json(self) -> dict[str, str | int]:
        """Return it as plain data; one node, as most hardware has, is left out."""
        found: dict[str, str | int] = {"name": self.name, "count": self.count, "kind": self.kind}
        return found | ({"nodes": self.nodes} if self.nodes > 1 else {})


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What the engine says it really is, read back after loading."""

    backend: str
    hardware: Hardware
    quant_algo: str | None
    """As the loaded checkpoint says; None for plain weights, `UNVERIFIED` where only the server could know."""

    kv_cache_quant_algo: str | None
    compute_dtype: str
    simulated: bool
    """True where the number format is emulated: accuracy is real, speed is not that of the format's hardware."""

    max_model_len: int
    checkpoint: str
    """Folder the weights were read from."""

    checkpoint_hash: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """The resolved backend options."""

    versions: Mapping[str, str] = field(default_factory=dict)
    load_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TurnFigures:
    """The requests of a round that were the same turn of their conversations."""

    turn: int
    """From 1."""

    requests: int
    failed: int
    """Those that nobody could ask, since the turn before them failed, included."""

    input_tokens: float | None
    """Mean of those that were answered, history included; None where no one was, or nobody counts them."""

    ttft_ms_p50: float | None
    ttft_ms_p99: float | None
    """None where no one was answered."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One pass of the workload."""

    duration_s: float
    num_requests: int
    num_failed_requests: int
    input_tokens: int
    output_tokens: int
    metrics: Mapping[str, float]
    """Full metric name (`ttft_ms.p99`) to value. A metric that could not be measured is absent."""

    turns: tuple[TurnFigures, ...] = ()
    """Of conversations, in order; empty where there was no more than one turn."""

    records: Mapping[str, Any] | None = None
    """The requests that a server answered, packed: `of`, how many there were, and `rows`, all or 10,000 of them."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One launch of the engine process: the unit of replication."""

    rounds: tuple[Round, ...]
    warmup_rounds: int
    telemetry: Mapping[str, float] = field(default_factory=dict)
    """What the machine did meanwhile: figure (`cpu.others`, `gpu0.sm_clock`) to value. What is not known is absent."""


@dataclass(frozen=True, kw_only=True)
class PerformanceResult:
    """All sessions measured for one case."""

    sessions: tuple[Session, ...]

    @property
    def num_failed_requests(self) -> int:
        """Requests that did not finish, over all rounds."""
        return sum(item.num_failed_requests for session in self.sessions for item in session.rounds)

    def rounds(self, metric: str) -> list[list[float]]:
        """Values of one metric: a list per session, a value per round. Empty lists where it was not measured."""
        return [
            [item.metrics[metric] for item in session.rounds if metric in item.metrics] for session in self.sessions
        ]

    def median(self, metric: str) -> float | None:
        """The median over sessions of the median over rounds; None when the metric was not measured."""
        sessions = [median(values) for values in self.rounds(metric) if values]
        return median(sessions) if sessions else None

    def __getitem__(self, metric: str) -> float:
        """The median of one metric. Raises `KeyError` naming what was measured."""
        value = self.median(metric)
        if value is None:
            known = sorted({name for session in self.sessions for item in session.rounds for name in item.metrics})
            raise KeyError(f"{metric!r} was not measured; measured: {', '.join(known)}")
        return value


@dataclass(frozen=True, kw_only=True)
class Point:
    """What was measured at one load of a sweep."""

    workload: Workload
    performance: PerformanceResult

    def __getitem__(self, metric: str) -> float:
        """The median of one metric. Raises `KeyError` naming what was measured."""
        return self.performance[metric]


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """All points of a sweep, in the order of the mark. Every session measured every point, unless the run was cut short."""

    points: tuple[Point, ...]

    @property
    def num_failed_requests(self) -> int:
        """Requests that did not finish, over all points."""
        return sum(item.performance.num_failed_requests for item in self.points)


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Some documents asked a second time of the same engine, in other batches (A/A): what its own noise flips."""

    questions: int
    flips: int
    """Documents whose outcome was another one the second time."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A document as it was asked and answered, cut to a length that people read. Nothing is judged by it."""

    prompt: str
    expected: str
    answer: str
    choices: tuple[str, ...] = ()
    """What there was to choose from; empty where the answer is generated."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A document that the candidate answered right and the reference wrong, or the other way round."""

    document: int
    """Its number in the task."""

    lost: bool
    """Whether the reference was right and the candidate is wrong; a gain where False."""

    prompt: str
    expected: str
    answer: str
    """The candidate's."""

    reference_answer: str | None = None
    """None where only whether it was right is stored."""


@dataclass(frozen=True, kw_only=True)
class Flips:
    """The documents that flipped against one reference: all are counted, some are shown."""

    reference: str
    lost: int
    gained: int
    shown: tuple[Flip, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AccuracyResult:
    """The answers to one task: a score, and the outcome of every document."""

    task: str
    metric: str
    """The lm-eval metric that `score` and `outcomes` are about."""

    higher_is_better: bool
    score: float
    """As lm-eval aggregates it: 0.658 for accuracy, 12.3 for a perplexity."""

    outcomes: tuple[float, ...]
    """One per document asked, in document order: 0/1, or the document's own value of the metric."""

    documents_digest: str
    """SHA-256 over all documents in order, asked or not (prompt and target): equal digests mean the same questions."""

    asked: tuple[bool, ...] | None = None
    """Per document of the task, whether it was asked; None where all were."""

    sequential: bool = False
    """Whether someone looked at the answers as they came in, and could have stopped."""

    task_sizes: tuple[int, ...] | None = None
    """Documents asked of each task of a group whose tasks weigh alike (`weight_by_size: false`), in the order of the
    outcomes; None where each document weighs alike."""

    groups: tuple[int, ...] | None = None
    """Per document of the task, asked or not, the number of its group (`group_by`); None where each stands alone."""

    logprobs: Mapping[int, tuple[float, ...]] | None = None
    """Document number to the log-probability (nats, normalized) of each of its choices, for the first documents asked;
    None where the task has no choices to compare."""

    repeat: Repeat | None = None
    """The A/A comparison; None where nothing was asked twice."""

    unparseable: tuple[bool, ...] | None = None
    """Per document asked, whether no answer could be read from the output; None where nothing is parsed."""

    scores: Mapping[str, float] = field(default_factory=dict)
    """Every metric lm-eval reports for the task."""

    duration_s: float = 0.0
    texts: Mapping[int, Answered] | None = field(default=None, compare=False, repr=False)
    """Document number to its texts, for the documents asked. Never written: of them, a result file has `flips`."""

    flips: tuple[Flips, ...] = ()
    """What flipped against each reference that it was judged by."""

    @property
    def planned(self) -> int:
        """Documents of the task, asked or not."""
        return len(self.outcomes) if self.asked is None else len(self.asked)

    @property
    def is_partial(self) -> bool:
        """Whether the evaluation ended before every document was asked."""
        return self.asked is not None

    @property
    def is_binary(self) -> bool:
        """Whether every outcome is 0 or 1."""
        return set(self.outcomes) <= {0.0, 1.0}


@dataclass(frozen=True, kw_only=True)
class Abba:
    """One block of rounds of two engines, measured side by side on the same prompts: reference A, candidate B."""

    reference: tuple[Round, ...]
    candidate: tuple[Round, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a reference engine did in the same run: rounds interleaved with the candidate's, or its answers."""

    reference: ReferenceEngine
    engine: EngineInfo
    """What the reference engine says it really is."""

    blocks: tuple[Abba, ...] = ()
    warmup_rounds: int = 0
    """Warm-up rounds of each engine: once before the first block, or with `reload` after every launch."""

    accuracy: AccuracyResult | None = None
    telemetry: tuple[Mapping[str, float], ...] = ()
    """What the machine did meanwhile, as in `Session.telemetry`: once for all blocks, or with `reload` for each launch."""

    @property
    def candidate(self) -> PerformanceResult:
        """The candidate's rounds: one session, or with `reload` one of each block."""
        rounds = [item.candidate for item in self.blocks]
        launches = rounds if self.reference.reload else [tuple(item for block in rounds for item in block)]
        return PerformanceResult(
            sessions=tuple(Session(rounds=item, warmup_rounds=self.warmup_rounds) for item in launches)
        )

    @property
    def num_failed_requests(self) -> int:
        """Requests of either engine that did not finish."""
        return sum(item.num_failed_requests for block in self.blocks for item in (*block.reference, *block.candidate))


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where an engine had its place on a cluster. All tests that it ran have this one."""

    engine: str
    """Its precision and name."""

    node: str
    """Name of the node, and Ray's of it: `gpu-07 (3f2a9c01)`."""

    gpus: int
    asked: str
    """Date and time, ISO 8601, UTC, at which it asked for its place."""

    granted: str
    """When it had it."""

    waited_s: float
    shared: bool = False
    """Whether others were let onto the node; False where all of it was taken."""


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Everything one test measured, before it is judged."""

    case: Case
    engine: EngineInfo | None = None
    performance: PerformanceResult | None = None
    frontier: Frontier | None = None
    """What a sweep measured, in the place of `performance`."""

    accuracy: AccuracyResult | None = None
    comparisons: tuple[Comparison, ...] = ()
    """Engines that ran beside the candidate: of speedup gates, or what `--inferperf-against` names."""

    invalid: str = ""
    """Why the run cannot be trusted; "" when it can."""

    context: Mapping[str, str] = field(default_factory=dict)
    """Versions, driver, commit, date: recorded and shown, never part of identity."""

    notes: tuple[str, ...] = ()
    """What happened that a reader must know, a sentence each: nodes that were lost, and who took over."""

    placement: Placement | None = None
    """Where the engine ran on a cluster, and how long it waited for its place; None where it ran without one."""

    def points(self) -> tuple[CaseResult, ...]:
        """Return the result of each point of a sweep, as of a case of its own; itself where nothing was swept."""
        if self.frontier is None:
            return (self,)
        return tuple(
            replace(
                self,
                case=replace(self.case, workload=point.workload),
                performance=point.performance,
                frontier=None,
            )
            for point in self.frontier.points
        )
