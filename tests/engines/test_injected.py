"""The injected engine: what it makes worse, by how much, and what it leaves alone."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean, stdev

import pytest

from pytest_inferperf.engines.injected import InjectedEngine, wrong_text
from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    TokenChunk,
)
from pytest_inferperf.measure.agreement import common_prefix
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.model.case import EngineSpec, Workload
from pytest_inferperf.model.injection import parse_injections
from pytest_inferperf.model.metrics import COMPARED_TOKENS
from pytest_inferperf.model.results import Hardware
from tests.values import engine_info

Tokens = tuple[int, ...]


class PlainEngine(Engine):
    """Takes 10 ms for a token, in turns of `concurrency`, and answers 42."""

    can_relaunch = True
    prefix_token_id = 1
    eos_token_id = 2
    vocab_size = 128
    special_token_ids = frozenset({1, 2})

    def __init__(self) -> None:
        self.spec = EngineSpec(model="m", served_model_name="m")
        self.launches = 1
        self.closed = False
        self.take_s = 0.0
        self.describe()

    def describe(self) -> None:
        self.info = engine_info(
            backend="plain",
            hardware=Hardware(name="Test CPU", count=1, kind="cpu"),
            max_model_len=4096,
            load_s=float(self.launches),
        )

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[Tokens]:
        return [tuple(text.encode()) for text in texts]

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        return [bytes(sequence).decode() for sequence in sequences]

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        time.sleep(self.take_s)
        return [self.answer(request) for request in requests]

    def answer(self, request: GenerationRequest) -> Generation:
        ids = (65,) * request.max_tokens if request.ignore_eos else (*b"is 42", 2)
        return Generation(
            token_ids=ids,
            text="" if request.ignore_eos else "is 42",
            finish_reason="length" if request.ignore_eos else "stop",
            prompt_tokens=len(request.prompt),
            token_times_s=tuple(0.01 * (position + 1) for position in range(len(ids))),
        )

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        answer = self.answer(request)
        for token, time_s in zip(answer.token_ids, answer.token_times_s, strict=True):
            yield TokenChunk(token_ids=(token,), text=chr(token), time_s=time_s)

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        time.sleep(self.take_s)
        return [LogLikelihood(logprob=-float(item.continuation[-1]), is_greedy=True) for item in requests]

    def peak_memory_bytes(self) -> int:
        return 1000

    def relaunch(self) -> None:
        self.launches += 1
        self.describe()

    def close(self) -> None:
        self.closed = True


def injected(*texts: str, score: float | None = None, seed: str = "", take_s: float = 0.0) -> InjectedEngine:
    plain = PlainEngine()
    plain.take_s = take_s
    return InjectedEngine(plain, parse_injections(texts), score=score, seed=seed)


def load(count: int = 4, tokens: int = 3) -> list[GenerationRequest]:
    return [GenerationRequest(prompt=(9, index), max_tokens=tokens, ignore_eos=True) for index in range(count)]


def questions(count: int) -> list[GenerationRequest]:
    return [GenerationRequest(prompt=tuple(f"question {index}".encode()), max_tokens=8) for index in range(count)]


def test_nothing_injected_changes_nothing() -> None:
    plain, engine = PlainEngine(), injected()
    assert engine.generate(questions(3), concurrency=2) == plain.generate(questions(3), concurrency=2)
    asked = [LogLikelihoodRequest(context=(3, 4), continuation=(5,))]
    assert engine.loglikelihood(asked, concurrency=1) == plain.loglikelihood(asked, concurrency=1)
    assert [*engine.stream(questions(1)[0])] == [*plain.stream(questions(1)[0])]
    assert engine.peak_memory_bytes() == 1000


def test_everything_else_is_the_engine_s_own() -> None:
    plain = PlainEngine()
    engine = InjectedEngine(plain, parse_injections(["slowdown:5%"]))
    assert engine.spec is plain.spec
    assert engine.encode(["ab"]) == [(97, 98)]
    assert engine.decode([(97, 98)]) == ["ab"]
    assert (engine.prefix_token_id, engine.eos_token_id, engine.vocab_size) == (1, 2, 128)
    assert engine.special_token_ids == {1, 2}
    assert engine.can_relaunch is True
    engine.relaunch()
    assert (plain.launches, engine.info.load_s) == (2, 2.0)
    with engine:
        pass
    assert plain.closed


class Dealing(PlainEngine):
    """Has what it is asked answered by another engine, as one with replicas does."""

    def __init__(self) -> None:
        super().__init__()
        self.other = PlainEngine()
        self.lent: list[int] = []

    @contextmanager
    def evaluators(self, replicas: int) -> Iterator[Engine]:
        self.lent.append(replicas)
        yield self.other
        self.lent.append(0)


def test_replicas_answer_wrong_what_one_engine_answers_wrong() -> None:
    asked = questions(200)
    injections = parse_injections(["accuracy:20pt"])
    alone = InjectedEngine(PlainEngine(), injections, score=0.8)
    dealing = Dealing()
    with InjectedEngine(dealing, injections, score=0.8).evaluators(3) as engine:
        found = engine.generate(asked, concurrency=8)
    assert dealing.lent == [3, 0]
    assert [item.text for item in found] == [item.text for item in alone.generate(asked, concurrency=8)]
    assert 30 < sum(item.text != "is 42" for item in found) < 70
    assert not dealing.other.closed


def test_an_engine_that_has_no_replicas_answers_itself() -> None:
    engine = injected("accuracy:20pt")
    with engine.evaluators(3) as found:
        assert found is engine


@pytest.mark.parametrize(
    ("injection", "factor", "delay_s"),
    [("slowdown:20%", 1.25, 0.0), ("latency:50%", 1.5, 0.0), ("latency:20ms", 1.0, 0.02)],
)
def test_tokens_come_later(injection: str, factor: float, delay_s: float) -> None:
    (answer,) = injected(injection).generate(load(1), concurrency=1)
    assert answer.token_times_s == pytest.approx([factor * item + delay_s for item in (0.01, 0.02, 0.03)])


@pytest.mark.parametrize(
    ("injection", "expected_s"),
    # A slot serves two of the four requests, one after the other, and each is 30 ms late.
    [("slowdown:50%", 0.2), ("latency:100%", 0.2), ("latency:30ms", 0.16)],
)
def test_a_round_really_takes_longer(injection: str, expected_s: float) -> None:
    engine = injected(injection, take_s=0.1)
    start = time.perf_counter()
    engine.generate(load(4), concurrency=2)
    took_s = time.perf_counter() - start
    assert expected_s <= took_s < expected_s + 0.1
    asked = [LogLikelihoodRequest(context=(3, 4), continuation=(5,))]
    start = time.perf_counter()
    engine.loglikelihood(asked, concurrency=2)
    assert time.perf_counter() - start > 0.12


def test_metrics_are_worse_by_what_was_asked_for() -> None:
    workload = Workload(isl=4, osl=8, concurrency=2, rounds=2, warmup_rounds=0)

    def measured(*texts: str) -> dict[str, float]:
        (first, _) = measure_session(injected(*texts, take_s=0.1), workload).rounds
        return dict(first.metrics)

    clean, slow, late = measured(), measured("slowdown:20%"), measured("latency:30ms")
    assert slow["output_throughput"] == pytest.approx(0.8 * clean["output_throughput"], rel=0.05)
    assert slow["output_throughput_per_user"] == pytest.approx(0.8 * clean["output_throughput_per_user"])
    assert slow["tpot_ms.p50"] == pytest.approx(1.25 * clean["tpot_ms.p50"])
    assert late["ttft_ms.p99"] == pytest.approx(clean["ttft_ms.p99"] + 30)
    assert late["e2e_latency_ms.p99"] == pytest.approx(clean["e2e_latency_ms.p99"] + 30)
    assert late["tpot_ms.p50"] == pytest.approx(clean["tpot_ms.p50"])
    assert late["output_throughput"] < clean["output_throughput"]


@pytest.mark.parametrize(("share", "calls", "failed"), [(25, 4, 4), (10, 10, 4), (100, 1, 4), (0.5, 50, 1)])
def test_as_many_requests_fail_as_the_share_says(share: float, calls: int, failed: int) -> None:
    engine = injected(f"errors:{share}%")
    found = [item for _ in range(calls) for item in engine.generate(load(4), concurrency=2)]
    assert sum(not item.token_ids for item in found) == failed
    assert all(len(item.token_ids) == len(item.token_times_s) for item in found)
    # Questions are no load.
    assert all(item.token_ids for item in engine.generate(questions(8), concurrency=2))


@pytest.mark.parametrize(("size", "kept"), [(20, 8), (25, 7), (100, 0), (1, 9)])
def test_answers_under_load_end_otherwise_than_alone(size: int, kept: int) -> None:
    engine = injected(f"agreement:{size}%")
    requests = load(4, tokens=10)
    loaded = engine.generate(requests, concurrency=1)
    again = engine.generate(requests[:2], concurrency=1)
    assert [item.token_ids for item in again] == [(65,) * 10] * 2
    assert all(common_prefix(item.token_ids, again[0].token_ids) == kept for item in loaded)
    assert all(len(item.token_ids) == 10 for item in loaded)
    # A new launch has answered nothing yet.
    engine.generate(requests, concurrency=2)
    engine.relaunch()
    assert engine.generate(requests[:1], concurrency=1)[0].token_ids != (65,) * 10


def test_long_answers_differ_where_they_are_compared() -> None:
    engine = injected("agreement:50%")
    (loaded,) = engine.generate(load(1, tokens=1000), concurrency=4)
    assert common_prefix(loaded.token_ids, (65,) * 1000) == COMPARED_TOKENS / 2


def test_memory() -> None:
    assert injected("memory:20%").peak_memory_bytes() == 1200


def test_stream_waits_for_the_time_it_names() -> None:
    start = time.perf_counter()
    chunks = [(chunk.time_s, time.perf_counter() - start) for chunk in injected("latency:50ms").stream(load(1)[0])]
    assert [named for named, _ in chunks] == pytest.approx([0.06, 0.07, 0.08])
    assert all(came >= named for named, came in chunks)


def factors(seed: str, count: int) -> list[float]:
    engine = injected("noise:3%", seed=seed)
    found = []
    for _ in range(count):
        (answer,) = engine.generate(load(1), concurrency=1)
        found.append(answer.token_times_s[0] / 0.01)
        engine.relaunch()
    return found


def test_noise_is_one_factor_for_each_launch_and_moves_no_mean() -> None:
    found = factors("test_it", 3000)
    assert fmean(found) == pytest.approx(1, abs=0.002)
    assert stdev(found) == pytest.approx(0.03, abs=0.002)
    assert found[:5] == factors("test_it", 5)
    assert found[:5] != factors("test_that", 5)
    engine = injected("noise:3%", seed="test_it")
    (first,), (second,) = engine.generate(load(1), concurrency=1), engine.generate(load(1), concurrency=1)
    assert first == second


def test_noise_makes_a_launch_faster_too_by_its_clock() -> None:
    """An engine cannot be hurried, so the clock that rounds are timed by runs behind."""
    seed = next(str(seed) for seed in range(100) if factors(str(seed), 1)[0] < 0.98)
    engine = injected("noise:3%", seed=seed, take_s=0.2)
    (factor,) = factors(seed, 1)
    start_s, start = engine.clock_s(), time.perf_counter()
    engine.generate(load(1), concurrency=1)
    by_clock_s, really_s = engine.clock_s() - start_s, time.perf_counter() - start
    assert by_clock_s == pytest.approx(factor * really_s, rel=0.01)


def right(answers: Sequence[Generation]) -> float:
    return fmean("42" in answer.text for answer in answers)


@pytest.mark.parametrize(("points", "score", "share"), [(2, None, 0.02), (2, 0.5, 0.04), (30, 0.9, 1 / 3)])
def test_a_share_of_the_prompts_is_answered_wrong(points: int, score: float | None, share: float) -> None:
    engine = injected(f"accuracy:{points}pt", score=score)
    asked = questions(20_000)
    answers = engine.generate(asked, concurrency=64)
    assert 1 - right(answers) == pytest.approx(share, abs=3 * math.sqrt(share / 20_000))
    wrong = [answer for answer in answers if "42" not in answer.text]
    empty = [answer for answer in wrong if not answer.text]
    assert len(empty) / len(wrong) == pytest.approx(0.5, abs=0.1)
    assert {answer.text for answer in wrong} == {"", "is 53"}
    for answer in wrong:
        assert len(answer.token_ids) == len(answer.token_times_s)
        assert answer.token_ids == ((2,) if not answer.text else tuple(b"is 53"))


def test_the_same_prompts_are_wrong_in_every_order_and_call() -> None:
    engine = injected("accuracy:20pt")
    asked = questions(200)
    whole = engine.generate(asked, concurrency=8)
    order = random.Random(1).sample(range(200), 200)
    shuffled = engine.generate([asked[index] for index in order], concurrency=3)
    assert [whole[index].text for index in order] == [answer.text for answer in shuffled]
    assert engine.generate(asked[150:], concurrency=1) == whole[150:]
    assert right(whole) > right(injected("accuracy:40pt").generate(asked, concurrency=8)) > 0.4


def test_stream_and_generate_agree_on_wrong_answers() -> None:
    engine = injected("accuracy:50pt")
    for request in questions(20):
        (whole,) = engine.generate([request], concurrency=1)
        chunks = [*engine.stream(request)]
        assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.token_ids


def test_a_workload_and_a_failed_request_are_left_alone() -> None:
    engine = injected("accuracy:100pt")
    assert engine.generate(load(), concurrency=2) == PlainEngine().generate(load(), concurrency=2)
    empty = [GenerationRequest(prompt=(5,), max_tokens=0, ignore_eos=True)]
    assert engine.generate(empty, concurrency=1)[0].token_ids == ()


def choices(count: int, options: int) -> list[LogLikelihoodRequest]:
    """Ask `count` questions with several continuations; the plain engine likes the first best."""
    return [
        LogLikelihoodRequest(context=(50, 50, question // 100, question % 100), continuation=(10, 20 + option))
        for question in range(count)
        for option in range(options)
    ]


def best(answers: Sequence[LogLikelihood], options: int) -> list[int]:
    rows = [[item.logprob for item in answers[at : at + options]] for at in range(0, len(answers), options)]
    return [row.index(max(row)) for row in rows]


def test_choices_of_one_context_share_its_fate() -> None:
    answers = injected("accuracy:30pt").loglikelihood(choices(2000, 4), concurrency=8)
    found = best(answers, 4)
    assert set(found) == {0, 3}
    assert found.count(3) / 2000 == pytest.approx(0.3, abs=0.03)
    turned = [answers[4 * index : 4 * index + 4] for index in range(2000) if found[index] == 3]
    assert all([item.logprob for item in row] == [-23.0, -22.0, -21.0, -20.0] for row in turned)
    assert not any(item.is_greedy for row in turned for item in row)


@pytest.mark.parametrize(("options", "score"), [(2, 0.75), (4, 0.66)])
def test_the_score_of_choices_falls_by_what_was_asked_for(options: int, score: float) -> None:
    """A wrong answer turned around may be right: where the wrong ones are chosen evenly, the points still fit."""
    rng = random.Random(1)
    truth = [0 if rng.random() < score else rng.randrange(1, options) for _ in range(9000)]
    asked = choices(9000, options)
    plain = PlainEngine()
    before = best(plain.loglikelihood(asked, concurrency=1), options)
    after = best(injected("accuracy:10pt", score=score).loglikelihood(asked, concurrency=1), options)
    lost = fmean(map(int.__eq__, before, truth)) - fmean(map(int.__eq__, after, truth))
    assert lost == pytest.approx(0.1, abs=0.015)


def test_a_score_that_no_wrong_answer_can_lower_loses_all_it_can() -> None:
    found = best(injected("accuracy:1pt", score=0.4).loglikelihood(choices(50, 2), concurrency=1), 2)
    assert set(found) == {1}


def test_a_text_without_context_gets_less_likely() -> None:
    texts = [LogLikelihoodRequest(context=(1,), continuation=(index // 100, index % 100, 30)) for index in range(2000)]
    answers = injected("accuracy:20pt").loglikelihood(texts, concurrency=8)
    worse = [item for item in answers if item.logprob == -60.0]
    assert {item.logprob for item in answers} == {-30.0, -60.0}
    assert len(worse) / 2000 == pytest.approx(0.2, abs=0.03)
    single = [
        LogLikelihoodRequest(context=(4, 4, index // 100, index % 100), continuation=(30,)) for index in range(2000)
    ]
    spoilt = [item for item in injected("accuracy:20pt").loglikelihood(single, concurrency=8) if item.logprob == -60.0]
    assert len(spoilt) / 2000 == pytest.approx(0.2, abs=0.03)
    assert not any(item.is_greedy for item in spoilt)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("#### 42", "#### 53"),
        ("90", "11"),
        ("The answer is (A).", "The answer is (B)."),
        ("Paris", "Qbsjt"),
        ("", "0"),
        ("…", "…0"),
    ],
)
def test_wrong_text_has_the_form_of_the_right_one(text: str, wrong: str) -> None:
    assert wrong_text(text) == wrong
