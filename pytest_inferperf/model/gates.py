"""Gates as values: one assertion each, made from a mark and judged after the body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_inferperf.model.case import ReferenceEngine
from pytest_inferperf.model.metrics import MetricRef, Slo

__all__ = [
    "NO_RULES",
    "AccuracyFloor",
    "AccuracyLossCeiling",
    "ErrorRateCeiling",
    "FrontierFloor",
    "Gate",
    "MeasureRules",
    "PerformanceGate",
    "SpeedupFloor",
    "rules_of",
]


@dataclass(frozen=True, kw_only=True)
class PerformanceGate:
    """A floor (higher is better) or a ceiling (lower is better) on one metric."""

    metric: MetricRef
    """The row of the metric table; it alone knows the direction."""

    limit: float | None = None
    """An absolute limit in the metric's unit; None takes it from the baseline file."""

    tolerance: float | None = None
    """Relative loss against the baseline that must be caught; None takes the entry's, else the ini's."""

    @property
    def name(self) -> str:
        """What a report calls the gate."""
        return self.metric.name


@dataclass(frozen=True, kw_only=True)
class ErrorRateCeiling:
    """The share of requests that may fail. Without it none may: a run with a failed request is INVALID."""

    share: float
    """Largest share of all requests of all rounds, 0 to below 1."""

    @property
    def name(self) -> str:
        """What a report calls the gate."""
        return "error_rate"


@dataclass(frozen=True, kw_only=True)
class SpeedupFloor:
    """How many times as good as a reference engine the candidate must be, the two measured interleaved."""

    metric: MetricRef
    reference: ReferenceEngine
    ratio: float = 1.0
    """Above 0. Where lower is better, 1.5 times as good is the reference divided by 1.5."""

    tolerance: float | None = None
    """Relative loss against `ratio` times the reference that must be caught; None takes the ini's."""

    @property
    def name(self) -> str:
        """What a report calls the gate."""
        return f"{self.metric.name} vs {self.reference.label}"


@dataclass(frozen=True, kw_only=True)
class FrontierFloor:
    """How far the frontier of a sweep may fall: two metrics, one traded against the other, judged at all points as one."""

    metric: MetricRef
    over: MetricRef
    tolerance: float | None = None
    """Relative loss that must be caught, of either metric; None takes the baseline entry's, else the ini's."""

    points: int
    """How many loads the sweep has: they share the error of the gate."""

    @property
    def name(self) -> str:
        """What a report calls the gate."""
        return f"{self.metric.name} over {self.over.name}"


@dataclass(frozen=True, kw_only=True)
class AccuracyLossCeiling:
    """How much worse than a stored reference the candidate may answer, question by question."""

    reference: str
    """The precision whose stored outcomes are the reference: `BF16`, `NVFP4+kv_fp8`."""

    points: float | None = None
    """Largest loss in percentage points, for scores between 0 and 1."""

    percent: float | None = None
    """Largest loss in percent of the reference score, for any other score (perplexity, bits per byte)."""

    unparseable_points: float | None = None
    """Largest rise of the share of unparseable answers, percentage points; None takes `points`, else `percent`."""

    metric: str | None = None
    """An lm-eval metric of the task; None takes the task's first."""

    @property
    def name(self) -> str:
        """What a report calls the gate."""
        return f"{self.metric or 'accuracy'} loss vs {self.reference}"


@dataclass(frozen=True, kw_only=True)
class AccuracyFloor:
    """An absolute floor on a score between 0 and 1."""

    points: float
    """Smallest score in percentage points: 61.5 means a score of 0.615."""

    metric: str | None = None

    @property
    def name(self) -> str:
        """What a report calls the gate."""
        return self.metric or "accuracy"


Gate = PerformanceGate | FrontierFloor | ErrorRateCeiling | SpeedupFloor | AccuracyLossCeiling | AccuracyFloor


@dataclass(frozen=True, kw_only=True)
class MeasureRules:
    """What the gates of a case ask of its measurement."""

    slos: tuple[Slo, ...] = ()
    """A goodput is counted under each."""

    max_failed_share: float = 0.0
    """Share of requests that may fail before no figure of the run can be trusted."""

    judges_failures: bool = False
    """Whether a gate judges failed requests, so that a round goes on however many fail; with no success it is INVALID."""


NO_RULES = MeasureRules()


def rules_of(gates: Sequence[Gate]) -> MeasureRules:
    """Collect what gates ask of the measurement that they judge."""
    refs = [gate.metric for gate in gates if isinstance(gate, PerformanceGate | SpeedupFloor | FrontierFloor)]
    refs += [gate.over for gate in gates if isinstance(gate, FrontierFloor)]
    ceilings = [gate.share for gate in gates if isinstance(gate, ErrorRateCeiling)]
    return MeasureRules(
        slos=tuple(dict.fromkeys(ref.slo for ref in refs if ref.slo)),
        max_failed_share=min(ceilings, default=0.0),
        judges_failures=bool(ceilings),
    )
