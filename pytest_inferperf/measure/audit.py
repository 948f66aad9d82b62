"""Whether answers come from a cache, after MLPerf's TEST04: a repeated prompt must not be answered faster than a new one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pytest_inferperf.engines.interface import Engine, GenerationRequest
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.measure.recorded.requests import new_from_file
from pytest_inferperf.measure.recorded.traces import trace_of
from pytest_inferperf.measure.workload import make_requests
from pytest_inferperf.model.case import Workload

__all__ = ["PAIRS", "Timed", "audit_prompts", "check_cache", "new_requests", "timed_generation"]

PAIRS = 8
"""New prompts, and as many repeated ones. Eight that are all faster than eight others come by chance once in 12,870."""

_ALPHA = 0.001
_FASTER = 0.8
"""A difference that is sure but small is none of a cache."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """How long one answer took, alone, seconds from the send."""

    first_s: float
    last_s: float
    cached_tokens: int = 0
    """Prompt tokens that the server says came from its prefix cache."""


def new_requests(engine: Engine, workload: Workload) -> list[GenerationRequest]:
    """Draw prompts that no run has sent before: one to warm up, and `PAIRS`. Raises like `make_requests`."""
    if workload.dataset:
        return new_from_file(engine, workload, count=PAIRS + 1)
    if workload.trace:
        # Prompts of a trace have much in common with each other: new ones are as long, and have nothing.
        rows = trace_of(workload).rows[: workload.requests_per_round]
        isl, osl = round(median(row.isl for row in rows)), round(median(row.osl for row in rows))
        workload = replace(workload, trace="", isl=isl, osl=osl)
    # An endpoint that outlives the run knows the prompts of every seed that was used.
    fresh = replace(workload, seed=random.SystemRandom().randrange(2**31), num_requests=PAIRS + 1)
    return make_requests(engine, fresh, round_index=0)


def timed_generation(engine: Engine, request: GenerationRequest) -> Timed:
    """Ask an engine for one answer, with nothing beside it. Raises `InvalidRun` where it has none: no time is not 0."""
    (answer,) = engine.generate([request], concurrency=1)
    times = answer.token_times_s
    if not times:
        raise InvalidRun("a prompt that was asked at concurrency 1 has no answer.")
    return Timed(first_s=times[0], last_s=times[-1])


def audit_prompts(new: Sequence[Callable[[], Timed]], repeated: Sequence[Callable[[], Timed]]) -> None:
    """Ask new prompts and repeated ones in turn; the first new one is not counted.

    Raises `InvalidRun` where the repeated ones are answered faster.
    """
    if not repeated:
        raise InvalidRun("no answer was given that --inferperf-audit could ask for again.")
    new[0]()
    found: tuple[list[Timed], list[Timed]] = ([], [])
    for number, one in enumerate(new[1:]):
        turn = ((found[0], one), (found[1], repeated[number % len(repeated)]))
        # Whoever is second has a machine that is warmer: each is it every other time.
        for kept, ask in turn if number % 2 else turn[::-1]:
            kept.append(ask())
    cause = check_cache(*found)
    if cause:
        raise InvalidRun(cause)


def check_cache(new: Sequence[Timed], repeated: Sequence[Timed]) -> str:
    """Say why the answers to repeated prompts are those of a cache; "" where they took as long as new ones.

    By an exact rank test and the ratio of the medians, of the first token and of the whole answer. Where the server says
    that its prefix cache knew the repeated prompts, only the time after the first token counts: no measured prompt repeats.
    """
    from scipy.stats import mannwhitneyu

    known = any(item.cached_tokens for item in repeated)
    figures: dict[str, Callable[[Timed], float]] = {
        "the first token": lambda item: item.first_s,
        "the whole answer": lambda item: item.last_s,
    }
    if known:
        figures = {"the tokens after the first": lambda item: item.last_s - item.first_s}
    for what, figure in figures.items():
        fresh, again = [1000 * figure(item) for item in new], [1000 * figure(item) for item in repeated]
        if median(again) >= _FASTER * median(fresh):
            continue
        chance = float(mannwhitneyu(again, fresh, alternative="less", method="exact").pvalue)
        if chance < _ALPHA:
            return (
                f"answers come from a cache: {what} of a repeated prompt took {median(again):.2f} ms, and that of a new one "
                f"{median(fresh):.2f} ms (medians of {len(again)} and {len(fresh)}, by chance once in {1 / chance:,.0f} "
                "runs). Switch response caching off, and the prefix cache too, or let the server report its hits "
                "(prompt_tokens_details)"
            )
    return ""
