"""A tiny random Llama with a byte-level tokenizer, lm-eval's own `hf` model of it, and engines over it."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    TokenChunk,
)
from pytest_inferperf.evaluate.interim import Interim, partial_table
from pytest_inferperf.model.case import EngineSpec, Task
from pytest_inferperf.model.results import AccuracyResult, EngineInfo, Hardware

TASKS = Path(__file__).parent / "tasks"
MAX_LENGTH = 128


class TinyEngine(Engine):
    """Runs a checkpoint in float32 with nothing clever: the plainest reading of the interface."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.spec = EngineSpec(model=str(folder), served_model_name="tiny")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.info = EngineInfo(
            backend="tiny",
            hardware=Hardware(name="cpu", count=1, kind="cpu"),
            quant_algo=None,
            kv_cache_quant_algo=None,
            compute_dtype="float32",
            simulated=False,
            max_model_len=self.model.config.max_position_embeddings,
            checkpoint=str(folder),
            checkpoint_hash="",
        )
        self.encode_calls = 0
        self.asked: list[GenerationRequest] = []

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        self.encode_calls += 1
        return [tuple(ids) for ids in self.tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]]

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        return [self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens) for ids in sequences]

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return int(self.eos_token_id if bos is None else bos)

    @property
    def eos_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def special_token_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        import torch

        self.asked += requests
        found: list[Generation] = []
        for request in requests:
            prompt = torch.tensor([request.prompt])
            with torch.no_grad():
                output = self.model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=request.max_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            ids = tuple(output[0, len(request.prompt) :].tolist())
            text = self.decode([ids])[0]
            for stop in request.stop:
                text = text.split(stop, 1)[0]
            found.append(
                Generation(
                    token_ids=ids,
                    text=text,
                    finish_reason="stop",
                    prompt_tokens=len(request.prompt),
                    token_times_s=(0.0,) * len(ids),
                )
            )
        return found

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        raise NotImplementedError

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        import torch

        found: list[LogLikelihood] = []
        for request in requests:
            tokens = request.context + request.continuation
            with torch.no_grad():
                logprobs = self.model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
            scored = logprobs[-len(request.continuation) :]
            wanted = torch.tensor(request.continuation)
            found.append(
                LogLikelihood(
                    logprob=float(scored.gather(1, wanted[:, None]).sum()),
                    is_greedy=bool((scored.argmax(-1) == wanted).all()),
                )
            )
        return found

    def peak_memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        return None


def make_model(folder: Path, *, adds_bos: bool) -> Path:
    """Save a random Llama with BF16 weights and a byte-level tokenizer trained on the test documents."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((TASKS / "text.jsonl").read_text(encoding="utf-8").splitlines(), trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=MAX_LENGTH
    )
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer.get_vocab()),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_LENGTH,
            # Wide enough that the answer depends on the prompt, as that of a trained model does.
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), adds_bos=False)


@pytest.fixture(scope="session")
def tiny_model_with_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny-bos"), adds_bos=True)


@pytest.fixture(scope="session")
def make_engine() -> Iterator[Callable[[Path], TinyEngine]]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for its threads
    yield cache(TinyEngine)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(make_engine: Callable[[Path], TinyEngine], tiny_model: Path) -> TinyEngine:
    return make_engine(tiny_model)


@pytest.fixture(scope="session")
def tiny_tasks(tiny: TinyEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test tasks, where every other expected word is the one the model answers: a mix of right and wrong."""
    folder = tmp_path_factory.mktemp("tasks")
    shutil.copytree(TASKS, folder, dirs_exist_ok=True)
    words = folder / "words.jsonl"
    rows = [json.loads(line) for line in words.read_text(encoding="utf-8").splitlines()]
    prompts = tiny.encode([row["prompt"] for row in rows])
    answers = tiny.generate([GenerationRequest(prompt=item, max_tokens=8) for item in prompts], concurrency=1)
    for row, answer in list(zip(rows, answers, strict=True))[::2]:
        word = re.match("^[^a-z]?([a-z]+)", answer.text)
        row["answer"] = word[1] if word else row["answer"]
    words.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def tiny_task(tiny_tasks: Path) -> Any:
    """Make the `Task` of one of the test tasks: `tiny_task("tiny_words", limit=3)`."""

    def make(name: str, **options: Any) -> Task:
        return Task(name=name, path=str(tiny_tasks / f"{name}.yaml"), **options)

    return make


@pytest.fixture(scope="session")
def hf_model() -> Any:
    """Make lm-eval's own `hf` model of a checkpoint, in float32."""
    loaded: dict[Path, Any] = {}

    def make(folder: Path) -> Any:
        if folder not in loaded:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # accelerate and transformers, on construction
                from lm_eval.models.huggingface import HFLM

                loaded[folder] = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8)
        return loaded[folder]

    return make


@pytest.fixture(scope="session")
def hf_samples() -> Any:
    """Run a task file on an `hf` model with lm-eval alone: the samples of the task's first filter and its results."""

    def run(model: Any, path: Path, limit: int | None = None) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = TaskManager(include_defaults=False).load(str(path))
            loaded["tasks"][path.stem].set_fewshot_seed(1234)
            results = evaluator.evaluate(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True)
        samples = results["samples"][path.stem]
        return [item for item in samples if item["filter"] == samples[0]["filter"]], results["results"][path.stem]

    return run


@pytest.fixture
def whole_in_part(monkeypatch: pytest.MonkeyPatch) -> list[AccuracyResult]:
    """Score all answers on the interim road too, before lm-eval gets them."""
    found: list[AccuracyResult] = []
    plain = Interim.__call__

    def call(self: Interim, requests: Sequence[Any], ask: Callable[[Sequence[int]], list[Any]]) -> list[Any]:
        answers = plain(self, requests, ask)
        samples = self._samples(requests, answers, range(len(self._documents.rows)))
        found.append(self._score(samples, partial_table(self._found, samples, self._metric)))
        return answers

    monkeypatch.setattr(Interim, "__call__", call)
    return found
