"""Speculative decoding on the embedded suite: how much a draft model saves, and that it changes no answer.

Both are facts about tokens, the same on any machine: their limits are absolute, and stand here.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf.engines.interface import Engine, GenerationRequest
from pytest_inferperf.engines.launch import open_engine
from pytest_inferperf.fixture import Inferperf

pytestmark = pytest.mark.inferperf(
    model="model",
    served_model_name="inferperf-tiny-llama",
    calib_dataset="data/calibration.jsonl",
    quant=["BF16", "NVFP4"],
    engine_options={"speculative": "draft_target", "draft_model": "draft", "max_draft_len": 4},
)

DATA = Path(__file__).parent / "data"


@pytest.mark.inferperf(isl=16, osl=32, concurrency=4, num_requests=8, rounds=1, warmup_rounds=0)
@pytest.mark.throughput_floor(acceptance_length=2.0)
def test_acceptance_length(inferperf: Inferperf) -> None:
    """A pass of the target brings at least two tokens, its own included."""
    assert inferperf.measure().num_failed_requests == 0


def test_greedy_output_is_the_targets_own(inferperf_engine: Engine) -> None:
    """The draft model proposes and the target decides: every answer is the one it gives without a draft model."""
    requests = questions(inferperf_engine) + noise(inferperf_engine)
    alone = replace(inferperf_engine.spec, model=inferperf_engine.info.checkpoint, engine_options=())
    with open_engine(alone) as target:
        expected = target.generate(requests, concurrency=16)
        # Rounded to four bits, a tie may fall otherwise in a batch of another shape, without any draft model.
        again = target.generate(requests, concurrency=1)
    found = inferperf_engine.generate(requests, concurrency=16)
    assert sum(answer.decoding_steps or 0 for answer in found) < sum(len(answer.token_ids) for answer in found)
    different = [
        (request.prompt, answer.token_ids, own.token_ids)
        for request, answer, own, other in zip(requests, found, expected, again, strict=True)
        if answer.token_ids != own.token_ids == other.token_ids
    ]
    of_its_own = sum(own.token_ids == other.token_ids for own, other in zip(expected, again, strict=True))
    least = 1.0 if inferperf_engine.spec.quant == "BF16" else 0.95
    assert of_its_own >= least * len(requests), (
        f"the target agrees with itself on {of_its_own} of {len(requests)} answers"
    )
    assert not different, f"{len(different)} of {len(requests)} answers differ; prompt, found, expected: {different[0]}"


def questions(engine: Engine, count: int = 64) -> list[GenerationRequest]:
    """Build requests from the puzzles of the suite's task."""
    lines = (DATA / "transform.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    prompts = engine.encode([json.loads(line)["prompt"] for line in lines])
    return [GenerationRequest(prompt=prompt, max_tokens=12, stop=("\n",)) for prompt in prompts]


def noise(engine: Engine, count: int = 16) -> list[GenerationRequest]:
    """Build requests from random tokens, answered at length."""
    rng = random.Random(0)
    tokens = [token for token in range(engine.vocab_size) if token not in engine.special_token_ids]
    return [
        GenerationRequest(prompt=tuple(rng.choices(tokens, k=rng.randint(4, 24))), max_tokens=48, ignore_eos=True)
        for _ in range(count)
    ]
