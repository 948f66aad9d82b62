"""What is asked of an engine when its measured rounds are over: the same again, to see whether its answers were honest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pytest_inferperf.engines.interface import Engine, Generation, GenerationRequest, Serving
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.measure.agreement import Agreement, generations_alone
from pytest_inferperf.measure.serving import serving_of
from pytest_inferperf.model.case import Workload
from pytest_inferperf.model.results import Round

if TYPE_CHECKING:
    from pytest_inferperf.measure.load.clock import ClockReport
    from pytest_inferperf.measure.load.outputs import Output
    from pytest_inferperf.measure.load.skew import HostClock

__all__ = ["Honesty", "Witness", "with_agreement"]

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Honesty:
    """How closely answers are looked at."""

    compared: int = 16
    """Answers of each session that are asked for again; 0 for none."""

    max_count_error: float = 0.3
    """Largest share by which the tokens that a server counts may differ from those in its text."""

    audit: bool = False
    """Whether prompts are repeated, to find answers that come from a cache."""


class Witness:
    """Sees the answers of the measured rounds of one session and keeps a random sample; the seed decides which."""

    def __init__(self, honesty: Honesty, *, seed: int) -> None:
        self.honesty = honesty
        self._random = random.Random(f"{seed}/witness")
        self._generations: list[tuple[GenerationRequest, Generation]] = []
        self._outputs: list[Output] = []
        self._served: Workload | None = None
        self._clocks: list[tuple[ClockReport, ...]] = []
        self._hosts: list[tuple[HostClock, ...]] = []

    def saw(self, requests: Sequence[GenerationRequest], answers: Sequence[Generation]) -> None:
        """Take the answers of a round of an engine in this process or a process of its own."""
        given = [item for item in zip(requests, answers, strict=True) if item[1].token_ids]
        self._generations += self._draw(given)

    def saw_outputs(self, outputs: Sequence[Output], workload: Workload) -> None:
        """Take the sample of a round of a workload that a server answered."""
        self._outputs += outputs
        self._served = workload

    def saw_clocks(self, clocks: Sequence[ClockReport], hosts: Sequence[HostClock] = ()) -> None:
        """Take what the processes that sent a round found of their own clocks, and how well those of other hosts were known."""
        self._clocks.append(tuple(clocks))
        self._hosts.append(tuple(hosts))

    @property
    def client_figures(self) -> dict[str, float]:
        """What the client of a server did in the worst of the rounds; empty where there was none."""
        if not self._clocks:
            return {}
        each = [clock for clocks in self._clocks for clock in clocks]
        errors = {
            "late_ms": [clock.wait for clock in each],
            "lag_ms": [clock.lag for clock in each],
            "send_late_ms": [clock.lateness for clock in each],
        }
        hosts = [host for hosts in self._hosts for host in hosts]
        skew = (
            {"client.hosts": float(max(map(len, self._hosts))), "client.skew_ms": max(host.error_ms for host in hosts)}
            if hosts
            else {}
        )
        return (
            {
                "client.processes": float(max(len(clocks) for clocks in self._clocks)),
                "client.cpu_share": max(clock.cpu_share for clock in each),
                "client.idle_share": max(clock.idle_share for clock in each),
                "client.kernel_times": float(all(clock.wait_source == "kernel" for clock in each)),
            }
            | {
                f"client.{name}": max(found)
                for name, samples in errors.items()
                if (found := [error.mean_ms for error in samples if error is not None])
            }
            | skew
        )

    def _serving(self, engine: Engine) -> Serving | None:
        """How the answers were asked for; None where no server gave any."""
        return serving_of(engine, self._served) if self._outputs and self._served is not None else None

    def ask_again(self, engine: Engine) -> Agreement | None:
        """Ask for the sample again at concurrency 1; None where nothing was seen.

        Raises `InvalidRun` for a server whose answers contradict each other, `EngineError` where the engine fails.
        """
        serving = self._serving(engine)
        if serving is not None:
            from pytest_inferperf.measure.load.honesty import ask_alone, check_outputs, outputs_agreement

            sample = self._draw(self._outputs)
            alone = ask_alone(serving.endpoint, sample)
            cause = check_outputs(sample, alone, encode=serving.encode, max_count_error=self.honesty.max_count_error)
            if cause:
                raise InvalidRun(cause)
            return outputs_agreement(sample, alone, encode=serving.encode)
        return generations_alone(engine, self._draw(self._generations)) if self._generations else None

    def audit(self, engine: Engine, workload: Workload) -> None:
        """Repeat prompts of the measured rounds between new ones; see `audit`.

        Raises `InvalidRun` where repeated prompts are answered faster, `EngineError` where the engine fails.
        """
        from pytest_inferperf.measure.audit import PAIRS, audit_prompts, new_requests, timed_generation

        new = new_requests(engine, workload)
        serving = self._serving(engine)
        if serving is not None:
            from pytest_inferperf.measure.load.honesty import timed_answer

            timed = partial(partial, timed_answer, serving.endpoint)
            again = [output.body for output in self._outputs[:PAIRS]]
            audit_prompts([timed(serving.body(item)) for item in new], [timed(body) for body in again])
            return
        ask = partial(partial, timed_generation, engine)
        audit_prompts([ask(item) for item in new], [ask(item) for item, _ in self._generations[:PAIRS]])

    def _draw(self, items: Sequence[_Item]) -> list[_Item]:
        return self._random.sample(items, min(self.honesty.compared, len(items)))


def with_agreement(rounds: Sequence[Round], found: Agreement | None) -> tuple[Round, ...]:
    """Put the agreement of a session into its last round: one figure of the session, and no round has its own."""
    if found is None or not rounds:
        return tuple(rounds)
    last = replace(rounds[-1], metrics={**rounds[-1].metrics, "output_agreement": found.prefix})
    return (*rounds[:-1], last)
