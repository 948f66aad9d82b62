"""What is refused when tests are collected, before a GPU or a server is asked for; one test per way to be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.backends import BACKENDS, resolve_backend, runs_tensorrt_llm
from pytest_inferperf.engines.checkpoint.shape import read_shape
from pytest_inferperf.engines.tensorrt_llm.options import arguments_of
from pytest_inferperf.errors import EngineError, MarkError, MissingExtra
from pytest_inferperf.marks.cases import parse_cases
from pytest_inferperf.marks.origin import Origin
from pytest_inferperf.model.case import Case, EngineSpec
from tests.engines.tensorrt_llm.conftest import spec_of


@pytest.fixture
def collect(tmp_path: Path) -> Any:
    """Collect one mark on a model of 12 heads and 4096 tokens of context; what is given overrides it."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"num_attention_heads": 12, "max_position_embeddings": 4096}))

    def collect(*, quantized: str = "", kv_cache: str = "", **keywords: Any) -> Case:
        if quantized:
            section: dict[str, Any] = {
                "quant_algo": quantized,
                "kv_cache_quant_algo": kv_cache or None,
                "exclude_modules": [],
            }
            (model / "hf_quant_config.json").write_text(json.dumps({"quantization": section}))
            embedded = {
                "quant_method": "modelopt",
                "quant_algo": quantized,
                "kv_cache_scheme": {"a": 1} if kv_cache else None,
            }
            config = json.loads((model / "config.json").read_text()) | {"quantization_config": embedded}
            (model / "config.json").write_text(json.dumps(config))
        values = {"model": "model", "isl": 1024, "osl": 1024, **keywords}
        if "serve" not in values:
            values = {"backend": "tensorrt_llm", **values}
        mark = pytest.mark.inferperf(**values).mark
        ((_, case),) = parse_cases([mark], Origin(folder=tmp_path, backends=("auto", *BACKENDS)))
        return case

    return collect


def test_a_case_that_fits_is_collected(collect: Any) -> None:
    assert collect(tp=4, engine_options={"max_seq_len": 2048}).engine.tp == 4
    assert collect(quantized="FP8", kv_cache="FP8", quant="FP8", kv_cache_dtype="fp8").engine.quant == "FP8"


def test_deepseeks_own_fp8_is_collected_under_its_name_alone(collect: Any, tmp_path: Path) -> None:
    section = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "model" / "config.json").write_text(json.dumps({"quantization_config": section}))
    assert collect(quant="FP8_BLOCK_SCALES").engine.precision == "FP8_BLOCK_SCALES"
    with pytest.raises(MarkError, match=r"model is FP8_BLOCK_SCALES, and quant='FP8' means FP8"):
        collect(quant="FP8")


def test_weights_that_were_trained_elsewhere_need_no_texts(collect: Any) -> None:
    assert collect(quantized="FP8", quant="FP8", recipe="qat").engine.precision == "FP8+qat"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"tp": 8}, r"tp=8 does not divide the model's 12 attention heads"),
        ({"tp": 8, "serve": "trtllm-serve"}, r"tp=8 does not divide the model's 12 attention heads"),
        ({"isl": 4000}, r"isl \+ osl = 5024 tokens are more than the model's context of 4096"),
        ({"engine_options": {"max_seq_len": 1024}}, r"isl \+ osl = 2048 tokens are more than max_seq_len=1024"),
        (
            {"engine_options": {"max_seq_len": 8192}},
            r"max_seq_len = 8192 tokens are more than the model's context of 4096",
        ),
        ({"quantized": "FP8", "quant": "NVFP4"}, r"checkpoint .*model is FP8, and quant='NVFP4' means NVFP4"),
        ({"quantized": "FP8"}, r"checkpoint .*model is FP8, and quant='BF16' means None"),
        (
            {"quantized": "FP8", "quant": "FP8", "kv_cache_dtype": "nvfp4"},
            r"scales for a KV cache of no quantization, and kv_cache_dtype='nvfp4' needs NVFP4",
        ),
        ({"kv_cache_dtype": "fp8"}, r"kv_cache_dtype='fp8' needs a quantized checkpoint, and quant is BF16"),
        (
            {"engine_options": {"speculative": "eagle3", "max_draft_len": 3, "draft_model": "./none"}},
            r"draft_model='\./none': no such folder",
        ),
        (
            {"engine_options": {"speculative": "draft_target", "max_draft_len": 3, "draft_model": "just-a-word"}},
            r"draft_model='just-a-word': no such folder; give a folder, or a hub id such as 'org/name'",
        ),
        ({"engine_options": {"speculative": "eagle3", "max_draft_len": 3}}, r"needs a draft model: draft_model="),
        ({"engine_options": {"max_batch_size": True}}, r"max_batch_size=True: expected a whole number"),
        (
            {"serve": "trtllm-serve", "engine_options": {"moe_backend": "CUTLAS"}},
            r"moe_backend='CUTLAS'\.\nDid you mean 'CUTLASS'\?",
        ),
    ],
)
def test_what_could_not_run_is_refused(collect: Any, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(MarkError, match=message):
        collect(**keywords)


def test_a_folder_that_is_no_draft_model_is_refused(collect: Any, tmp_path: Path) -> None:
    options = {"speculative": "eagle3", "max_draft_len": 3, "draft_model": str(tmp_path)}
    with pytest.raises(MarkError, match=r"no config\.json; give a Hugging Face folder"):
        collect(engine_options=options)
    with pytest.raises(MarkError, match="is the model itself"):
        collect(engine_options={**options, "draft_model": str(tmp_path / "model")})


def test_attention_data_parallel_needs_no_divisible_heads(collect: Any) -> None:
    assert collect(tp=8, engine_options={"attention_dp": True}).engine.tp == 8


def test_other_backends_are_not_asked(collect: Any) -> None:
    assert collect(backend="transformers", isl=4000).workload.isl == 4000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_fraction": 1.5}, "memory_fraction=1.5: at least 0.01 and at most 1"),
        ({"memory_fraction": "half"}, "memory_fraction='half': expected a number"),
        ({"max_num_tokens": 0}, "max_num_tokens=0: at least 1"),
        ({"chunked_prefill": 1}, "chunked_prefill=1: expected True or False"),
        ({"scheduler_policy": "FASTEST"}, "Values: GUARANTEED_NO_EVICT, MAX_UTILIZATION, STATIC_BATCH"),
        ({"nvfp4_gemm_backends": "cutlass,cutdsl"}, "Did you mean 'cutedsl'"),
        ({"nvfp4_gemm_backends": "cutlass,"}, "Values: cublaslt, cuda_core"),
        ({"speculative": "medusa"}, "Values: draft_target, eagle3, mtp, ngram"),
        ({"speculative": "ngram"}, "speculative='ngram' needs max_draft_len="),
        ({"speculative": "mtp", "draft_model": "a/b"}, "speculative='mtp' takes none"),
        ({"max_draft_len": 3}, "max_draft_len: speculative= is missing"),
        ({"cuda_graphs": False, "cuda_graph_padding": True}, "cuda_graphs=False switches CUDA graphs off"),
        ({"tensor_parallel_size": 2}, "is not passed to TensorRT-LLM: say tp="),
        ({"enable_chunked_prefill": True}, "is called 'chunked_prefill' here"),
        ({"kv_cache_config": "x"}, "is an object; set its fields by name"),
        ({"kv_cash_config.dtype": "x"}, "Did you mean 'kv_cache_config'"),
    ],
)
def test_an_option_that_is_wrong_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError) as caught:
        arguments_of(spec_of(**options))
    assert message in str(caught.value)


def test_the_extra_is_named_with_where_to_get_it() -> None:
    with pytest.raises(MissingExtra) as caught:
        resolve_backend("tensorrt_llm")
    assert 'pip install "pytest-inferperf[tensorrt-llm]". The public index holds a stub' in str(caught.value)
    assert "TensorRT-LLM release container" in str(caught.value)


def test_who_runs_tensorrt_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    def spec(**changes: Any) -> EngineSpec:
        return EngineSpec(model="m", served_model_name="m", **changes)

    assert runs_tensorrt_llm(spec(backend="tensorrt_llm"))
    assert runs_tensorrt_llm(spec(serve="trtllm-serve --max_beam_width 1"))
    assert not runs_tensorrt_llm(spec(serve="vllm"))
    assert not runs_tensorrt_llm(spec(url="http://localhost:1", backend="openai"))
    assert not runs_tensorrt_llm(spec())
    monkeypatch.setattr("pytest_inferperf.engines.backends.has_nvidia_gpu", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: True)
    assert runs_tensorrt_llm(spec())


@pytest.mark.parametrize(
    ("config", "heads", "context"),
    [
        ({}, 0, 0),
        ({"num_attention_heads": 128, "max_position_embeddings": 163840}, 128, 163840),
        ({"text_config": {"num_attention_heads": 40, "max_position_embeddings": 1048576}}, 40, 1048576),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 0, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 0, 131072),
    ],
)
def test_the_shape_of_a_model(tmp_path: Path, config: dict[str, Any], heads: int, context: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = read_shape(tmp_path)
    assert (shape.heads, shape.max_position) == (heads, context)
