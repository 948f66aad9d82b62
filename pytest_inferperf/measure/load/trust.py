"""Which ceilings this client can judge: its meter, run on this machine against a server whose times are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.measure.load.clock import ClockReport
from pytest_inferperf.measure.load.plan import LoadPlan
from pytest_inferperf.measure.load.prompts import SyntheticBodies
from pytest_inferperf.measure.load.spread import spread_load
from pytest_inferperf.measure.load.summary import check_load, summarise_load
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.process import read_stats, serve_in_process

__all__ = ["STREAMS", "TOLERANCE_PER_ERROR", "TRUTH_OSL", "ClockPoint", "ClockTrust", "MetricError", "check_clock"]

STREAMS = (1, 32, 256, 1024)
TRUTH_OSL = 64
_TRUTH = Behaviour(ttft_ms=200.0, itl_ms=20.0)
_ISL = 128
_ROUNDS, _MIN_REQUESTS = 2, 4

TOLERANCE_PER_ERROR = 5
"""A tolerance must be this many times the meter's error, so that the error stays in the free zone of the verdict (m0 =
m1/5): a loss as small as that must not alarm."""


@dataclass(frozen=True, kw_only=True)
class ClockTrust:
    """From where on this client's figures must not be judged: largest shares of the truth that it may be off by."""

    ttft_mean: float = 0.01
    ttft_p99: float = 0.03
    itl_mean: float = 0.005
    held: float = 0.99
    """Smallest share of the concurrency that it must hold."""


@dataclass(frozen=True, kw_only=True)
class MetricError:
    """One metric of the meter beside its truth, milliseconds."""

    metric: str
    truth_ms: float
    measured_ms: float
    allowed: float
    """Largest share of the truth that it may be off by."""

    @property
    def share(self) -> float:
        """The error as a share of the truth, with its sign."""
        return self.measured_ms / self.truth_ms - 1

    @property
    def tolerance(self) -> float:
        """The smallest relative tolerance of a gate on this metric that the meter can judge."""
        return TOLERANCE_PER_ERROR * abs(self.share)


@dataclass(frozen=True, kw_only=True)
class ClockPoint:
    """What the meter said at one concurrency."""

    streams: int
    errors: tuple[MetricError, ...]
    """Empty where nothing was measured."""

    held: float
    """Share of the concurrency."""

    server_late_ms: float
    """How late the server itself was, in the mean: the truth is known no better than that."""

    server_cores: float
    clock: ClockReport | None
    """None where nothing was measured."""

    cause: str
    """Why this client cannot be trusted at this concurrency; "" where it can."""


def check_clock(
    streams: Sequence[int] = STREAMS,
    *,
    truth: Behaviour = _TRUTH,
    osl: int = TRUTH_OSL,
    trust: ClockTrust | None = None,
    say: Callable[[int], None] = lambda streams: None,
) -> Iterator[ClockPoint]:
    """Measure the simulated server, in a process of its own, at each concurrency.

    `say(streams)` is called before each. Raises `SettingsError` for a concurrency below 1, and `KeyboardInterrupt` after
    Ctrl-C; the server is stopped in any case.
    """
    for count in streams:
        if count < 1:
            raise SettingsError(f"--streams {count}: must be at least 1.")
    for count in streams:
        say(count)
        yield _measure(count, truth, osl, trust or ClockTrust())


def _measure(streams: int, truth: Behaviour, osl: int, trust: ClockTrust) -> ClockPoint:
    with serve_in_process(truth) as url:
        endpoint = Endpoint.parse(url, model=truth.model)
        plan = LoadPlan(num_requests=max(_MIN_REQUESTS, _ROUNDS * streams), osl=osl, concurrency=streams)
        try:
            bodies = SyntheticBodies(endpoint, isl=_ISL, osl=osl, seed=0)
            run = spread_load(endpoint, plan, lambda _: bodies)
        except EngineError as error:
            return ClockPoint(
                streams=streams, errors=(), held=0.0, server_late_ms=0.0, server_cores=0.0, clock=None, cause=str(error)
            )
        if run.interrupted:
            raise KeyboardInterrupt
        stats = read_stats(endpoint.host, endpoint.port)
    metrics = summarise_load(run, isl=_ISL, check=False).metrics
    rows = (
        ("ttft_ms.mean", truth.ttft_ms, trust.ttft_mean),
        ("ttft_ms.p99", truth.ttft_ms, trust.ttft_p99),
        ("itl_ms.mean", truth.itl_ms, trust.itl_mean),
    )
    errors = tuple(
        MetricError(metric=name, truth_ms=true_ms, measured_ms=metrics[name], allowed=allowed)
        for name, true_ms, allowed in rows
        if name in metrics
    )
    held = run.held / streams
    cause = check_load(run, isl=_ISL, min_held_share=trust.held) or _cause(errors, stats["lateness_mean_ms"])
    return ClockPoint(
        streams=streams,
        errors=errors,
        held=held,
        server_late_ms=stats["lateness_mean_ms"],
        server_cores=stats["cpu_s"] / stats["since_s"],
        clock=run.clock,
        cause=cause,
    )


def _cause(errors: Sequence[MetricError], server_late_ms: float) -> str:
    worst = max(errors, key=lambda error: abs(error.share) / error.allowed)
    if abs(worst.share) <= worst.allowed:
        return ""
    off = (
        f"{worst.metric} {worst.measured_ms:.2f} ms where the truth is {worst.truth_ms:g} ({100 * worst.share:+.2f} %, "
        f"{100 * worst.allowed:g} % is allowed)"
    )
    if server_late_ms >= worst.allowed * worst.truth_ms:
        return (
            f"{off}; the simulated server itself was late by {server_late_ms:.2f} ms in the mean: the machine is busy"
        )
    return off
