"""Where a completion ends, what it shows, and when its tokens came."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_inferperf.engines.decoding import Completion, _Runner
from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.stopping import cut, held_back
from pytest_inferperf.engines.transformers_engine import TransformersEngine
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec

Build = Callable[..., tuple[EngineSpec, Path]]
Greedy = Callable[[tuple[int, ...], int], list[int]]


def prompts(*lengths: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(256) for _ in range(length)) for length in lengths]


def test_eos_ends_a_sequence_and_ignore_eos_does_not(engine: TransformersEngine) -> None:
    (prompt,) = prompts(6)
    (free,) = engine.generate([GenerationRequest(prompt=prompt, max_tokens=8, ignore_eos=True)], concurrency=1)
    engine._eos = frozenset({free.token_ids[2]})
    try:
        requests = [GenerationRequest(prompt=prompt, max_tokens=8, ignore_eos=flag) for flag in (False, True)]
        stopped, full = engine.generate(requests, concurrency=2)
    finally:
        engine._eos = frozenset({257})
    end = free.token_ids.index(free.token_ids[2]) + 1
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids[:end], "stop")
    assert (full.token_ids, full.finish_reason) == (free.token_ids, "length")


def test_stop_string_cuts_the_text(engine: TransformersEngine) -> None:
    for prompt in prompts(6, 8, 10, 12, seed=3):
        (free,) = engine.generate([GenerationRequest(prompt=prompt, max_tokens=24, ignore_eos=True)], concurrency=1)
        place = next((i for i in range(2, len(free.text) - 1) if free.text[i : i + 2].isascii()), None)
        if place is None:
            continue
        stop = free.text[place : place + 2]
        request = GenerationRequest(prompt=prompt, max_tokens=24, ignore_eos=True, stop=("never-there", stop))
        (answer,) = engine.generate([request], concurrency=1)
        assert answer.finish_reason == "stop"
        assert answer.text == free.text[: free.text.index(stop)]
        assert len(answer.token_ids) < 24
        assert "".join(chunk.text for chunk in engine.stream(request)) == answer.text
        return
    pytest.fail("no prompt gave plain text to stop at")


def test_sampling_follows_its_seed_and_not_its_batch(engine: TransformersEngine) -> None:
    (prompt,) = prompts(6)

    def sample(seed: int) -> GenerationRequest:
        return GenerationRequest(prompt=prompt, max_tokens=12, ignore_eos=True, temperature=1.5, top_p=0.9, seed=seed)

    alone = engine.generate([sample(1)], concurrency=1)[0].token_ids
    together = [answer.token_ids for answer in engine.generate([sample(2), sample(1)], concurrency=2)]
    assert together[1] == alone
    assert together[0] != alone


def spell(engine: TransformersEngine, stop: tuple[str, ...], tokens: list[int]) -> Completion:
    """Feed tokens to the decoder's end condition until it is met."""
    decoder = engine._decoder()
    completion = Completion(request=GenerationRequest(prompt=(1,), max_tokens=999, ignore_eos=True, stop=stop))
    for token in tokens:
        completion.tokens.append(token)
        completion.finish = decoder._finish(completion)
        if completion.finish is not None:
            break
    return completion


def test_stop_string_may_span_tokens_with_special_ones_between(engine: TransformersEngine) -> None:
    (a,), (b,) = engine.encode(["a", "b"])
    # Special tokens leave no text, so the two letters are neighbours however many stand between.
    tokens = [a] * 3 + [257] * 60 + [b] * 2
    completion = spell(engine, ("ab",), tokens)
    assert completion.finish == "stop"
    assert completion.tokens == tokens[:-1]


@pytest.mark.parametrize("stop", [("ab", "abc"), ("abc", "ab"), ("", "ab")])
def test_shorter_of_two_stop_strings_ends_first(engine: TransformersEngine, stop: tuple[str, ...]) -> None:
    (tokens,) = engine.encode(["xyabc"])
    completion = spell(engine, stop, list(tokens))
    assert completion.tokens == list(tokens[:4])
    assert cut("xyab", stop) == ("xy", True)


def test_growing_stop_string_is_held_back() -> None:
    assert held_back("xya", ("abc", "yab")) == 2
    assert held_back("xyz", ("abc",)) == 0


def test_stop_string_in_characters_of_several_bytes(engine: TransformersEngine) -> None:
    (tokens,) = engine.encode(["日本語です。"])
    completion = spell(engine, ("語で",), list(tokens))
    assert completion.finish == "stop"
    assert engine.decode([completion.tokens]) == ["日本語で"]


def test_every_end_token_of_the_model_ends(source: Path, tmp_path: Path, engine: TransformersEngine) -> None:
    (prompt,) = prompts(6)
    request = GenerationRequest(prompt=prompt, max_tokens=8)
    third = engine.generate([request], concurrency=1)[0].token_ids[2]
    folder = tmp_path / "chat"
    shutil.copytree(source, folder)
    # Chat models name their end of turn here only.
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, third]}))
    with TransformersEngine(EngineSpec(model=str(folder), served_model_name="chat"), checkpoint=str(folder)) as chat:
        stopped, full = chat.generate(
            [request, GenerationRequest(prompt=prompt, max_tokens=8, ignore_eos=True)], concurrency=2
        )
    assert (stopped.finish_reason, stopped.token_ids[-1]) == ("stop", third)
    assert len(stopped.token_ids) <= 3
    assert (full.finish_reason, len(full.token_ids)) == ("length", 8)


def test_top_p_of_nothing_is_greedy(engine: TransformersEngine) -> None:
    (prompt,) = prompts(6)
    plain = GenerationRequest(prompt=prompt, max_tokens=6, ignore_eos=True)
    narrow = GenerationRequest(prompt=prompt, max_tokens=6, ignore_eos=True, temperature=1.0, top_p=0.0)
    first, second = engine.generate([plain, narrow], concurrency=2)
    assert first.token_ids == second.token_ids


def test_more_slots_than_requests_and_no_request_at_all(engine: TransformersEngine) -> None:
    request = GenerationRequest(prompt=(1, 2), max_tokens=2, ignore_eos=True)
    assert len(engine.generate([request], concurrency=64)) == 1
    assert engine.generate([], concurrency=64) == []
    with pytest.raises(EngineError, match="concurrency=0: at least 1"):
        engine.generate([], concurrency=0)


def test_times_rise_and_the_first_includes_the_prompt(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = _Runner.start

    def slow(self: _Runner, requests: Any) -> torch.Tensor:
        time.sleep(0.2)
        return start(self, requests)

    monkeypatch.setattr(_Runner, "start", slow)
    request = GenerationRequest(prompt=(1, 2, 3), max_tokens=5, ignore_eos=True)
    times = engine.generate([request], concurrency=1)[0].token_times_s
    assert times[0] >= 0.2
    assert all(early < late for early, late in itertools.pairwise(times))
    assert next(engine.stream(request)).time_s >= 0.2


def test_finished_row_asks_for_no_position_beyond_the_model(source: Path, tmp_path: Path) -> None:
    """A row with a long prompt is done at once, and stays in the batch of a row with a long answer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=256, eos_token_id=257
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    spec = EngineSpec(model=str(folder), served_model_name="gpt2")
    long, short = prompts(60, 4)
    requests = [GenerationRequest(prompt=long, max_tokens=2, ignore_eos=True)] + [
        GenerationRequest(prompt=short, max_tokens=40, ignore_eos=True) for _ in range(5)
    ]
    with TransformersEngine(spec, checkpoint=str(folder)) as engine:
        together = engine.generate(requests, concurrency=6)
        alone = engine.generate(requests, concurrency=1)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
