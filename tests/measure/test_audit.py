"""The audit: a cache of answers is found, and chance, noise and a prefix cache that says so are not called one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pytest_inferperf.engines.interface import Generation, GenerationRequest
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.measure.audit import PAIRS, Timed, audit_prompts, check_cache
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.measure.witness import Honesty
from pytest_inferperf.model.case import Workload
from tests.measure.test_session import StubEngine, good

WORKLOAD = Workload(isl=4, osl=8, concurrency=4, num_requests=12, rounds=1)


def timed(first: float, last: float, *, cached: int = 0) -> list[Timed]:
    """Answers around these times, no two alike."""
    draw = random.Random(f"{first}/{last}/{cached}")
    spread = [draw.uniform(0.95, 1.05) for _ in range(PAIRS)]
    return [Timed(first_s=first * share, last_s=last * share, cached_tokens=cached) for share in spread]


def test_as_fast_as_new_ones() -> None:
    assert check_cache(timed(0.1, 1.0), timed(0.1, 1.0)[::-1]) == ""
    assert check_cache(timed(0.1, 1.0), timed(0.3, 3.0)) == ""


@pytest.mark.parametrize(
    ("repeated", "says"),
    [
        (timed(0.001, 0.002), "answers come from a cache: the first token of a repeated prompt took "),
        (timed(0.1, 0.2), "answers come from a cache: the whole answer of a repeated prompt took "),
        (timed(0.05, 0.95), "answers come from a cache: the first token of a repeated prompt took "),
        (timed(0.05, 0.95, cached=64), ""),
        (
            timed(0.05, 0.2, cached=64),
            "answers come from a cache: the tokens after the first of a repeated prompt took ",
        ),
    ],
)
def test_faster_than_new_ones(repeated: list[Timed], says: str) -> None:
    found = check_cache(timed(0.1, 1.0), repeated)
    assert found.startswith(says)
    assert bool(found) is bool(says)


def test_a_sure_difference_that_is_small_is_no_cache() -> None:
    new = timed(0.1, 1.0)
    again = [replace(item, first_s=0.085, last_s=0.85 + item.first_s / 100) for item in new]
    assert check_cache(new, again) == ""


def test_a_large_difference_that_chance_may_make_is_no_cache() -> None:
    """Half of the repeated ones are quick; on a busy machine so are some of the others."""
    noisy = [Timed(first_s=item, last_s=item) for item in (0.1, 0.1001, 0.11, 0.12, 0.5, 0.6, 0.7, 0.8)]
    again = [Timed(first_s=item, last_s=item) for item in (0.09, 0.105, 0.115, 0.125, 0.126, 0.127, 0.9, 0.91)]
    assert check_cache(noisy, again) == ""


class Cached(StubEngine):
    """Answers a prompt that it has answered before at once, if told to; and remembers the order of prompts."""

    caches = True

    def generate(self, requests: list[GenerationRequest], *, concurrency: int) -> list[Generation]:  # type: ignore[override]
        seen = {request.prompt for before, _ in self.asked for request in before}
        answers = super().generate(requests, concurrency=concurrency)
        draw = random.Random(len(self.asked))
        found = []
        for request, answer in zip(requests, answers, strict=True):
            share = draw.uniform(0.9, 1.1) * (0.01 if self.caches and request.prompt in seen else 1.0)
            found.append(replace(answer, token_times_s=tuple(share * time for time in answer.token_times_s)))
        return found


def test_engine_in_process_that_caches() -> None:
    with pytest.raises(InvalidRun, match="answers come from a cache: the first token of a repeated prompt took "):
        measure_session(Cached(good), WORKLOAD, honesty=Honesty(audit=True))


def test_engine_in_process_that_does_not_and_the_order_of_its_prompts() -> None:
    engine = Cached(good)
    engine.caches = False
    measure_session(engine, WORKLOAD, honesty=Honesty(audit=True))
    asked = [requests[0].prompt for requests, concurrency in engine.asked[3:]]
    assert len(asked) == 1 + 2 * PAIRS
    measured = {request.prompt for request in engine.asked[1][0]}
    repeats = [prompt in measured for prompt in asked[1:]]
    assert repeats == [True, False, False, True] * (PAIRS // 2)
    assert len({prompt for prompt in asked if prompt not in measured}) == PAIRS + 1


def test_nothing_to_repeat() -> None:
    with pytest.raises(InvalidRun, match="no answer was given that --inferperf-audit could ask for again"):
        audit_prompts([lambda: Timed(first_s=1, last_s=1)], [])
