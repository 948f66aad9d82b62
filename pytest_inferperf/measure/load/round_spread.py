"""A round's load from as many processes as it takes: its prompts, sliced, and others like them for another attempt."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_inferperf.engines.interface import GenerationRequest, Serving
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.round_prompts import RoundPrompts, prompts_of
from pytest_inferperf.measure.load.spread import spread_load
from pytest_inferperf.measure.progress import Live
from pytest_inferperf.model.case import Workload

__all__ = ["spread_round"]


def spread_round(
    serving: Serving,
    workload: Workload,
    requests: Sequence[GenerationRequest],
    prompts: RoundPrompts,
    plan: LoadPlan,
    *,
    round_index: int = 0,
    processes: int | None = None,
    live: Live | None = None,
) -> LoadRun:
    """Send a round: `prompts`, and where that is given up for more processes, others that no prefix cache knows from it.

    Drawn prompts are then shuffled; those of a data set begin with another mark, and in a trace every token is another one, as
    where tests send one file to one server several times. Raises what `spread_load` does.
    """

    def write(attempt: int) -> RoundPrompts:
        if not attempt:
            return prompts
        return prompts_of(serving, workload, requests, round_index=round_index, attempt=attempt)

    return spread_load(serving.endpoint, plan, write, processes=processes, hosts=serving.hosts, live=live)
