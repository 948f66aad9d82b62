"""One round of a workload, put on a server by the load generator and judged by its own clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import cast

from pytest_inferperf.engines.interface import Engine, GenerationRequest, Serving
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.measure.interruption import MeasurementInterrupted
from pytest_inferperf.measure.load.arrivals import ArrivalKind, Arrivals
from pytest_inferperf.measure.load.generator import LoadPlan, LoadRun, run_load
from pytest_inferperf.measure.load.kept_records import keep_records
from pytest_inferperf.measure.load.summary import check_load, summarise_load
from pytest_inferperf.measure.witness import Witness
from pytest_inferperf.model.case import Workload
from pytest_inferperf.model.gates import NO_RULES, MeasureRules
from pytest_inferperf.model.results import Round

__all__ = ["load_round"]

_OPEN_LOOP_SPARE_S = 2.0
"""Seconds of warm-up and fillers that requests are written for ahead of time."""

_MOST_SPARE = 1000
_THIS_PROCESS = random.SystemRandom().random()


def load_round(
    engine: Engine,
    serving: Serving,
    workload: Workload,
    requests: Sequence[GenerationRequest],
    *,
    round_index: int = 0,
    rules: MeasureRules = NO_RULES,
    timer: Callable[[Callable[[], None]], None] | None = None,
    witness: Witness | None = None,
) -> Round:
    """Keep `workload.concurrency` requests in flight until every one of `requests` was answered.

    Under open loop each is sent when it is due; the times of a round are the same in every session. Warm-up requests and
    fillers come on top, as `generator` has them, with prompts of their own. `witness` sees a sample of the answers.
    Raises `InvalidRun` where the load or its clock cannot be trusted, `EngineError` where the server cannot be reached
    or has ended, and `MeasurementInterrupted` on Ctrl-C.
    """
    prompts = _prompts(requests, workload, fresh=serving.fresh_prompts)
    plan = LoadPlan(
        num_requests=len(requests),
        osl=workload.output_lengths.largest,
        concurrency=workload.concurrency,
        arrivals=_arrivals(workload, round_index),
        kept=witness.honesty.compared if witness is not None else 0,
    )
    # Written before the clock starts: tokenizing is not part of the load. Fillers are as many as there are slots,
    # unless some requests take several times as long as others; under open loop nobody knows.
    more = 2 * workload.concurrency or min(int(_OPEN_LOOP_SPARE_S * workload.request_rate) + 1, _MOST_SPARE)
    sent: list[GenerationRequest] = []
    bodies: list[bytes] = []

    def write() -> None:
        sent.append(next(prompts))
        bodies.append(serving.body(sent[-1]))

    for _ in range(more + len(requests)):
        write()
    # What the template of a chat adds to a prompt is the server's.
    chat = serving.endpoint.chat
    runs: list[LoadRun] = []

    def body(index: int) -> bytes:
        while index >= len(bodies):
            write()
        return bodies[index]

    def sizes(index: int) -> tuple[int, int]:
        return -1 if chat else len(sent[index].prompt), sent[index].max_tokens

    def target() -> None:
        runs.append(run_load(serving.endpoint, plan, body, sizes_of=sizes))

    if timer is None:
        target()
    else:
        timer(target)
    (run,) = runs
    devices = engine.info.hardware.count if engine.info.hardware.kind == "gpu" else 1

    def summary() -> Round:
        found = summarise_load(
            run, isl=round(fmean(len(item.prompt) for item in requests)), slos=rules.slos, devices=devices, check=False
        )
        return replace(found, records=keep_records(run.records))

    if run.interrupted:
        raise MeasurementInterrupted((summary(),))
    # Where a gate judges failures, how many there may be is its matter.
    allowed = 1.0 if rules.judges_failures else rules.max_failed_share
    # What was asked to be shared may come from a cache.
    cause = check_load(run, max_failed_share=allowed, max_cached_share=workload.shared_prefix + 0.01)
    if cause:
        # A server that has died says more than the requests that it took along.
        _ = engine.serving
        raise InvalidRun(cause)
    if witness is not None:
        witness.saw_outputs(run.outputs, workload)
    return summary()


def _arrivals(workload: Workload, round_index: int) -> Arrivals | None:
    if not workload.is_open_loop:
        return None
    return Arrivals(
        rate=workload.request_rate,
        kind=cast("ArrivalKind", workload.arrival),
        burstiness=workload.burstiness,
        seed=1_000_003 * workload.seed + round_index,
    )


def _prompts(requests: Sequence[GenerationRequest], workload: Workload, *, fresh: bool) -> Iterator[GenerationRequest]:
    """Yield the prompts of a round and ever more like them: their tokens in another order, but for a shared prefix.

    `fresh` prompts are shuffled by chance from the start: no earlier run has sent them. Their shared prefix, too, is
    one of this process.
    """
    shuffle = random.Random() if fresh else random.Random(repr(requests[0].prompt))
    longest = max(requests, key=lambda request: len(request.prompt)).prompt
    common = longest[: workload.shared_tokens(len(longest))]
    if fresh:
        common = tuple(random.Random(_THIS_PROCESS).sample(common, len(common)))

    def other(request: GenerationRequest) -> GenerationRequest:
        size = len(request.prompt)
        shared = workload.shared_tokens(size)
        own = request.prompt[shared:]
        return replace(request, prompt=(*common[:shared], *shuffle.sample(own, len(own))))

    if not fresh:
        yield from requests
    while True:
        yield from map(other, requests)
