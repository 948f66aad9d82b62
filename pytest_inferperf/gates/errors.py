"""The share of requests that failed, against the share that may."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_inferperf.model.gates import ErrorRateCeiling
from pytest_inferperf.model.results import Comparison, PerformanceResult
from pytest_inferperf.model.verdicts import GateVerdict, Status

__all__ = ["count_requests", "judge_errors"]


def count_requests(performance: PerformanceResult | None, comparisons: Sequence[Comparison] = ()) -> tuple[int, int]:
    """Return how many requests failed, and how many there were, over all rounds of all engines."""
    rounds = [item for session in performance.sessions for item in session.rounds] if performance is not None else []
    rounds += [item for one in comparisons for block in one.blocks for item in (*block.reference, *block.candidate)]
    return sum(item.num_failed_requests for item in rounds), sum(item.num_requests for item in rounds)


def judge_errors(
    gate: ErrorRateCeiling, performance: PerformanceResult | None, comparisons: Sequence[Comparison] = ()
) -> GateVerdict:
    """Judge the failed requests of a run, those of reference engines too.

    All rounds count together: a median over rounds would not see a round in five whose requests all fail.
    """
    failed, requests = count_requests(performance, comparisons)
    measured, limit = 100 * failed / max(requests, 1), 100 * gate.share
    passed = failed <= gate.share * requests
    return GateVerdict(
        gate=gate.name,
        status=Status.PASS if passed else Status.FAIL,
        unit="%",
        higher_is_better=False,
        measured=measured,
        limit=limit,
        source="mark",
        reason=""
        if passed
        else f"{measured:.6g} % is above its ceiling {limit:g} ({failed} of {requests} requests failed)",
    )
