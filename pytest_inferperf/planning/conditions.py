"""What a plan is made of: the collected tests, and what it is made for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pytest_inferperf.baselines.against import RunReference
from pytest_inferperf.baselines.past import Past
from pytest_inferperf.engines.hardware import Gpu
from pytest_inferperf.model.case import Case, EngineSpec, GpuRequirement, ReferenceEngine
from pytest_inferperf.model.gates import AccuracyLossCeiling, Gate, SpeedupFloor

__all__ = ["Conditions", "PlannedTest"]


@dataclass(frozen=True, kw_only=True)
class PlannedTest:
    """One collected test, as the plan needs it."""

    nodeid: str
    engine: EngineSpec
    case: Case | None = None
    """None for a test that only takes the engine."""

    gates: tuple[Gate, ...] = ()
    need: GpuRequirement | None = None
    by_hook: bool = False
    """Whether a hook is asked for the engine before the shipped backends are."""

    against: ReferenceEngine | None = None
    """The engine that answers in the place of stored answers; None where the run has none."""

    @property
    def speedups(self) -> tuple[ReferenceEngine, ...]:
        """The engines that blocks are measured against, each once."""
        return tuple(dict.fromkeys(gate.reference for gate in self.gates if isinstance(gate, SpeedupFloor)))

    @property
    def asks_reference(self) -> bool:
        """Whether the reference engine has to answer the task."""
        return self.against is not None and any(isinstance(gate, AccuracyLossCeiling) for gate in self.gates)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a plan is made for: the machine, the baselines, and how gates judge."""

    baselines: Path
    """Folder of the baseline files."""

    cache_dir: Path | None = None
    """Folder of built checkpoints; None for the user's cache folder."""

    shared_cache: str = ""
    """Address where machines share their checkpoints; "" for none."""

    gpus: tuple[Gpu, ...] = ()
    require_gpu: bool = False
    tolerance: float = 0.05
    alpha: float = 0.05
    power: float = 0.9
    """The probability with which a loss is to be found."""

    past: Past = field(default_factory=Past)
    past_shown: str = ""
    """Where the past results were read from, for the reader."""

    against: RunReference | None = None
    """A run that stands in for the baseline files."""

    against_engine: str = ""
    """The label of the engine that stands in for them."""
