"""How long cases take, by past results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from pytest_inferperf.baselines.past import Past
from pytest_inferperf.gates.looks import BLOCKS, SESSIONS
from pytest_inferperf.model.case import Case, ReferenceEngine, Task, Workload
from pytest_inferperf.model.gates import ErrorRateCeiling, FrontierFloor, Gate, PerformanceGate, SpeedupFloor
from pytest_inferperf.model.plan import GateForecast
from pytest_inferperf.model.results import Hardware
from pytest_inferperf.planning.conditions import PlannedTest

__all__ = ["Times", "least_sessions"]

ROUNDS_PER_BLOCK = 2
"""Rounds of each engine in a block."""


class Times:
    """What past results say about durations."""

    def __init__(self, past: Past) -> None:
        self._past = past

    def case(
        self,
        test: PlannedTest,
        case: Case,
        paired: Sequence[tuple[Gate, GateForecast]],
        here: Hardware | None,
        load_s: float | None,
        *,
        asks: bool,
    ) -> tuple[float | None, float | None]:
        """Return the expected and the longest duration of a case, seconds; None where it is not known.

        Expected is what an unchanged engine takes: every gate its mean, so that the slowest of a case decides. `asks`:
        whether the reference engine has to answer the task first.
        """
        if case.task is not None:
            gates = [found for _, found in paired]
            return self._task_times(test, case, case.task, gates, here, load_s, asks=asks)
        if case.workload is None:
            return None, None
        rounds_s = [self._past.round_s(point, here) for point in case.points()]
        known_s = [item for item in rounds_s if item is not None]
        if len(known_s) < len(rounds_s):
            return None, None
        # Every session measures every point.
        round_s = sum(known_s)
        expected = longest = 0.0
        least = least_sessions(test, case.workload)
        if least:
            stored = [
                found
                for gate, found in paired
                if isinstance(gate, FrontierFloor) or (isinstance(gate, PerformanceGate) and gate.limit is None)
            ]
            used = max([least, *(found.used for found in stored if found.used is not None)])
            most = max(least, SESSIONS.cap) if stored else least
            session_s = round_s * (case.workload.rounds + case.workload.warmup_rounds)
            expected, longest = (
                # Every further session is a launch of its own.
                count * session_s + (count - 1) * (load_s or 0.0)
                for count in (used, most)
            )
        for reference in test.speedups:
            block_s = self._block_s(case, case.workload, reference, round_s, here, load_s)
            if block_s is None:
                return None, None
            known = [
                found.used
                for gate, found in paired
                if isinstance(gate, SpeedupFloor) and gate.reference == reference and found.used is not None
            ]
            first, each = block_s
            expected += first + max([BLOCKS.looks[0], *known]) * each
            longest += first + BLOCKS.cap * each
        return expected, longest if longest > expected else None

    def _block_s(
        self,
        case: Case,
        workload: Workload,
        reference: ReferenceEngine,
        round_s: float,
        here: Hardware | None,
        load_s: float | None,
    ) -> tuple[float, float] | None:
        """Return the seconds before the first block, and those of each block; None where the reference is unknown."""
        other_load_s = self._past.load_s(reference.spec, here)
        other_s = self._reference_round_s(case, reference, here)
        if other_load_s is None or other_s is None:
            return None
        both = round_s + other_s
        if reference.reload:
            launches = other_load_s + (load_s or 0.0)
            return 0.0, launches + (workload.warmup_rounds + ROUNDS_PER_BLOCK) * both
        return other_load_s + workload.warmup_rounds * both, ROUNDS_PER_BLOCK * both

    def _reference_round_s(self, case: Case, reference: ReferenceEngine, here: Hardware | None) -> float | None:
        found = self._past.compared(case, reference, here)
        rounds = [item.duration_s for block in found[1].blocks for item in block.reference] if found is not None else []
        return fmean(rounds) if rounds else self._past.round_s(replace(case, engine=reference.spec), here)

    def _task_times(
        self,
        test: PlannedTest,
        case: Case,
        task: Task,
        gates: Sequence[GateForecast],
        here: Hardware | None,
        load_s: float | None,
        *,
        asks: bool,
    ) -> tuple[float | None, float | None]:
        whole_s = self._past.evaluation_s(case, here)
        if whole_s is None:
            return None, None
        # A gate of which nothing is known decides nothing before every question is asked.
        shares = [1.0 if found.used is None else found.used for found in gates] if task.early_stop else []
        expected = whole_s * max(shares, default=1.0)
        longest = whole_s
        reference = test.against
        if reference is not None and asks:
            other_s = self._reference_answers_s(case, reference, here)
            if other_s is None:
                return None, None
            if reference.reload:
                other_s += load_s or 0.0
            expected, longest = expected + other_s, longest + other_s
        return expected, longest if longest > expected else None

    def _reference_answers_s(self, case: Case, reference: ReferenceEngine, here: Hardware | None) -> float | None:
        """Return the seconds of loading the reference engine and asking it every question."""
        load_s = self._past.load_s(reference.spec, here)
        found = self._past.compared(case, reference, here)
        asked = found[1].accuracy if found is not None else None
        whole_s = (
            asked.duration_s
            if asked is not None
            else self._past.evaluation_s(replace(case, engine=reference.spec), here)
        )
        return None if load_s is None or whole_s is None else load_s + whole_s


def least_sessions(test: PlannedTest, workload: Workload | None) -> int:
    """Return the sessions that are run whatever they say; 0 for a task, and where speedup gates alone measure blocks."""
    kinds = {type(gate) for gate in test.gates}
    if workload is None or (SpeedupFloor in kinds and not kinds & {PerformanceGate, ErrorRateCeiling}):
        return 0
    return max(1, workload.sessions)
