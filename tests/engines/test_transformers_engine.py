"""The embedded engine against plain transformers, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_inferperf.engines import transformers_engine
from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.transformers_engine import TransformersEngine
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec

Greedy = Callable[[tuple[int, ...], int], list[int]]


def prompts(*lengths: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(256) for _ in range(length)) for length in lengths]


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_generates_what_transformers_generates(engine: TransformersEngine, greedy: Greedy, concurrency: int) -> None:
    asked = prompts(5, 9, 3, 12, 12, 7)
    budget = [6, 12, 9, 4, 12, 8]
    requests = [GenerationRequest(prompt=p, max_tokens=n, ignore_eos=True) for p, n in zip(asked, budget, strict=True)]
    answers = engine.generate(requests, concurrency=concurrency)
    for prompt, count, answer in zip(asked, budget, answers, strict=True):
        assert list(answer.token_ids) == greedy(prompt, count)
        assert answer.finish_reason == "length"
        assert answer.prompt_tokens == len(prompt)
        assert len(answer.token_times_s) == count
        assert 0 < answer.token_times_s[0] <= answer.token_times_s[-1]
        assert list(answer.token_times_s) == sorted(answer.token_times_s)


def test_without_cache_the_answers_are_the_same(engine: TransformersEngine, source: Path) -> None:
    requests = [GenerationRequest(prompt=p, max_tokens=10, ignore_eos=True) for p in prompts(4, 11, 7)]
    spec = EngineSpec(model=str(source), served_model_name="tiny", engine_options=(("use_cache", False),))
    slow = TransformersEngine(spec, checkpoint=str(source))
    expected = [answer.token_ids for answer in engine.generate(requests, concurrency=3)]
    assert [answer.token_ids for answer in slow.generate(requests, concurrency=3)] == expected
    assert slow.info.options["use_cache"] is False


def test_stream_yields_every_token(engine: TransformersEngine) -> None:
    (prompt,) = prompts(6)
    request = GenerationRequest(prompt=prompt, max_tokens=10, ignore_eos=True)
    chunks = list(engine.stream(request))
    (answer,) = engine.generate([request], concurrency=1)
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == answer.token_ids
    assert "".join(chunk.text for chunk in chunks) == answer.text


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            GenerationRequest(prompt=(1,) * 200, max_tokens=57),
            r"a prompt of 200 tokens and max_tokens=57 make 257, more than max_model_len=256",
        ),
        (GenerationRequest(prompt=(), max_tokens=5), "a prompt needs at least one token"),
        (GenerationRequest(prompt=(1,), max_tokens=0), "max_tokens=0: at least 1"),
        (GenerationRequest(prompt=(1, 320), max_tokens=1), "token ids must lie between 0 and 319, got 320"),
    ],
)
def test_bad_request_is_refused(engine: TransformersEngine, request_: GenerationRequest, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        engine.generate([request_], concurrency=1)
    with pytest.raises(EngineError, match=message):
        engine.stream(request_)


def test_says_what_it_is(engine: TransformersEngine) -> None:
    assert engine.encode(["ab ", ""]) == [tuple(engine.encode(["ab "])[0]), ()]
    assert engine.decode(engine.encode(["héllo, wörld"])) == ["héllo, wörld"]
    assert (engine.prefix_token_id, engine.eos_token_id, engine.vocab_size) == (256, 257, 320)
    # The tokenizer knows 259 tokens; the rest of the vocabulary is padding.
    assert engine.special_token_ids == frozenset(range(256, 320))
    assert engine.info.simulated is False
    assert engine.info.compute_dtype == "float32"
    assert engine.info.hardware.kind == "cpu"
    assert engine.info.hardware.count >= 1
    assert len(engine.info.checkpoint_hash) == 64
    assert engine.peak_memory_bytes() > 50 << 20


def test_a_peak_of_memory_is_forgotten_before_the_next_session(engine: TransformersEngine) -> None:
    engine.forget_peak_memory()
    before = engine.peak_memory_bytes()
    other_test = b"x" * (400 << 20)
    del other_test
    assert engine.peak_memory_bytes() >= before + (350 << 20)
    engine.forget_peak_memory()
    assert engine.peak_memory_bytes() < before + (200 << 20)


def test_a_peak_that_cannot_be_forgotten_is_unknown(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transformers_engine, "_CLEAR_REFS", tmp_path / "no such folder" / "clear_refs")
    monkeypatch.setattr(engine, "_peak_known", True)
    engine.forget_peak_memory()
    assert engine.peak_memory_bytes() == 0


def test_a_peak_that_is_not_shown_is_unknown(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "status").write_text("Name:\tpython\n")
    monkeypatch.setattr(transformers_engine, "_STATUS", tmp_path / "status")
    assert engine.peak_memory_bytes() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine_options": (("use_cach", True),)}, r"unknown engine option 'use_cach' .*\nDid you mean 'use_cache'\?"),
        ({"engine_options": (("num_threads", True),)}, "num_threads=True: expected a whole number of at least 1"),
        ({"engine_options": (("num_threads", "2"),)}, "num_threads='2': expected a whole number of at least 1"),
        ({"engine_options": (("num_threads", 0),)}, "num_threads=0: expected a whole number of at least 1"),
        ({"engine_options": (("num_threads", 100_000),)}, "num_threads=100000: at most 1024"),
        ({"engine_options": (("max_batch_tokens", 2.0),)}, r"max_batch_tokens=2\.0: expected a whole number"),
        ({"engine_options": (("compute_dtype", None),)}, "compute_dtype=None: expected a string"),
        ({"engine_options": (("use_cache", 1),)}, "use_cache=1: expected True or False"),
        ({"engine_options": (("compute_dtype", "float16"),)}, r"compute_dtype='float16'.\n.*bfloat16, float32"),
        ({"tp": 2}, "tp=2: the transformers backend runs on one device"),
    ],
)
def test_bad_setting_is_refused(source: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        TransformersEngine(EngineSpec(model=str(source), served_model_name="tiny", **changes), checkpoint=str(source))


def test_number_of_threads_is_the_one_asked_for(source: Path) -> None:
    before = torch.get_num_threads()
    spec = EngineSpec(model=str(source), served_model_name="tiny", engine_options=(("num_threads", 2),))
    try:
        with TransformersEngine(spec, checkpoint=str(source)) as engine:
            assert torch.get_num_threads() == 2
            assert engine.info.options["num_threads"] == 2
        with pytest.raises(EngineError, match="the engine is closed"):
            engine.generate([GenerationRequest(prompt=(1,), max_tokens=1)], concurrency=1)
        engine.close()
    finally:
        torch.set_num_threads(before)
