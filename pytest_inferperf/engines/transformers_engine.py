"""The embedded engine: an exported checkpoint run by transformers, on a CPU or on CUDA.

Imports torch: only functions of `engines/` import this module.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pytest_inferperf.engines.checkpoint.build import threads_for
from pytest_inferperf.engines.checkpoint.cache import checkpoint_hash
from pytest_inferperf.engines.checkpoint.conformance import read_quant_config
from pytest_inferperf.engines.checkpoint.sources import read_json
from pytest_inferperf.engines.decoding import Completion, Decoder
from pytest_inferperf.engines.hardware import cpu_hardware
from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    Progress,
    TokenChunk,
)
from pytest_inferperf.engines.packed import PackedModel, load_packed
from pytest_inferperf.engines.scoring import Scorer, has_plain_head
from pytest_inferperf.engines.speculation import SpeculativeDecoder, load_draft
from pytest_inferperf.engines.stopping import cut, held_back
from pytest_inferperf.errors import CheckpointError, EngineError, choices
from pytest_inferperf.model.case import EngineSpec, Scalar
from pytest_inferperf.model.results import EngineInfo, Hardware

__all__ = ["OPTIONS", "TransformersEngine"]

OPTIONS: dict[str, tuple[type, str]] = {
    "use_cache": (bool, "keep keys and values between steps; False computes the whole prefix again for every token"),
    "compute_dtype": (str, "float32 or bfloat16"),
    "num_threads": (int, "CPU threads; by default one for a small model, else all cores"),
    "max_batch_tokens": (int, "tokens of one forward pass when scoring"),
    "speculative": (str, "draft_target: speculative decoding, measured as acceptance_length"),
    "draft_model": (str, "folder or hub id of the draft model"),
    "max_draft_len": (int, "tokens proposed in one step of speculation"),
}
"""Engine options: type and meaning."""

_MAX_THREADS = 1024
"""With far more, the OpenMP runtime of torch crashes instead of complaining."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
"""Written a 5, it resets the peak of the resident set (proc_pid_clear_refs(5))."""


class TransformersEngine(Engine):
    """Runs the packed weights of an exported checkpoint; activations and KV cache are quantized as it says.

    The arithmetic is float32 on a CPU: without native bfloat16 a CPU is slower in it, and a result then depends on
    what else is in the batch.
    """

    _peak_known = True

    def __init__(self, spec: EngineSpec, *, checkpoint: str, progress: Progress | None = None) -> None:
        started = time.perf_counter()
        report = progress or (lambda _line: None)
        options = _options(spec)
        for name in ("tp", "pp", "ep"):
            if getattr(spec, name) != 1:
                raise EngineError(
                    f"{name}={getattr(spec, name)}: the transformers backend runs on one device; {name}=1"
                )
        folder = Path(checkpoint)
        config = read_quant_config(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = _DTYPES[str(options["compute_dtype"])]
        report(f"load {spec.served_model_name} {spec.precision}")
        self.spec = spec
        self._packed: PackedModel | None = load_packed(folder, config, dtype=dtype, device=device)
        model = self._packed.model
        if device == "cpu":
            threads = _whole(options["num_threads"]) or threads_for(sum(item.numel() for item in model.parameters()))
            options["num_threads"] = threads
            torch.set_num_threads(threads)
        self._device = device
        self._use_cache = bool(options["use_cache"])
        self._max_batch_tokens = _whole(options["max_batch_tokens"])
        self._max_model_len = int(getattr(model.config, "max_position_embeddings", 0)) or 1 << 30
        self._tokenizer = _tokenizer(folder)
        self._draft: PackedModel | None = None
        if "draft_model" in options:
            self._draft, longest = load_draft(
                str(options["draft_model"]), self._packed, self._tokenizer, dtype=dtype, device=device
            )
            self._max_draft_len = _whole(options["max_draft_len"])
            self._max_model_len = min(self._max_model_len, longest)
        self._eos = _eos_ids(folder, model, self._tokenizer)
        self._plain_head = has_plain_head(self._packed)
        self.info = EngineInfo(
            backend="transformers",
            hardware=_hardware(device),
            quant_algo=config.quant_algo,
            kv_cache_quant_algo=config.kv_cache_quant_algo,
            compute_dtype=str(options["compute_dtype"]),
            # This backend computes in a wide type everywhere, so a quantized format is never run by its own hardware.
            simulated=config.quant_algo is not None or config.kv_cache_quant_algo is not None,
            max_model_len=self._max_model_len,
            checkpoint=str(folder),
            checkpoint_hash=checkpoint_hash(folder),
            options=options,
            versions=_versions(),
            load_s=time.perf_counter() - started,
        )

    @property
    def _packed_model(self) -> PackedModel:
        if self._packed is None:
            raise EngineError("the engine is closed")
        return self._packed

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        """See `Engine.encode`."""
        if not texts:
            return []
        found = self._tokenizer(list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False)
        return [tuple(ids) for ids in found["input_ids"]]

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """See `Engine.decode`."""
        return [self._text(sequence, skip_special_tokens=skip_special_tokens) for sequence in sequences]

    def _text(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        # Cleaning up spaces would change what the model wrote.
        return str(
            self._tokenizer.decode(
                list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    @property
    def prefix_token_id(self) -> int:
        """See `Engine.prefix_token_id`."""
        bos = self._tokenizer.bos_token_id
        return self.eos_token_id if bos is None else int(bos)

    @property
    def eos_token_id(self) -> int:
        """See `Engine.eos_token_id`."""
        eos = self._tokenizer.eos_token_id
        return int(eos) if eos is not None else min(self._eos)

    @property
    def vocab_size(self) -> int:
        """See `Engine.vocab_size`."""
        return int(self._packed_model.model.config.vocab_size)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """See `Engine.special_token_ids`: those the tokenizer marks, and ids it does not know."""
        unused = range(len(self._tokenizer), self.vocab_size)
        return frozenset({*self._tokenizer.all_special_ids, *self._eos, *unused})

    def peak_memory_bytes(self) -> int:
        """See `Engine.peak_memory_bytes`."""
        if self._device == "cuda":
            return int(torch.cuda.max_memory_allocated())
        if not self._peak_known:
            return 0
        # A sandbox may show no peak: unknown, not small.
        lines = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return next((int(line.split()[1]) * 1024 for line in lines), 0)

    def forget_peak_memory(self) -> None:
        """See `Engine.forget_peak_memory`."""
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            try:
                _CLEAR_REFS.write_text("5")
            except OSError:
                # Not in every container: the peak would be that of whatever ran before.
                self._peak_known = False

    def close(self) -> None:
        """See `Engine.close`."""
        self._packed = self._draft = None
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        """See `Engine.generate`: static batches of `concurrency` requests, the longest prompts first."""
        _check_concurrency(concurrency)
        for request in requests:
            self._check_fits(request)
        order = sorted(
            range(len(requests)), key=lambda index: (-len(requests[index].prompt), -requests[index].max_tokens, index)
        )
        decoder = self._decoder()
        answers: dict[int, Generation] = {}
        for start in range(0, len(order), concurrency):
            batch = {index: Completion(request=requests[index]) for index in order[start : start + concurrency]}
            began = time.perf_counter()
            for _ in decoder.complete(list(batch.values())):
                pass
            answers |= {index: self._answer(completion, began) for index, completion in batch.items()}
        return [answers[index] for index in range(len(requests))]

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        """See `Engine.stream`."""
        self._check_fits(request)
        return self._stream(request, self._decoder())

    def _stream(self, request: GenerationRequest, decoder: Decoder) -> Iterator[TokenChunk]:
        completion = Completion(request=request)
        began = time.perf_counter()
        shown = sent = 0
        for _ in decoder.complete([completion]):
            text = self._text(completion.tokens)
            if completion.finish is not None:
                text, _ = cut(text, request.stop)
            elif text.endswith("\ufffd"):
                # Half a character: its other bytes are still to come.
                text = text[:shown]
            # A stop string may be growing at the end, so its possible beginning is held back.
            done = completion.finish is not None
            ready = len(text) if done else max(shown, len(text) - held_back(text, request.stop))
            yield TokenChunk(
                token_ids=tuple(completion.tokens[sent:]), text=text[shown:ready], time_s=completion.times[-1] - began
            )
            shown, sent = ready, len(completion.tokens)

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        """See `Engine.loglikelihood`: requests with one context share a row, in which the context is read once."""
        _check_concurrency(concurrency)
        for request in requests:
            self._check_scorable(request)
        scorer = Scorer(packed=self._packed_model, max_batch_tokens=self._max_batch_tokens, plain_head=self._plain_head)
        return scorer.score(requests, concurrency=concurrency)

    def _decoder(self) -> Decoder:
        if self._draft is not None:
            return SpeculativeDecoder(
                packed=self._packed_model,
                draft=self._draft,
                max_draft_len=self._max_draft_len,
                eos=self._eos,
                text=self._text,
            )
        return Decoder(packed=self._packed_model, eos=self._eos, text=self._text, use_cache=self._use_cache)

    def _answer(self, completion: Completion, began: float) -> Generation:
        text, _ = cut(self._text(completion.tokens), completion.request.stop)
        return Generation(
            token_ids=tuple(completion.tokens),
            text=text,
            finish_reason=completion.finish or "length",
            prompt_tokens=len(completion.request.prompt),
            token_times_s=tuple(moment - began for moment in completion.times),
            decoding_steps=completion.steps,
        )

    def _check_fits(self, request: GenerationRequest) -> None:
        if not request.prompt:
            raise EngineError("a prompt needs at least one token")
        if request.max_tokens < 1:
            raise EngineError(f"max_tokens={request.max_tokens}: at least 1")
        total = len(request.prompt) + request.max_tokens
        if total > self._max_model_len:
            raise EngineError(
                f"a prompt of {len(request.prompt)} tokens and max_tokens={request.max_tokens} make {total}, more than "
                f"max_model_len={self._max_model_len}; shorten the prompt or lower max_tokens"
            )
        self._check_ids(request.prompt)

    def _check_scorable(self, request: LogLikelihoodRequest) -> None:
        if not request.context or not request.continuation:
            raise EngineError("a log-likelihood request needs a context and a continuation of at least one token")
        # The last token is only predicted, never read.
        if len(request.context) + len(request.continuation) - 1 > self._max_model_len:
            raise EngineError(
                f"a context of {len(request.context)} and a continuation of {len(request.continuation)} tokens are "
                f"more than max_model_len={self._max_model_len}; shorten the context"
            )
        self._check_ids(request.context)
        self._check_ids(request.continuation)

    def _check_ids(self, tokens: Sequence[int]) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            raise EngineError(f"token ids must lie between 0 and {self.vocab_size - 1}, got {max(tokens, key=abs)}")


def _check_concurrency(concurrency: int) -> None:
    if concurrency < 1:
        raise EngineError(f"concurrency={concurrency}: at least 1")


def _options(spec: EngineSpec) -> dict[str, Scalar]:
    resolved: dict[str, Scalar] = {
        "use_cache": True,
        "compute_dtype": "bfloat16" if torch.cuda.is_available() else "float32",
        "num_threads": 0,
        "max_batch_tokens": 4096,
    }
    for name, value in spec.engine_options:
        if name not in OPTIONS:
            raise EngineError(
                f"unknown engine option {name!r} of the transformers backend.\n{choices(name, OPTIONS, what='Options')}"
            )
        kind = OPTIONS[name][0]
        # bool is an int: num_threads=True is a mistake, not one thread.
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or _whole(value) < 1)):
            wanted = {bool: "True or False", int: "a whole number of at least 1", str: "a string"}[kind]
            raise EngineError(f"engine option {name}={value!r}: expected {wanted} ({OPTIONS[name][1]})")
        resolved[name] = value
    if _whole(resolved["num_threads"]) > _MAX_THREADS:
        raise EngineError(f"engine option num_threads={resolved['num_threads']}: at most {_MAX_THREADS}")
    if resolved["compute_dtype"] not in _DTYPES:
        raise EngineError(
            f"engine option compute_dtype={resolved['compute_dtype']!r}.\n"
            f"{choices(resolved['compute_dtype'], _DTYPES, what='Types')}"
        )
    _check_speculation(resolved)
    return resolved


def _check_speculation(options: Mapping[str, Scalar]) -> None:
    """Refuse options of speculative decoding that do not go together."""
    given = [name for name in ("speculative", "draft_model", "max_draft_len") if name in options]
    if not given:
        return
    kind = options.get("speculative")
    if kind is None:
        raise EngineError(f"engine option {given[0]}: speculative= is missing. Name the kind: draft_target.")
    if kind != "draft_target":
        raise EngineError(
            f"engine option speculative={kind!r}: the transformers backend has speculative='draft_target' only."
        )
    if not options.get("draft_model"):
        raise EngineError(f"engine option speculative={kind!r} needs a draft model: draft_model=folder or hub id.")
    if "max_draft_len" not in options:
        raise EngineError(f"engine option speculative={kind!r} needs max_draft_len=, the tokens proposed in one step.")
    if not options["use_cache"]:
        raise EngineError(f"engine option speculative={kind!r} needs the KV cache: leave use_cache=False out.")


def _whole(value: Scalar) -> int:
    return value if isinstance(value, int) else 0


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain exceptions
        raise CheckpointError(f"{folder}: no tokenizer ({type(error).__name__}: {error})") from error


def _eos_ids(folder: Path, model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a text: chat models name more of them in generation_config.json than in config.json."""
    path = folder / "generation_config.json"
    found: set[int] = set()
    for value in (
        tokenizer.eos_token_id,
        getattr(model.config, "eos_token_id", None),
        read_json(path).get("eos_token_id") if path.is_file() else None,
    ):
        if value is not None:
            found |= {int(value)} if isinstance(value, int) else {int(item) for item in value}
    if not found:
        raise EngineError("the model names no end-of-sequence token in its tokenizer or config.json")
    return frozenset(found)


def _hardware(device: str) -> Hardware:
    if device == "cuda":
        return Hardware(name=torch.cuda.get_device_name(), count=1, kind="gpu")
    return cpu_hardware()


def _versions() -> Mapping[str, str]:
    found = {}
    for name in ("torch", "transformers", "nvidia-modelopt"):
        try:
            found[name.removeprefix("nvidia-")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
