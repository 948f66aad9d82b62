"""Rounds, sessions and the metric formulas, against figures worked by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    TokenChunk,
)
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.measure import session
from pytest_inferperf.measure.interruption import MeasurementInterrupted
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.measure.summary import summarise_round
from pytest_inferperf.measure.validity import check_engine
from pytest_inferperf.measure.workload import make_requests
from pytest_inferperf.model.case import EngineSpec, Workload
from pytest_inferperf.model.results import Round
from tests.values import engine_info

INFO = engine_info(max_model_len=100)


def generation(*times: float, prompt: int = 4) -> Generation:
    return Generation(
        token_ids=(7,) * len(times), text="", finish_reason="length", prompt_tokens=prompt, token_times_s=times
    )


class StubEngine(Engine):
    """Answers with what a test gives it, and remembers what it was asked."""

    def __init__(self, answer: Callable[[GenerationRequest], Generation]) -> None:
        self.spec = EngineSpec(model="m", served_model_name="m")
        self.info = INFO
        self.answer = answer
        self.asked: list[tuple[list[GenerationRequest], int]] = []

    prefix_token_id = 1
    eos_token_id = 2
    vocab_size = 50
    special_token_ids = frozenset({1, 2})

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        raise NotImplementedError

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        raise NotImplementedError

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        self.asked.append((list(requests), concurrency))
        return [self.answer(request) for request in requests]

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        raise NotImplementedError

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        raise NotImplementedError

    peak_gib = 8
    """What another test asked of the engine."""

    def peak_memory_bytes(self) -> int:
        return self.peak_gib * 2**30

    def forget_peak_memory(self) -> None:
        self.peak_gib = 3

    def close(self) -> None:
        return


def good(request: GenerationRequest) -> Generation:
    times = tuple(0.1 + 0.01 * index for index in range(request.max_tokens))
    return generation(*times, prompt=len(request.prompt))


def test_formulas_by_hand() -> None:
    generations = [generation(0.1, 0.2, 0.4), generation(0.3, 0.4, 0.5)]
    found = summarise_round(generations, duration_s=0.5, devices=2, peak_memory_bytes=2**30)
    expected = {
        "output_throughput": 12.0,
        "output_throughput_per_gpu": 6.0,
        "total_throughput": 28.0,
        "request_throughput": 4.0,
        "ttft_ms.mean": 200.0,
        "ttft_ms.p50": 200.0,
        "ttft_ms.p99": 298.0,
        "tpot_ms.mean": 125.0,
        "itl_ms.mean": 125.0,
        "itl_ms.p50": 100.0,
        "e2e_latency_ms.mean": 450.0,
        "output_throughput_per_user": (1000 / 150 + 1000 / 100) / 2,
        "peak_memory_gib": 1.0,
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected)
    assert (found.input_tokens, found.output_tokens, found.num_failed_requests) == (8, 6, 0)


def test_one_output_token_has_no_tpot_and_no_itl() -> None:
    found = summarise_round([generation(0.1)], duration_s=0.5, devices=1, peak_memory_bytes=1)
    names = {name.partition(".")[0] for name in found.metrics}
    assert names.isdisjoint({"tpot_ms", "itl_ms", "output_throughput_per_user"})
    assert found.metrics["ttft_ms.p50"] == pytest.approx(100.0)


def test_failed_requests_are_counted_and_lend_no_figures() -> None:
    found = summarise_round([generation(0.1, 0.2), generation()], duration_s=1.0, devices=1, peak_memory_bytes=1)
    assert found.num_failed_requests == 1
    assert found.metrics["request_throughput"] == 1.0
    assert found.metrics["ttft_ms.mean"] == pytest.approx(100.0)


def test_every_request_failed_gives_no_latency() -> None:
    """A mean TTFT of 0.0 would pass any ceiling."""
    found = summarise_round([generation(), generation()], duration_s=1.0, devices=1, peak_memory_bytes=1)
    assert found.num_failed_requests == 2
    assert not any(name.startswith(("ttft_ms", "e2e_latency_ms")) for name in found.metrics)


def test_warm_up_rounds_are_run_and_not_counted() -> None:
    engine = StubEngine(good)
    timed: list[int] = []

    def timer(target: Callable[[], None]) -> None:
        timed.append(len(engine.asked))
        target()

    workload = Workload(isl=4, osl=3, concurrency=2, num_requests=6, rounds=3, warmup_rounds=2)
    found = measure_session(engine, workload, timer=timer)
    assert len(engine.asked) == 5
    assert timed == [2, 3, 4]
    assert (len(found.rounds), found.warmup_rounds) == (3, 2)
    assert all(len(requests) == 6 and concurrency == 2 for requests, concurrency in engine.asked)
    assert [item.metrics["peak_memory_gib"] for item in found.rounds] == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(("rounds_before", "kept"), [(0, 0), (1, 0), (2, 1), (4, 3)])
def test_ctrl_c_brings_the_rounds_that_count_and_no_warm_up(
    monkeypatch: pytest.MonkeyPatch, rounds_before: int, kept: int
) -> None:
    """Two warm-up rounds, then three. A server's round brings a part of itself, also out of a warm-up."""
    engine, run = StubEngine(good), session.run_round

    def stopped(*arguments: Any, **options: Any) -> Round:
        found = run(*arguments, **options)
        if len(engine.asked) > rounds_before:
            raise MeasurementInterrupted((found,))
        return found

    monkeypatch.setattr(session, "run_round", stopped)
    workload = Workload(isl=4, osl=3, concurrency=2, rounds=3, warmup_rounds=2)
    with pytest.raises(MeasurementInterrupted) as raised:
        measure_session(engine, workload)
    assert len(raised.value.rounds) == kept


def test_prompts_are_exact_seeded_distinct_and_free_of_special_tokens() -> None:
    engine = StubEngine(good)
    workload = Workload(isl=20, osl=3, concurrency=4, seed=1)
    first = make_requests(engine, workload, round_index=0)
    assert first == make_requests(engine, workload, round_index=0)
    second = make_requests(engine, workload, round_index=1)
    prompts = [request.prompt for request in first + second]
    assert len(set(prompts)) == 8
    assert {len(prompt) for prompt in prompts} == {20}
    assert not {token for prompt in prompts for token in prompt} & {1, 2}
    assert all(request.ignore_eos and request.max_tokens == 3 for request in first)
    other = make_requests(engine, Workload(isl=20, osl=3, concurrency=4, seed=2), round_index=0)
    assert {request.prompt for request in other}.isdisjoint(prompts)


def test_workload_that_does_not_fit_is_invalid() -> None:
    with pytest.raises(InvalidRun, match=r"isl 90 \+ osl 11 tokens do not fit the engine's context of 100 tokens"):
        make_requests(StubEngine(good), Workload(isl=90, osl=11), round_index=0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda request: generation(0.1, 0.2), "returned 2 tokens where the workload asks for exactly 3"),
        (lambda request: generation(0.1, 0.2, 0.3, prompt=2), "was sent with 4 tokens and the engine counted 2"),
        (lambda request: generation(0.3, 0.2, 0.4), "token times that run backwards"),
        (lambda request: generation(0.0, 0.2, 0.4), "token times that run backwards"),
    ],
)
def test_answers_that_cannot_be_trusted(answer: Callable[[GenerationRequest], Generation], message: str) -> None:
    with pytest.raises(InvalidRun, match=message):
        measure_session(StubEngine(answer), Workload(isl=4, osl=3, rounds=1))


@pytest.mark.parametrize(
    ("spec", "info", "reason"),
    [
        ({"quant": "BF16"}, {}, ""),
        ({"quant": "NVFP4"}, {"quant_algo": "NVFP4"}, ""),
        ({"quant": "NVFP4"}, {"quant_algo": "FP8"}, "the engine runs FP8 where the case asks for NVFP4"),
        ({"quant": "NVFP4"}, {}, "the engine runs unquantized weights where the case asks for NVFP4"),
        ({"quant": "BF16"}, {"quant_algo": "FP8"}, "the engine runs FP8 where the case asks for BF16"),
        ({"kv_cache_dtype": "fp8"}, {"kv_cache_quant_algo": "FP8"}, ""),
        ({"kv_cache_dtype": "fp8"}, {}, "the engine's KV cache is not quantized where the case asks for fp8"),
    ],
)
def test_engine_must_be_the_one_asked_for(spec: dict[str, str], info: dict[str, str], reason: str) -> None:
    from dataclasses import replace

    asked = EngineSpec(model="m", served_model_name="m", **spec)  # type: ignore[arg-type]
    assert check_engine(asked, replace(INFO, **info)).startswith(reason)  # type: ignore[arg-type]
    assert bool(check_engine(asked, replace(INFO, **info))) is bool(reason)  # type: ignore[arg-type]
