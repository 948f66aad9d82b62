"""One session: warm-up rounds, then measured rounds, on one loaded engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from pytest_inferperf.engines.interface import Engine, Generation, GenerationRequest
from pytest_inferperf.errors import InvalidRun, MarkError
from pytest_inferperf.measure.energy import energy_meter
from pytest_inferperf.measure.interruption import MeasurementInterrupted, rounds_so_far
from pytest_inferperf.measure.progress import SILENT, Live, Progress
from pytest_inferperf.measure.serving import serving_of
from pytest_inferperf.measure.summary import summarise_round, with_costs
from pytest_inferperf.measure.telemetry import Telemetry
from pytest_inferperf.measure.witness import Honesty, Witness, with_agreement
from pytest_inferperf.measure.workload import make_requests
from pytest_inferperf.model.case import Workload
from pytest_inferperf.model.gates import NO_RULES, MeasureRules
from pytest_inferperf.model.results import Round, Session

__all__ = ["RoundTimer", "measure_session", "run_round"]


class RoundTimer(Protocol):
    """Runs a measured round, and may time it for a tool of its own (pytest-benchmark's table)."""

    def __call__(self, target: Callable[[], None]) -> None:
        """Call `target` exactly once."""


def measure_session(
    engine: Engine,
    workload: Workload,
    *,
    rules: MeasureRules = NO_RULES,
    timer: RoundTimer | None = None,
    progress: Progress = SILENT,
    gpu_hour_price: float = 0.0,
    honesty: Honesty | None = None,
    occasion: int = 0,
) -> Session:
    """Run the workload's warm-up and measured rounds and return their figures; `rules` are those of the case's gates.

    With `honesty`, some of the answers are then asked for again, off the clock, and compared; with its `audit`, prompts are
    repeated between new ones. `occasion` is how often the workload was measured on this engine before.

    Raises `InvalidRun` when a request does not fit, an output is not exactly `osl` tokens long, or a server's answers
    contradict each other, `MarkError` for an open loop on an engine that is no server, `MeasurementInterrupted` on Ctrl-C,
    and passes the engine's `EngineError` on. Telemetry covers the measured rounds.
    """
    progress = progress.within(f"measure {workload.words}")

    def run(index: int, kind: str, timer: RoundTimer | None = None, witness: Witness | None = None) -> Round:
        progress(kind)
        requests = make_requests(engine, workload, round_index=index)
        return run_round(
            engine,
            workload,
            requests,
            round_index=index,
            rules=rules,
            timer=timer,
            witness=witness,
            gpu_hour_price=gpu_hour_price,
            live=progress.within(kind).live,
            occasion=occasion,
        )

    witness = Witness(honesty, seed=workload.seed) if honesty is not None else None

    engine.forget_peak_memory()
    try:
        for index in range(workload.warmup_rounds):
            run(index, "warm-up round")
    except MeasurementInterrupted:
        raise MeasurementInterrupted(()) from None  # a warm-up is no measured round
    done: list[Round] = []
    with engine.watch() or Telemetry(engine.watched_hardware, devices=engine.devices) as telemetry:
        try:
            for number in range(workload.rounds):
                index, kind = workload.warmup_rounds + number, f"round {number + 1}/{workload.rounds}"
                done.append(run(index, kind, timer, witness))
        except KeyboardInterrupt as error:
            raise MeasurementInterrupted((*done, *rounds_so_far(error))) from None
    rounds = tuple(done)
    figures = dict(telemetry.figures)
    if occasion and serving_of(engine, workload) is not None:
        figures["prompts.occasion"] = float(occasion)
    if witness is not None:
        figures |= witness.client_figures
        progress("answers at concurrency 1")
        agreement = witness.ask_again(engine)
        rounds = with_agreement(rounds, agreement)
        if agreement is not None:
            figures |= {"outputs.compared": agreement.compared, "outputs.identical": agreement.identical}
        if witness.honesty.audit:
            progress("repeated prompts and new ones")
            witness.audit(engine, workload)
    return Session(rounds=rounds, warmup_rounds=workload.warmup_rounds, telemetry=figures)


def run_round(
    engine: Engine,
    workload: Workload,
    requests: Sequence[GenerationRequest],
    *,
    round_index: int = 0,
    rules: MeasureRules = NO_RULES,
    timer: RoundTimer | None = None,
    gpu_hour_price: float = 0.0,
    witness: Witness | None = None,
    live: Live | None = None,
    occasion: int = 0,
) -> Round:
    """Send one round's requests and return its figures; `witness` sees the answers. Raises like `measure_session`.

    `gpu_hour_price` is what one GPU costs for one hour, in whatever currency; 0 where that is not known.

    A server is measured by the load generator: besides the round's requests it sends warm-up requests and fillers, whose
    share of the energy nobody knows. Under open loop `round_index` decides when requests are due, as it decided the
    prompts, and on another `occasion` their tokens come in another order.
    """
    gpus = engine.watched_hardware.count if engine.watched_hardware.kind == "gpu" else 0
    per_hour = gpu_hour_price * gpus
    serving = serving_of(engine, workload)
    if serving is not None:
        from pytest_inferperf.measure.load.rounds import load_round

        found = load_round(
            engine,
            replace(serving, occasion=occasion),
            workload,
            requests,
            round_index=round_index,
            rules=rules,
            timer=timer,
            witness=witness,
            live=live,
        )
        return with_costs(found, energy_j=None, price_per_hour=per_hour)
    if workload.is_open_loop:
        raise MarkError(
            f"{workload.open_loop_keyword}: an open loop needs a server, and {type(engine).__name__} is none. "
            "Give a concurrency. (What --inferperf-inject makes worse is measured through the engine's own methods, too.)"
        )
    with energy_meter(engine) as meter:
        before_j = meter.read_j()
        found = _direct_round(engine, workload, requests, rules, timer, witness)
        after_j = meter.read_j()
    energy_j = None if before_j is None or after_j is None else after_j - before_j
    return with_costs(found, energy_j=energy_j, price_per_hour=per_hour)


def _direct_round(
    engine: Engine,
    workload: Workload,
    requests: Sequence[GenerationRequest],
    rules: MeasureRules,
    timer: RoundTimer | None,
    witness: Witness | None,
) -> Round:
    """Let an engine of our own generate; its methods are all that is between the load and its clock."""
    generations: list[Generation] = []
    duration_s = 0.0

    def target() -> None:
        nonlocal generations, duration_s
        start = engine.clock_s()
        generations = engine.generate(requests, concurrency=workload.concurrency)
        duration_s = engine.clock_s() - start

    if timer is None:
        target()
    else:
        timer(target)
    _check(generations, requests)
    if witness is not None:
        witness.saw(requests, generations)
    devices = engine.info.hardware.count if engine.info.hardware.kind == "gpu" else 1
    return summarise_round(
        generations,
        duration_s=duration_s,
        devices=devices,
        peak_memory_bytes=engine.peak_memory_bytes(),
        slos=rules.slos,
    )


def _check(generations: Sequence[Generation], requests: Sequence[GenerationRequest]) -> None:
    """Refuse a round whose outputs are not what was asked for: its figures would be of another workload."""
    if len(generations) != len(requests):
        raise InvalidRun(f"{len(requests)} requests were sent and {len(generations)} answers came back.")
    for index, (item, request) in enumerate(zip(generations, requests, strict=True)):
        if item.token_ids and len(item.token_ids) != request.max_tokens:
            raise InvalidRun(
                f"request {index} returned {len(item.token_ids)} tokens where the workload asks for exactly "
                f"{request.max_tokens} (osl)."
            )
        if item.prompt_tokens != len(request.prompt):
            raise InvalidRun(
                f"request {index} was sent with {len(request.prompt)} tokens and the engine counted "
                f"{item.prompt_tokens}: the prompt was changed on the way."
            )
        if len(item.token_times_s) != len(item.token_ids):
            raise InvalidRun(
                f"request {index} has {len(item.token_ids)} tokens and {len(item.token_times_s)} token times."
            )
        times = item.token_times_s
        if any(after < before for before, after in itertools.pairwise(times)) or (times and times[0] <= 0):
            raise InvalidRun(f"request {index} has token times that run backwards: the clock cannot be trusted.")
