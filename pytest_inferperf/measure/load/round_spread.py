"""A round's load from as many processes as it takes: its prompts, sliced, and others like them for another attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pytest_inferperf.engines.interface import GenerationRequest, Serving
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.processes import Bodies
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
    processes: int | None = None,
    live: Live | None = None,
) -> LoadRun:
    """Send a round of synthetic prompts: `prompts`, and where that is given up for more processes, shuffled ones.

    What files hold cannot be sent twice: a prefix cache would answer. Raises what `spread_load` does.
    """

    def write(attempt: int) -> _Slices:
        if not attempt:
            return _Slices(prompts)
        return _Slices(prompts_of(replace(serving, fresh_prompts=True), workload, requests))

    return spread_load(serving.endpoint, plan, write, processes=processes, hosts=serving.hosts, live=live)


class _Slices:
    """The prompts of a round, every nth of them for each process."""

    def __init__(self, prompts: RoundPrompts) -> None:
        self._prompts = prompts

    def slice(self, index: int, of: int) -> Bodies:
        """See `Texts.slice`."""
        return Bodies(
            make_body=lambda number: self._prompts.body(of * number + index),
            sizes_of=lambda number: self._prompts.sizes(of * number + index),
        )
