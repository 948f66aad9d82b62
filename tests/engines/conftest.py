"""A tiny random Llama in Hugging Face layout, and checkpoints built from it once per session."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines import supervisor
from pytest_inferperf.engines.checkpoint.build import build_checkpoint
from pytest_inferperf.engines.process import EngineProcess
from pytest_inferperf.model.case import EngineSpec
from tests.engines.processes import Start

# Without the extra, the tests of process and protocol still run.
if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "modelopt")):
    collect_ignore_glob = [
        "checkpoint/*",
        "test_decoding.py",
        "test_launch.py",
        "test_packed.py",
        "test_scoring.py",
        "test_speculation.py",
        "test_transformers_engine.py",
    ]

Build = Callable[..., tuple[EngineSpec, Path]]
Greedy = Callable[[tuple[int, ...], int], list[int]]


def write_model(folder: Path) -> None:
    """Write a random Llama with a byte-level tokenizer; float32, so that exports keep every bit."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast
    from transformers.models.llama import modeling_llama

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    # transformers leaves its constructors untyped.
    llama: Any = modeling_llama.LlamaForCausalLM
    llama(config).to(torch.float32).save_pretrained(folder)
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"<s>": 256, "</s>": 257, "<pad>": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>").save_pretrained(folder)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny-llama"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_model(folder)
    return folder


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("calibration") / "calibration.jsonl"
    texts = ["".join(rng.choice("abcdefgh ,.") for _ in range(24)) for _ in range(4)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def built(source: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build a checkpoint in this process, each once per session."""
    done: dict[tuple[str, str, str], tuple[EngineSpec, Path]] = {}

    def build(quant: str, kv: str = "auto", recipe: str = "") -> tuple[EngineSpec, Path]:
        key = (quant, kv, recipe)
        if key not in done:
            spec = EngineSpec(
                model=str(source),
                served_model_name="tiny",
                quant=quant,
                recipe=recipe,
                kv_cache_dtype=kv,
                calib_dataset=str(calibration),
            )
            if quant == "BF16":
                done[key] = spec, source
                return done[key]
            folder = tmp_path_factory.mktemp(f"{quant}-{kv}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                build_checkpoint(spec, source=source, destination=folder, progress=lambda _line: None)
            done[key] = spec, folder
        return done[key]

    return build


@pytest.fixture
def copied(built: Build, tmp_path: Path) -> Build:
    """A copy of a built checkpoint that a test may damage."""

    def copy(quant: str, kv: str = "auto") -> tuple[EngineSpec, Path]:
        spec, folder = built(quant, kv)
        target = tmp_path / f"copy-{quant}"
        shutil.copytree(folder, target)
        return spec, target

    return copy


@pytest.fixture(scope="session")
def engine(source: Path) -> Iterator[Any]:
    from pytest_inferperf.engines.transformers_engine import TransformersEngine

    with TransformersEngine(EngineSpec(model=str(source), served_model_name="tiny"), checkpoint=str(source)) as engine:
        yield engine


@pytest.fixture(scope="session")
def reference(source: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).train(False)


@pytest.fixture(scope="session")
def greedy(reference: Any) -> Greedy:
    """What transformers itself generates."""
    import torch

    def generate(prompt: tuple[int, ...], count: int) -> list[int]:
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

    return generate


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start an engine process of the fake backend: `start("crash")`. All are closed with the test."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(supervisor, "GRACE_S", 0.5)
    engines: list[EngineProcess] = []

    def make(behaviour: str, *, call_timeout_s: float = 30.0, load_timeout_s: float = 30.0) -> EngineProcess:
        engine = EngineProcess(
            EngineSpec(model="m", served_model_name=behaviour),
            class_path="fake_backend:FakeEngine",
            checkpoint=tmp_path,
            load_timeout_s=load_timeout_s,
            call_timeout_s=call_timeout_s,
            log_dir=tmp_path / "logs",
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()
