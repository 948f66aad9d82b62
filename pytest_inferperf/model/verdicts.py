"""Verdicts: what a judge says about one gate, and about all gates of a case."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["PROVEN_GAIN", "GateVerdict", "Status", "worst"]


PROVEN_GAIN = "proven_gain_percent"
"""A detail of a gate that is better than its baseline beyond the tolerance: by how much at least, in percent."""


class Status(enum.Enum):
    """The four verdicts. Only PASS lets a build pass."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    """The data at hand cannot decide; `reason` says how much more would."""

    INVALID = "INVALID"
    """The run itself cannot be trusted; `reason` names the cause."""


@dataclass(frozen=True, kw_only=True)
class GateVerdict:
    """The verdict on one gate, with everything a report needs to explain it."""

    gate: str
    """The gate's name: a metric, or `exact_match loss vs BF16`."""

    status: Status
    unit: str = ""
    higher_is_better: bool = True
    """Whether `limit` is a floor (True) or a ceiling (False)."""

    measured: float | None = None
    limit: float | None = None
    baseline: float | None = None
    tolerance: float | None = None
    """Relative tolerance against the baseline; None for an absolute limit."""

    source: str = ""
    """Where the limit comes from: a baseline file relative to the root, or "mark"."""

    reason: str = ""
    """Why it is not a PASS, in one sentence; "" for a PASS."""

    next_step: str = ""
    """The command to type; "" when there is none."""

    notes: tuple[str, ...] = ()
    """What a reader should know beside the verdict: `uncalibrated`, context that moved."""

    next_look: int | None = None
    """Sessions, blocks or questions, in all, at which an INCONCLUSIVE gate may decide; None where no look is left."""

    details: Mapping[str, float | int | str] = field(default_factory=dict)
    """Figures for the report: flips each way, number of sessions, p-values."""


_ORDER = (Status.INVALID, Status.FAIL, Status.INCONCLUSIVE, Status.PASS)


def worst(verdicts: Sequence[GateVerdict]) -> Status:
    """Return the verdict of a case: the worst of its gates, INVALID before FAIL before INCONCLUSIVE.

    Raises `ValueError` for no gates: a case without gates has no verdict.
    """
    if not verdicts:
        raise ValueError("no gates were judged")
    return min((verdict.status for verdict in verdicts), key=_ORDER.index)
