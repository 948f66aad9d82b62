"""Checkpoints read from disk: every recipe against ModelOpt's own simulation, and damaged folders."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_inferperf.engines.checkpoint.build import quantization_config, read_calibration
from pytest_inferperf.engines.checkpoint.conformance import check_checkpoint
from pytest_inferperf.engines.checkpoint.quiet import import_modelopt
from pytest_inferperf.engines.interface import GenerationRequest, LogLikelihoodRequest
from pytest_inferperf.engines.transformers_engine import TransformersEngine
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec

Build = Callable[..., tuple[EngineSpec, Path]]
Greedy = Callable[[tuple[int, ...], int], list[int]]


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
        engine._packed_model.model(torch.tensor([prompt]), past_key_values=cache, use_cache=True)
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


def load(folder: Path) -> None:
    TransformersEngine(EngineSpec(model=str(folder), served_model_name="tiny"), checkpoint=str(folder))


def edit_config(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nope"}, r"config\.json: .*nope"),
        (
            {"architectures": ["NoSuchForCausalLM"]},
            r"config\.json: architectures \['NoSuchForCausalLM'\] name no causal",
        ),
        ({"num_hidden_layers": "two"}, r"config\.json: "),
        ({"hidden_size": 64}, r"lm_head\.weight has another shape than config\.json gives it in LlamaForCausalLM"),
        ({"num_attention_heads": 0}, r"config\.json: "),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\..* is missing; the architecture has it"),
    ],
)
def test_wrong_config_is_named(copied: Build, changes: dict[str, Any], message: str) -> None:
    _, folder = copied("BF16")
    edit_config(folder, changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_broken_json_and_cut_weights_are_named(copied: Build) -> None:
    _, folder = copied("BF16")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
        load(folder)
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read as JSON"):
        load(folder)


def test_broken_tokenizer_is_named(copied: Build) -> None:
    _, folder = copied("BF16")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load(folder)


@pytest.mark.parametrize("model_type", ["llama", "own"])
def test_code_in_a_checkpoint_is_never_run(copied: Build, model_type: str, tmp_path: Path) -> None:
    _, folder = copied("BF16")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nOwnConfig = OwnModel = OwnTokenizer = object\n")
    own = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
        "AutoTokenizer": ["own.OwnTokenizer"] * 2,
    }
    edit_config(folder, {"model_type": model_type, "auto_map": own})
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": own}))
    if model_type == "own":
        with pytest.raises(CheckpointError, match=r"auto_map asks for code inside the checkpoint, which is never run"):
            load(folder)
    else:
        load(folder)
    assert not ran.exists()
