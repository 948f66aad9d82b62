"""A plan as values: what a run would build, load and judge, and how long that takes."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

__all__ = ["CasePlan", "CheckpointOutlook", "EnginePlan", "Foresight", "GateForecast", "Plan", "ReferencePlan"]


class Foresight(enum.Enum):
    """What a gate will be able to say, as far as it is known before the run."""

    ABLE = "ok"
    WEAK = "weak"
    """It decides, but finds a loss as large as its tolerance with less than the wanted power."""

    UNCALIBRATED = "uncalibrated"
    """Too few stored sessions: the plain tolerance judges, with unknown error rates."""

    UNKNOWN = "unknown"
    """Only the run itself can tell."""

    MISSING = "no baseline"
    """It fails: there is nothing to compare with."""

    UNABLE = "cannot decide"
    """It fails: no result of the run can decide it."""


@dataclass(frozen=True, kw_only=True)
class GateForecast:
    """What one gate will be able to say."""

    gate: str
    aim: str
    """The loss or limit it gates: `tolerance 5 %`, `limit 200 ms`."""

    state: Foresight
    text: str
    """What it can find, or why it cannot."""

    next_step: str = ""
    """The command that would help, `{nodeid}` for the test; "" when there is none."""

    used: float | None = None
    """Mean sessions, blocks, or share of the questions (0 to 1) until an unchanged engine is decided; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class CheckpointOutlook:
    """Where the checkpoint of an engine will come from."""

    state: Literal["in place", "cached", "build", "download"]
    text: str


@dataclass(frozen=True, kw_only=True)
class CasePlan:
    """One test."""

    nodeid: str
    gates: tuple[GateForecast, ...] = ()
    skipped: str = ""
    """Why the test will not run on this machine; "" when it will."""

    is_case: bool = True
    """False for a test that only takes the engine, for asserts of its own."""

    duration_s: float | None = None
    """Expected, the load of the engine left out; None where no past result knows."""

    longest_s: float | None = None
    """When every look is needed, further launches of the engine included; None where it is never longer or unknown."""

    sessions: int = 1
    """Sessions that are run whatever they say: more than 1 where the mark asks for them."""


@dataclass(frozen=True, kw_only=True)
class ReferencePlan:
    """An engine that tests compare theirs with in the run: opened for each such test, and closed after it."""

    name: str
    label: str
    """What reports call it: `BF16`, `engine_options.use_cache=false`."""

    checkpoint: str
    reload: bool = False
    """Whether the two are loaded in turns, instead of held at once."""

    python: str = ""
    """The interpreter it runs under; "" for the one that runs pytest."""

    problem: str = ""
    """As in `EnginePlan`."""

    load_s: float | None = None
    """Of one launch; part of the time of each test that compares. None where no past result knows."""


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """One engine, with its tests in the order in which they run."""

    name: str
    checkpoint: str
    gpus: str
    cases: tuple[CasePlan, ...]
    problem: str = ""
    """Why the engine cannot be opened; "" when nothing is known against it."""

    load_s: float | None = None
    """Expected; None where no past result knows."""

    references: tuple[ReferencePlan, ...] = ()
    """The engines that its tests compare it with."""

    @property
    def is_opened(self) -> bool:
        """Whether any test will ask for the engine."""
        return any(not case.skipped for case in self.cases)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole run."""

    engines: tuple[EnginePlan, ...]
    power: float
    """The probability with which a loss is to be found."""

    past: str = ""
    """Where the expected times come from; "" where there are no past results."""

    against: str = ""
    """What stands in for the baselines, and how; "" for the baseline files."""
