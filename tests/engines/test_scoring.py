"""Log-likelihoods with shared contexts against plain forward passes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_inferperf.engines import scoring
from pytest_inferperf.engines.interface import LogLikelihoodRequest
from pytest_inferperf.engines.transformers_engine import TransformersEngine
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec

Build = Callable[..., tuple[EngineSpec, Path]]
Greedy = Callable[[tuple[int, ...], int], list[int]]


def prompts(*lengths: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(256) for _ in range(length)) for length in lengths]


def plain_logprob(reference: Any, request: LogLikelihoodRequest) -> tuple[float, bool]:
    with torch.inference_mode():
        logits = reference(torch.tensor([request.context + request.continuation])).logits[0].log_softmax(-1)
    rows = logits[len(request.context) - 1 : -1]
    target = torch.tensor(request.continuation)
    return float(rows.gather(1, target[:, None]).sum()), bool((rows.argmax(-1) == target).all())


@pytest.mark.parametrize("concurrency", [1, 4, 64])
def test_loglikelihood_is_that_of_a_plain_forward_pass(
    engine: TransformersEngine, reference: Any, greedy: Greedy, concurrency: int
) -> None:
    rng = random.Random(5)
    requests = []
    for context in prompts(1, 4, 18, 18, 30, 7):
        for _ in range(rng.choice([1, 4])):
            continuation = tuple(rng.randrange(256) for _ in range(rng.randint(1, 6)))
            requests.append(LogLikelihoodRequest(context=context, continuation=continuation))
        likely = tuple(greedy(context, 3))
        requests.append(LogLikelihoodRequest(context=context, continuation=likely))
    rng.shuffle(requests)
    answers = engine.loglikelihood(requests, concurrency=concurrency)
    expected = [plain_logprob(reference, request) for request in requests]
    assert [answer.logprob for answer in answers] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [answer.is_greedy for answer in answers] == [flag for _, flag in expected]
    assert sum(answer.is_greedy for answer in answers) >= 6


def test_too_long_or_empty_score_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(
        EngineError, match="a context of 250 and a continuation of 10 tokens are more than max_model_len"
    ):
        engine.loglikelihood([LogLikelihoodRequest(context=(1,) * 250, continuation=(2,) * 10)], concurrency=1)
    with pytest.raises(EngineError, match="at least one token"):
        engine.loglikelihood([LogLikelihoodRequest(context=(), continuation=(2,))], concurrency=1)


@pytest.mark.parametrize("kv", ["auto", "fp8"])
def test_choices_share_a_context_that_nearly_fills_the_model(built: Build, kv: str) -> None:
    spec, folder = built("FP8", kv)
    (context,) = prompts(250)
    requests = [LogLikelihoodRequest(context=context, continuation=item) for item in prompts(7, 7, 1, 7, seed=2)]
    with TransformersEngine(spec, checkpoint=str(folder)) as engine:
        # Packed, the row has more tokens than the model has positions.
        together = engine.loglikelihood(requests, concurrency=8)
        alone = [engine.loglikelihood([request], concurrency=1)[0] for request in requests]
        assert [item.logprob for item in together] == pytest.approx([item.logprob for item in alone], abs=1e-3)


def test_one_token_too_many_is_refused_and_none_is_answered(engine: TransformersEngine) -> None:
    with pytest.raises(EngineError, match="more than max_model_len=256; shorten the context"):
        engine.loglikelihood([LogLikelihoodRequest(context=(1,) * 250, continuation=(2,) * 8)], concurrency=1)
    with pytest.raises(EngineError, match="a continuation of at least one token"):
        engine.loglikelihood([LogLikelihoodRequest(context=(1,), continuation=())], concurrency=1)
    assert engine.loglikelihood([], concurrency=4) == []


def test_row_longer_than_a_batch_is_scored_alone(engine: TransformersEngine, source: Path) -> None:
    requests = [LogLikelihoodRequest(context=p, continuation=(5, 6)) for p in prompts(9, 30, 9)]
    spec = EngineSpec(model=str(source), served_model_name="tiny", engine_options=(("max_batch_tokens", 1),))
    small = TransformersEngine(spec, checkpoint=str(source))
    expected = [item.logprob for item in engine.loglikelihood(requests, concurrency=99)]
    assert [item.logprob for item in small.loglikelihood(requests, concurrency=99)] == pytest.approx(expected, abs=1e-4)


def test_contexts_are_shared_where_that_saves_reading() -> None:
    """Choices of a question are packed into one row; rolling windows that share one token are not."""

    def request(context: int, continuation: int) -> LogLikelihoodRequest:
        return LogLikelihoodRequest(context=(5,) * context, continuation=(6,) * continuation)

    choices = scoring._rows([request(20, 4)] * 4, share=True)
    assert [len(row.members) for row in choices] == [4]
    windows = scoring._rows([request(1, 40)] * 4, share=True)
    assert [len(row.members) for row in windows] == [1, 1, 1, 1]
    alone = scoring._rows([request(20, 4)] * 4, share=False)
    assert [len(row.members) for row in alone] == [1, 1, 1, 1]
