"""Answers under load against the same answers alone: what agrees, what does not, and what comes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_inferperf.engines.interface import Generation, GenerationRequest
from pytest_inferperf.measure.agreement import check_agreement, common_prefix, compare
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.measure.witness import Honesty
from pytest_inferperf.model.case import Workload
from pytest_inferperf.model.metrics import COMPARED_TOKENS
from tests.measure.test_session import StubEngine, good
from tests.values import one_round

ROUND = one_round({})
WORKLOAD = Workload(isl=4, osl=8, concurrency=4, num_requests=10, rounds=2)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [("abc", "abc", 3), ("abc", "abd", 2), ("abc", "xbc", 0), ("abc", "abcde", 3), ("", "a", 0), ((1, 2), (1, 3), 1)],
)
def test_common_prefix(one: str, other: str, common: int) -> None:
    assert common_prefix(one, other) == common_prefix(other, one) == common


def test_shares_by_hand() -> None:
    """The whole, a half, and nothing; what goes on after the end of the answer alone is not compared."""
    found = compare([("abcdef", "abcd"), ("abxx", "abcd"), ("", "abcd")])
    assert (found.prefix, found.identical) == pytest.approx((0.5, 1 / 3))
    assert found.compared == 3
    assert compare([("", ""), ("a", "")]).prefix == 0.5


class Batched(StubEngine):
    """Answers as `alone` says at concurrency 1, and otherwise under load."""

    wrong_from = 0

    def generate(self, requests: list[GenerationRequest], *, concurrency: int) -> list[Generation]:  # type: ignore[override]
        answers = super().generate(requests, concurrency=concurrency)
        ids = [tuple(request.prompt[0] + place for place in range(request.max_tokens)) for request in requests]
        if concurrency > 1:
            ids = [tuple(token if place < self.wrong_from else 99 for place, token in enumerate(item)) for item in ids]
        return [replace(answer, token_ids=item) for answer, item in zip(answers, ids, strict=True)]


@pytest.mark.parametrize(("wrong_from", "share", "identical"), [(8, 1.0, 1.0), (2, 0.25, 0.0), (0, 0.0, 0.0)])
def test_engine_in_process(wrong_from: int, share: float, identical: float) -> None:
    engine = Batched(good)
    engine.wrong_from = wrong_from
    session = measure_session(engine, WORKLOAD, honesty=Honesty(compared=16))
    first, last = session.rounds
    assert "output_agreement" not in first.metrics
    assert last.metrics["output_agreement"] == pytest.approx(share)
    assert session.telemetry["outputs.compared"] == 16
    assert session.telemetry["outputs.identical"] == identical
    asked, concurrency = engine.asked[-1]
    assert (len(asked), concurrency) == (16, 1)
    measured = {request.prompt for requests, _ in engine.asked[-3:-1] for request in requests}
    assert {request.prompt for request in asked} <= measured


def test_warm_up_is_no_witness_and_long_answers_are_compared_in_part() -> None:
    engine = Batched(good)
    engine.info = replace(engine.info, max_model_len=1000)
    workload = Workload(isl=4, osl=500, concurrency=2, num_requests=2, rounds=1, warmup_rounds=1)
    measure_session(engine, workload, honesty=Honesty(compared=16))
    (warm_up, _), (measured, _), (asked, _) = engine.asked
    assert {request.prompt for request in asked} == {request.prompt for request in measured}
    assert not {request.prompt for request in asked} & {request.prompt for request in warm_up}
    assert {request.max_tokens for request in asked} == {COMPARED_TOKENS}


def test_nothing_is_asked_without_honesty() -> None:
    engine = Batched(good)
    session = measure_session(engine, WORKLOAD)
    assert all(concurrency == 4 for _, concurrency in engine.asked)
    assert "output_agreement" not in session.rounds[-1].metrics


def test_limit() -> None:
    rounds = (ROUND, replace(ROUND, metrics={"output_agreement": 0.2}))
    said = check_agreement(rounds, {"inferperf_min_agreement": 0.25})
    assert said.startswith(
        "the answers under load begin as those at concurrency 1 for 20 % of their length in the mean, where 25 % is the "
        "least: "
    )
    assert said.endswith("or set inferperf_min_agreement in the ini file")
    assert check_agreement(rounds, {"inferperf_min_agreement": 0.2}) == ""
    assert check_agreement([ROUND], {"inferperf_min_agreement": 1.0}) == ""
