"""One round of a workload, put on a server by the load generator and judged by its own clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import cast

from pytest_inferperf.engines.interface import Engine, GenerationRequest, Serving
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.measure.interruption import MeasurementInterrupted
from pytest_inferperf.measure.load.arrivals import ArrivalKind, Arrivals, TraceTimes
from pytest_inferperf.measure.load.kept_records import keep_records
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
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

__all__ = ["SentRound", "arrivals_of", "load_round", "send_round"]

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
    load = send_round(
        serving,
        workload,
        requests,
        round_index=round_index,
        kept=witness.honesty.compared if witness is not None else 0,
        timer=timer,
        live=live,
    )
    devices = engine.info.hardware.count if engine.info.hardware.kind == "gpu" else 1

    def summary() -> Round:
        found = summarise_load(load.run, isl=load.isl, slos=rules.slos, devices=devices, check=False)
        return replace(found, records=keep_records(load.run.records))

    if load.run.interrupted:
        raise MeasurementInterrupted((summary(),))
    # Where a gate judges failures, how many there may be is its matter.
    cause = load.check(max_failed_share=1.0 if rules.judges_failures else rules.max_failed_share)
    if cause:
        # A server that has died says more than the requests that it took along.
        _ = engine.serving
        raise InvalidRun(cause)
    if witness is not None:
        witness.saw_outputs(load.run.outputs, workload)
        witness.saw_clocks(load.run.clocks, load.run.hosts)
    return summary()


@dataclass(frozen=True, kw_only=True)
class SentRound:
    """A round that was sent, before anything is made of it."""

    run: LoadRun
    requests: Sequence[GenerationRequest]
    prompts: RoundPrompts

    @property
    def isl(self) -> int:
        """Mean length of the prompts where the server does not count them, tokens; 0 where nobody knows."""
        return round(fmean(len(item.prompt) for item in self.requests))

    def check(self, *, max_failed_share: float) -> str:
        """Say why the round must not be judged; "" where it can be. What prompts have in common may come from a cache."""
        columns = self.run.records.columns()
        answered = (columns["kind"] == MEASURED) & columns["ok"]
        known = self.prompts.known_share({name: column[answered] for name, column in columns.items()})
        cause = check_load(self.run, max_failed_share=max_failed_share, max_cached_share=known + _CACHED)
        return cause or _uncounted(self.run, self.requests)


def send_round(
    serving: Serving,
    workload: Workload,
    requests: Sequence[GenerationRequest],
    *,
    round_index: int = 0,
    kept: int = 0,
    timeout_s: float = 600.0,
    retries: int = 0,
    processes: int | None = None,
    timer: Callable[[Callable[[], None]], None] | None = None,
    live: Live | None = None,
) -> SentRound:
    """Send the requests of a round as the workload says; see `load_round`, `LoadPlan` and `spread_load` for the other values.

    Raises `EngineError` where the server cannot be reached, and `SettingsError` for values out of range.
    """
    prompts = prompts_of(serving, workload, requests, round_index=round_index)
    later_turns = tuple(len(item.follow_ups) for item in requests)
    plan = LoadPlan(
        num_requests=len(requests) + sum(later_turns),
        later_turns=later_turns if any(later_turns) else (),
        osl=max(item.max_tokens for request in requests for item in (request, *request.follow_ups)),
        concurrency=workload.concurrency,
        arrivals=arrivals_of(workload, round_index),
        timeout_s=timeout_s,
        retries=retries,
        kept=kept,
    )
    runs: list[LoadRun] = []

    def target() -> None:
        runs.append(
            spread_round(
                serving,
                workload,
                requests,
                prompts,
                plan,
                round_index=round_index,
                processes=processes,
                live=live,
            )
        )

    if timer is None:
        target()
    else:
        timer(target)
    (run,) = runs
    return SentRound(run=run, requests=requests, prompts=prompts)


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


def arrivals_of(workload: Workload, round_index: int) -> Arrivals | TraceTimes | None:
    """Return when the requests of a round are due; None under closed loop."""
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
