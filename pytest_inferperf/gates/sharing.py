"""What a verdict on speed is worth where others were let onto the node.

A neighbour takes speed away and gives none. So a PASS stands; a FAIL may be the neighbour's; and a comparison with an
engine that ran there too says nothing, since a neighbour of the reference makes the candidate look better.
"""

from __future__ import annotations

from dataclasses import replace

from pytest_inferperf.model.gates import FrontierFloor, Gate, PerformanceGate, SpeedupFloor
from pytest_inferperf.model.results import CaseResult
from pytest_inferperf.model.sharing import ALONE, shared_words
from pytest_inferperf.model.verdicts import GateVerdict, Status

__all__ = ["on_shared_node", "why_not_comparable"]


def why_not_comparable(gate: Gate, result: CaseResult) -> str:
    """Say why a reference engine of a gate is none, where a neighbour may have slowed it; "" where it is one."""
    words = shared_words(result) if isinstance(gate, SpeedupFloor) else ""
    return (
        f"{words}, and a neighbour of the reference makes the other look better. Measure it again with {ALONE}"
        if words
        else ""
    )


def on_shared_node(gate: Gate, verdict: GateVerdict, result: CaseResult) -> GateVerdict:
    """Say in a verdict that does not pass that a neighbour may be why, and how to find out."""
    if (
        not isinstance(gate, PerformanceGate | FrontierFloor)
        or verdict.status not in (Status.FAIL, Status.INCONCLUSIVE)
        or verdict.measured is None
    ):
        return verdict
    words = shared_words(result)
    if not words:
        return verdict
    return replace(
        verdict,
        reason=f"{verdict.reason}; {words}",
        next_step=f"run it again on a node of its own, with {ALONE}",
    )
