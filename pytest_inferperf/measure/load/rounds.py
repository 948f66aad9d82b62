"""One round of a workload, put on a server by the load generator and judged by its own clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import cast

from pytest_inferperf.engines.interface import Engine, GenerationRequest, Serving
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.measure.interruption import MeasurementInterrupted
from pytest_inferperf.measure.load.arrivals import ArrivalKind, Arrivals, TraceTimes
from pytest_inferperf.measure.load.generator import LoadPlan, LoadRun, run_load
from pytest_inferperf.measure.load.kept_records import keep_records
from pytest_inferperf.measure.load.records import MEASURED
from pytest_inferperf.measure.load.round_prompts import RoundPrompts, prompts_of
from pytest_inferperf.measure.load.round_spread import spread_round
from pytest_inferperf.measure.load.summary import check_load, summarise_load
from pytest_inferperf.measure.progress import Live
from pytest_inferperf.measure.recorded.traces import trace_of
from pytest_inferperf.measure.witness import Witness
from pytest_inferperf.model.case import Workload
from pytest_inferperf.model.gates import NO_RULES, MeasureRules
from pytest_inferperf.model.results import Round

__all__ = ["load_round"]

_CACHED = 0.01
"""Share of the prompt tokens that may come from a cache though nobody asked for it."""


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
    live: Live | None = None,
) -> Round:
    """Keep `workload.concurrency` requests in flight until every one of `requests` was answered.

    Under open loop each is sent when it is due; the times of a round are the same in every session. Warm-up requests and
    fillers come on top, as `generator` has them, with prompts of their own. `witness` sees a sample of the answers;
    `live` is shown how far the round is.
    Raises `InvalidRun` where the load or its clock cannot be trusted, `EngineError` where the server cannot be reached
    or has ended, and `MeasurementInterrupted` on Ctrl-C.
    """
    prompts = prompts_of(serving, workload, requests)
    follow_ups = sum(len(item.follow_ups) for item in requests)
    plan = LoadPlan(
        num_requests=len(requests) + follow_ups,
        follow_ups=follow_ups,
        osl=max(item.max_tokens for item in requests),
        concurrency=workload.concurrency,
        arrivals=_arrivals(workload, round_index),
        kept=witness.honesty.compared if witness is not None else 0,
    )
    runs: list[LoadRun] = []

    def target() -> None:
        if not (workload.dataset or workload.trace):
            runs.append(spread_round(serving, workload, requests, prompts, plan, live))
            return
        runs.append(
            run_load(
                serving.endpoint,
                plan,
                prompts.body,
                sizes_of=prompts.sizes,
                make_spare=prompts.spare,
                talk_of=prompts.talk,
                live=live,
            )
        )

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
    cause = check_load(run, max_failed_share=allowed, max_cached_share=_shared_share(run, prompts) + _CACHED)
    cause = cause or _uncounted(run, requests)
    if cause:
        # A server that has died says more than the requests that it took along.
        _ = engine.serving
        raise InvalidRun(cause)
    if witness is not None:
        witness.saw_outputs(run.outputs, workload)
    return summary()


def _shared_share(run: LoadRun, prompts: RoundPrompts) -> float:
    """Return the share of the prompt tokens that a cache may know: what prompts have in common, and earlier turns."""
    columns = run.records.columns()
    counted = columns["prompt_tokens"][(columns["kind"] == MEASURED) & columns["ok"]]
    return prompts.known_share(int(counted[counted > 0].sum()))


def _uncounted(run: LoadRun, requests: Sequence[GenerationRequest]) -> str:
    """Say that nobody knows how long prompts of text are; "" where the server or a tokenizer counts them."""
    columns = run.records.columns()
    if (
        all(item.prompt and not item.follow_ups for item in requests)
        or (columns["prompt_tokens"][columns["ok"]] >= 0).all()
    ):
        return ""
    return (
        "the server counts no prompt tokens (usage), and there is no tokenizer that could: name one "
        '(engine_options={"tokenizer": "folder or hub id"}); of later turns only the server knows them'
    )


def _arrivals(workload: Workload, round_index: int) -> Arrivals | TraceTimes | None:
    if not workload.is_open_loop:
        return None
    if workload.trace:
        rows = trace_of(workload).rows[: workload.requests_per_round]
        return TraceTimes(tuple(row.time_s / workload.trace_speed for row in rows))
    return Arrivals(
        rate=workload.request_rate,
        kind=cast("ArrivalKind", workload.arrival),
        burstiness=workload.burstiness,
        seed=1_000_003 * workload.seed + round_index,
    )
