"""A stand-in of the package, a checkpoint it can load, and engines on it in this process."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.tensorrt_llm import engine as engine_module
from pytest_inferperf.engines.tokenizing import Tokenizer
from pytest_inferperf.model.case import EngineSpec
from tests.engines.trtllm_stand_in.light import transformers as light_transformers

STAND_IN = Path(__file__).parents[1] / "trtllm_stand_in"
VERSIONS = ("1.2.1", "1.4.0rc1")


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"<s>": 256, "</s>": 257, "<pad>": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(words))


def write_checkpoint(folder: Path, quant: str | None = None, kv_cache: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    config = {"vocab_size": 320, "num_attention_heads": 8, "max_position_embeddings": 512, "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    if quant is not None:
        section = {"quant_algo": quant, "kv_cache_quant_algo": kv_cache}
        (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": section}))
    return folder


def write_block_scaled(folder: Path) -> Path:
    """Write a checkpoint as DeepSeek does, without a file of ModelOpt's."""
    path = write_checkpoint(folder) / "config.json"
    section = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": section}))
    return folder


def write_weights(folder: Path) -> Path:
    """Add one plain matrix: what is checked of a checkpoint before an engine loads it."""
    header = json.dumps({"model.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "BF16": write_checkpoint(root / "bf16"),
        "FP8": write_checkpoint(root / "fp8", "FP8", "FP8"),
        "FP8_BLOCK_SCALES": write_block_scaled(root / "deepseek"),
        "NVFP4": write_checkpoint(root / "nvfp4", "NVFP4", "FP8"),
    }


def _forget() -> None:
    for name in [name for name in sys.modules if name == "pynvml" or name.split(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


Install = Callable[[str], Any]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make a version of the stand-in the `tensorrt_llm` of this process."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("pynvml", "tensorrt_llm")}
    monkeypatch.syspath_prepend(STAND_IN)
    monkeypatch.setenv("TRTLLM_NO_USAGE_STATS", "")
    monkeypatch.delenv("TRTLLM_NO_USAGE_STATS")

    def install(version: str) -> Any:
        monkeypatch.setenv("TRTLLM_STAND_IN_VERSION", version)
        _forget()
        return importlib.import_module("tensorrt_llm")

    yield install
    _forget()
    sys.modules.update(before)


@pytest.fixture(params=VERSIONS)
def stand_in(request: pytest.FixtureRequest, install: Install) -> Any:
    """Either version."""
    return install(request.param)


@pytest.fixture
def newest(install: Install) -> Any:
    return install(VERSIONS[-1])


def spec_of(
    quant: Any = "BF16", kv: Any = "auto", *, tp: Any = 1, pp: Any = 1, ep: Any = 1, **options: Any
) -> EngineSpec:
    return EngineSpec(
        model="m",
        served_model_name="m",
        backend="tensorrt_llm",
        quant=quant,
        kv_cache_dtype=kv,
        tp=tp,
        pp=pp,
        ep=ep,
        engine_options=tuple(sorted(options.items())),
    )


Start = Callable[..., Any]


@functools.lru_cache
def loaded_once(folder: Path) -> Tokenizer:
    """Load a tokenizer without transformers, which would load torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", light_transformers)
        return Tokenizer(folder)


@pytest.fixture
def start(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Open an engine in this process; all are closed in the end."""
    monkeypatch.setattr(engine_module, "Tokenizer", loaded_once)
    engines: list[Any] = []

    def start(spec: EngineSpec | None = None) -> Any:
        spec = spec or spec_of()
        engines.append(engine_module.TensorrtLlmEngine(spec, checkpoint=str(checkpoints[spec.quant])))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
