"""Gates as values: one assertion each, made from a mark and judged after the body."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_inferperf.model.case import ReferenceEngine
from pytest_inferperf.model.metrics import MetricRef

__all__ = ["AccuracyFloor", "AccuracyLossCeiling", "Gate", "PerformanceGate", "SpeedupFloor"]


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


Gate = PerformanceGate | SpeedupFloor | AccuracyLossCeiling | AccuracyFloor
