"""The embedded engine against plain transformers and against ModelOpt's own fake quantization."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_inferperf.engines.checkpoint.build import quantization_config, read_calibration
from pytest_inferperf.engines.checkpoint.conformance import check_checkpoint
from pytest_inferperf.engines.checkpoint.quiet import import_modelopt
from pytest_inferperf.engines.interface import GenerationRequest, LogLikelihoodRequest
from pytest_inferperf.engines.transformers_engine import TransformersEngine
from pytest_inferperf.errors import CheckpointError, EngineError
from pytest_inferperf.model.case import EngineSpec

Build = Callable[..., tuple[EngineSpec, Path]]

RECIPES = [
    ("FP8", "auto", ""),
    ("FP8", "fp8", ""),
    ("NVFP4", "auto", ""),
    ("NVFP4", "fp8", ""),
    ("NVFP4", "auto", "NVFP4_MLP_ONLY_CFG"),
    ("W4A16_NVFP4", "nvfp4", ""),
    ("W4A8_NVFP4_FP8", "auto", ""),
    ("INT4_AWQ", "auto", ""),
    ("INT8_SMOOTHQUANT_CFG", "auto", ""),
]


def prompts(*lengths: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(256) for _ in range(length)) for length in lengths]


@pytest.fixture(scope="module")
def reference(source: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).train(False)


@pytest.fixture(scope="module")
def engine(source: Path) -> Iterator[TransformersEngine]:
    with TransformersEngine(EngineSpec(model=str(source), served_model_name="tiny"), checkpoint=str(source)) as engine:
        assert isinstance(engine, TransformersEngine)
        yield engine


def greedy(reference: Any, prompt: tuple[int, ...], count: int) -> list[int]:
    with torch.inference_mode():
        found = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=258,
        )
    return [int(token) for token in found[0, len(prompt) :]]


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_generates_what_transformers_generates(engine: TransformersEngine, reference: Any, concurrency: int) -> None:
    asked = prompts(5, 9, 3, 12, 12, 7)
    budget = [6, 12, 9, 4, 12, 8]
    requests = [GenerationRequest(prompt=p, max_tokens=n, ignore_eos=True) for p, n in zip(asked, budget, strict=True)]
    answers = engine.generate(requests, concurrency=concurrency)
    for prompt, count, answer in zip(asked, budget, answers, strict=True):
        assert list(answer.token_ids) == greedy(reference, prompt, count)
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


def plain_logprob(reference: Any, request: LogLikelihoodRequest) -> tuple[float, bool]:
    with torch.inference_mode():
        logits = reference(torch.tensor([request.context + request.continuation])).logits[0].log_softmax(-1)
    rows = logits[len(request.context) - 1 : -1]
    target = torch.tensor(request.continuation)
    return float(rows.gather(1, target[:, None]).sum()), bool((rows.argmax(-1) == target).all())


@pytest.mark.parametrize("concurrency", [1, 4, 64])
def test_loglikelihood_is_that_of_a_plain_forward_pass(
    engine: TransformersEngine, reference: Any, concurrency: int
) -> None:
    rng = random.Random(5)
    requests = []
    for context in prompts(1, 4, 18, 18, 30, 7):
        for _ in range(rng.choice([1, 4])):
            continuation = tuple(rng.randrange(256) for _ in range(rng.randint(1, 6)))
            requests.append(LogLikelihoodRequest(context=context, continuation=continuation))
        likely = tuple(greedy(reference, context, 3))
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine_options": (("use_cach", True),)}, r"unknown engine option 'use_cach' .*\nDid you mean 'use_cache'\?"),
        ({"engine_options": (("num_threads", True),)}, "num_threads=True: expected a whole number of at least 1"),
        ({"engine_options": (("use_cache", 1),)}, "use_cache=1: expected True or False"),
        ({"engine_options": (("compute_dtype", "float16"),)}, r"compute_dtype='float16'.\n.*bfloat16, float32"),
        ({"tp": 2}, "tp=2: the transformers backend runs on one device"),
    ],
)
def test_bad_setting_is_refused(source: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        TransformersEngine(EngineSpec(model=str(source), served_model_name="tiny", **changes), checkpoint=str(source))


@pytest.mark.parametrize(("quant", "kv", "recipe"), RECIPES)
def test_every_recipe_builds_conforms_and_generates(built: Build, quant: str, kv: str, recipe: str) -> None:
    spec, folder = built(quant, kv, recipe)
    checked = check_checkpoint(folder, spec)
    # Four attention and three MLP projections in each of two layers; the recipe for MLPs leaves attention alone.
    assert len(checked.quantized) == (6 if recipe else 14)
    requests = [GenerationRequest(prompt=p, max_tokens=5, ignore_eos=True) for p in prompts(4, 9)]
    with TransformersEngine(spec, checkpoint=str(folder)) as engine:
        together = engine.generate(requests, concurrency=2)
        alone = engine.generate(requests, concurrency=1)
        assert engine.info.simulated is True
        assert (engine.info.quant_algo is None) == (quant == "BF16")
    assert [len(answer.token_ids) for answer in together] == [5, 5]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


@pytest.mark.parametrize(
    ("quant", "kv", "recipe", "tolerance"),
    [
        ("FP8", "auto", "", 0.01),
        ("NVFP4", "auto", "", 1e-3),
        ("NVFP4", "auto", "NVFP4_MLP_ONLY_CFG", 1e-3),
        ("W4A16_NVFP4", "nvfp4", "", 1e-3),
        ("INT4_AWQ", "auto", "", 1e-3),
        ("INT8_SMOOTHQUANT_CFG", "auto", "", 0.01),
    ],
)
def test_packed_engine_computes_what_modelopt_simulates(
    built: Build, source: Path, calibration: Path, quant: str, kv: str, recipe: str, tolerance: float
) -> None:
    spec, folder = built(quant, kv, recipe)
    ids = torch.tensor(prompts(20, 20, 20, seed=9))
    engine = TransformersEngine(spec, checkpoint=str(folder))
    with torch.inference_mode():
        packed = engine._packed_model
        found = packed.model(ids, past_key_values=packed.cache(32), use_cache=True).logits
    expected = simulate(spec, source, calibration, ids)
    assert float((found - expected).norm() / expected.norm()) < tolerance


def simulate(spec: EngineSpec, source: Path, calibration: Path, ids: torch.Tensor) -> torch.Tensor:
    """ModelOpt's own fake-quantized forward pass, after the scale sharing that its export does."""
    mtq = import_modelopt()
    from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).train(False)
        tokenizer = AutoTokenizer.from_pretrained(source)
        texts = torch.tensor([tokenizer(text)["input_ids"] for text in read_calibration(str(calibration), 128)])
        with torch.no_grad():
            mtq.quantize(model, quantization_config(spec), lambda quantized: quantized(texts, use_cache=False))
            requantize_resmooth_fused_llm_layers(model)
            logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits


def test_kv_cache_is_fp8_when_generating_and_when_scoring(built: Build) -> None:
    spec, folder = built("FP8", "fp8")
    plain_spec, plain_folder = built("FP8", "auto")
    (prompt,) = prompts(16)
    request = [LogLikelihoodRequest(context=prompt, continuation=(5, 6, 7))]
    engine = TransformersEngine(spec, checkpoint=str(folder))
    with engine:
        cache = engine._packed_model.cache(32)
        engine._model(torch.tensor([prompt]), past_key_values=cache, use_cache=True)
        assert cache.layers[0]._buffers[0].dtype == torch.float8_e4m3fn
        quantized = engine.loglikelihood(request, concurrency=1)[0].logprob
        assert engine.info.kv_cache_quant_algo == "FP8"
    with TransformersEngine(plain_spec, checkpoint=str(plain_folder)) as other:
        plain = other.loglikelihood(request, concurrency=1)[0].logprob
    assert quantized != plain
    assert quantized == pytest.approx(plain, abs=1.0)


def test_tensor_that_only_the_architecture_knows_is_missed(copied: Build) -> None:
    from safetensors.torch import load_file, save_file

    spec, folder = copied("NVFP4")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.input_layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.1\.input_layernorm\.weight is missing; the architecture"
    ):
        TransformersEngine(spec, checkpoint=str(folder))
