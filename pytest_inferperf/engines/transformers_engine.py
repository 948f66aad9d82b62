"""The embedded engine: an exported checkpoint run by transformers, on a CPU or on CUDA.

Imports torch: only functions of `engines/` import this module.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from pytest_inferperf.engines.checkpoint.build import threads_for
from pytest_inferperf.engines.checkpoint.cache import checkpoint_hash
from pytest_inferperf.engines.checkpoint.conformance import read_quant_config
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
from pytest_inferperf.errors import EngineError, choices
from pytest_inferperf.model.case import EngineSpec, Scalar
from pytest_inferperf.model.results import EngineInfo, Hardware

__all__ = ["OPTIONS", "TransformersEngine"]

OPTIONS: dict[str, tuple[type, str]] = {
    "use_cache": (bool, "keep keys and values between steps; False computes the whole prefix again for every token"),
    "compute_dtype": (str, "float32 or bfloat16"),
    "num_threads": (int, "CPU threads; by default one for a small model, else all cores"),
    "max_batch_tokens": (int, "tokens of one forward pass when scoring or reading prompts"),
}
"""Engine options: type and meaning."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MAX_LOGIT_ELEMENTS = 1 << 25
"""Largest block of float32 logits that is held at once."""


@dataclass(kw_only=True)
class _Sequence:
    """One request while it is being completed."""

    index: int
    request: GenerationRequest
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One context with all continuations to be scored after it, packed into one sequence."""

    context: tuple[int, ...]
    members: tuple[tuple[int, tuple[int, ...]], ...]
    """Index of the request, and its continuation."""

    @property
    def length(self) -> int:
        """Number of tokens the model reads."""
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.members)


class TransformersEngine(Engine):
    """Runs the packed weights of an exported checkpoint; activations and KV cache are quantized as it says.

    The arithmetic is float32 on a CPU: without native bfloat16 a CPU is slower in it, and a result then depends on
    what else is in the batch.
    """

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
        self._eos = _eos_ids(model, self._tokenizer)
        self._full_attention = _has_full_attention(model)
        self._plain_head = self._head_is_plain()
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
    def _model(self) -> Any:
        if self._packed is None:
            raise EngineError("the engine is closed")
        return self._packed.model

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
        return int(self._model.config.vocab_size)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """See `Engine.special_token_ids`: those the tokenizer marks, and ids it does not know."""
        unused = range(len(self._tokenizer), self.vocab_size)
        return frozenset({*self._tokenizer.all_special_ids, *self._eos, *unused})

    def peak_memory_bytes(self) -> int:
        """See `Engine.peak_memory_bytes`."""
        if self._device == "cuda":
            return int(torch.cuda.max_memory_allocated())
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def close(self) -> None:
        """See `Engine.close`."""
        self._packed = None
        if self._device == "cuda":
            torch.cuda.empty_cache()

    # Generation

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        """See `Engine.generate`: static batches of `concurrency` requests, the longest prompts first."""
        if concurrency < 1:
            raise EngineError(f"concurrency={concurrency}: at least 1")
        for request in requests:
            self._check_fits(request)
        order = sorted(
            range(len(requests)), key=lambda index: (-len(requests[index].prompt), -requests[index].max_tokens, index)
        )
        answers: dict[int, Generation] = {}
        for start in range(0, len(order), concurrency):
            batch = [_sequence(index, requests[index]) for index in order[start : start + concurrency]]
            began = time.perf_counter()
            for _ in self._complete(batch):
                pass
            for sequence in batch:
                answers[sequence.index] = self._answer(sequence, began)
        return [answers[index] for index in range(len(requests))]

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        """See `Engine.stream`."""
        self._check_fits(request)
        return self._stream(request)

    def _stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        sequence = _sequence(0, request)
        began = time.perf_counter()
        shown = 0
        for _ in self._complete([sequence]):
            text = self._text(sequence.tokens)
            if sequence.finish is not None:
                text, _ = _cut(text, request.stop)
            elif text.endswith("\ufffd"):
                # Half a character: its other bytes are still to come.
                text = text[:shown]
            # A stop string may be growing at the end, so its possible beginning is held back.
            ready = len(text) if sequence.finish is not None else max(shown, len(text) - _held_back(text, request.stop))
            yield TokenChunk(
                token_ids=(sequence.tokens[-1],), text=text[shown:ready], time_s=sequence.times[-1] - began
            )
            shown = ready

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

    def _check_ids(self, tokens: Sequence[int]) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            raise EngineError(f"token ids must lie between 0 and {self.vocab_size - 1}, got {max(tokens, key=abs)}")

    def _complete(self, batch: list[_Sequence]) -> Iterator[None]:
        """Generate token by token; every step appends one token to each unfinished sequence."""
        with torch.inference_mode():
            runner = _Runner(self._packed_model, self._device, use_cache=self._use_cache, mask_4d=self._full_attention)
            active = list(batch)
            logits = runner.start([sequence.request.prompt for sequence in active], _room(active))
            while True:
                chosen = _choose(logits, active)
                tokens = chosen.tolist()
                now = time.perf_counter()
                finished = 0
                for sequence, token in zip(active, tokens, strict=True):
                    if sequence.finish is None:
                        sequence.tokens.append(token)
                        sequence.times.append(now)
                        sequence.finish = self._finish(sequence)
                    finished += sequence.finish is not None
                yield
                if finished == len(active):
                    return
                # Copying the cache costs about one step, so rows leave in groups.
                if finished * 4 >= len(active):
                    rows = [index for index, sequence in enumerate(active) if sequence.finish is None]
                    active = [active[index] for index in rows]
                    chosen = runner.keep(rows, chosen)
                logits = runner.step(chosen)

    @property
    def _packed_model(self) -> PackedModel:
        if self._packed is None:
            raise EngineError("the engine is closed")
        return self._packed

    def _finish(self, sequence: _Sequence) -> Literal["stop", "length"] | None:
        request = sequence.request
        if not request.ignore_eos and sequence.tokens[-1] in self._eos:
            return "stop"
        if request.stop:
            # A token is at least one byte and a character at most four, so this tail holds any stop string that the
            # newest token can have completed.
            tail = sequence.tokens[-(4 * max(len(text) for text in request.stop) + 4) :]
            if _cut(self._text(tail), request.stop)[1] and _cut(self._text(sequence.tokens), request.stop)[1]:
                return "stop"
        return "length" if len(sequence.tokens) >= request.max_tokens else None

    def _answer(self, sequence: _Sequence, began: float) -> Generation:
        text, _ = _cut(self._text(sequence.tokens), sequence.request.stop)
        return Generation(
            token_ids=tuple(sequence.tokens),
            text=text,
            finish_reason=sequence.finish or "length",
            prompt_tokens=len(sequence.request.prompt),
            token_times_s=tuple(moment - began for moment in sequence.times),
        )

    # Scoring

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        """See `Engine.loglikelihood`: requests with one context share a row, in which the context is read once."""
        if concurrency < 1:
            raise EngineError(f"concurrency={concurrency}: at least 1")
        rows = self._rows(requests)
        rows.sort(key=lambda row: (-row.length, row.context))
        answers: dict[int, LogLikelihood] = {}
        start = 0
        while start < len(rows):
            size = max(1, min(concurrency, self._max_batch_tokens // rows[start].length))
            self._score(rows[start : start + size], answers)
            start += size
        return [answers[index] for index in range(len(requests))]

    def _rows(self, requests: Sequence[LogLikelihoodRequest]) -> list[_Row]:
        shared: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
        for index, request in enumerate(requests):
            total = len(request.context) + len(request.continuation)
            if not request.context or not request.continuation:
                raise EngineError("a log-likelihood request needs a context and a continuation of at least one token")
            if total - 1 > self._max_model_len:
                raise EngineError(
                    f"a context of {len(request.context)} and a continuation of {len(request.continuation)} tokens are "
                    f"more than max_model_len={self._max_model_len}; shorten the context"
                )
            self._check_ids(request.context)
            self._check_ids(request.continuation)
            shared.setdefault(request.context, []).append((index, request.continuation))
        rows: list[_Row] = []
        for context, members in shared.items():
            if not self._full_attention:
                rows += [_Row(context=context, members=(member,)) for member in members]
                continue
            # A row's attention is quadratic in its length: it takes continuations up to twice the context.
            rows += _split(context, members, limit=max(256, 3 * len(context)))
        return rows

    def _score(self, rows: Sequence[_Row], answers: dict[int, LogLikelihood]) -> None:
        width = max(row.length for row in rows)
        ids: list[list[int]] = []
        positions: list[list[int]] = []
        segments: list[list[int]] = []
        wanted: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        for number, row in enumerate(rows):
            line, places, parts = list(row.context), list(range(len(row.context))), [0] * len(row.context)
            for part, (index, continuation) in enumerate(row.members, start=1):
                last = number * width + len(row.context) - 1
                fresh = number * width + len(line)
                wanted += [last, *range(fresh, fresh + len(continuation) - 1)]
                targets += continuation
                owners += [index] * len(continuation)
                line += continuation[:-1]
                places += range(len(row.context), len(row.context) + len(continuation) - 1)
                parts += [part] * (len(continuation) - 1)
            padding = width - len(line)
            ids.append(line + [0] * padding)
            positions.append(places + [0] * padding)
            segments.append(parts + [-1] * padding)
        with torch.inference_mode():
            shared = any(len(row.members) > 1 for row in rows)
            scores, greedy = self._log_probs(ids, positions, segments if shared else None, wanted, targets)
        sums: dict[int, float] = {}
        hits: dict[int, bool] = {}
        for index, score, hit in zip(owners, scores, greedy, strict=True):
            sums[index] = sums.get(index, 0.0) + score
            hits[index] = hits.get(index, True) and hit
        for index, total in sums.items():
            answers[index] = LogLikelihood(logprob=total, is_greedy=hits[index])

    def _log_probs(
        self,
        ids: list[list[int]],
        positions: list[list[int]],
        segments: list[list[int]] | None,
        wanted: list[int],
        targets: list[int],
    ) -> tuple[list[float], list[bool]]:
        packed = self._packed_model
        tokens = torch.tensor(ids, device=self._device)
        inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": packed.kv_algo is not None}
        if packed.kv_algo is not None:
            inputs["past_key_values"] = packed.cache(tokens.shape[1])
        if segments is not None:
            inputs["position_ids"] = torch.tensor(positions, device=self._device)
            inputs["attention_mask"] = _block_mask(torch.tensor(segments, device=self._device))
        # Without shared contexts the padding stands on the right, where causal attention hides it: no mask is needed.
        places = torch.tensor(wanted, device=self._device)
        expected = torch.tensor(targets, device=self._device)
        if self._plain_head:
            states = packed.model.base_model(**inputs).last_hidden_state.flatten(0, 1)[places]
            head = packed.model.get_output_embeddings()
        else:
            states = packed.model(**inputs).logits.flatten(0, 1)[places]
            head = torch.nn.Identity()
        scores: list[float] = []
        greedy: list[bool] = []
        block = max(1, _MAX_LOGIT_ELEMENTS // self.vocab_size)
        for part, goal in zip(torch.split(states, block), torch.split(expected, block), strict=True):
            logits = head(part).float()
            best = logits.argmax(dim=-1)
            scores += (logits.gather(1, goal[:, None])[:, 0] - logits.logsumexp(dim=-1)).tolist()
            greedy += (best == goal).tolist()
        return scores, greedy

    def _head_is_plain(self) -> bool:
        """Whether logits are just the head over the last hidden states: some models scale or cap them."""
        model = self._model
        probe = torch.tensor([[self.prefix_token_id, 0]], device=self._device)
        with torch.inference_mode():
            head = model.get_output_embeddings()
            if head is None or not hasattr(model, "base_model"):
                return False
            found = head(model.base_model(input_ids=probe, use_cache=False).last_hidden_state)
            return bool(torch.allclose(found, model(input_ids=probe, use_cache=False).logits))


class _Runner:
    """The forward passes of one batch: prompts first, then one token per row and step."""

    def __init__(self, packed: PackedModel, device: str, *, use_cache: bool, mask_4d: bool) -> None:
        self._packed = packed
        self._device = device
        self._use_cache = use_cache
        self._mask_4d = mask_4d

    def start(self, prompts: Sequence[Sequence[int]], room: int) -> torch.Tensor:
        """Read the prompts; return the logits of the first new token."""
        width = max(len(prompt) for prompt in prompts)
        total = width + room
        padding = [width - len(prompt) for prompt in prompts]
        self._pads = torch.tensor(padding, device=self._device)
        self._padded = any(padding)
        self._length = width
        self._ids = torch.zeros((len(prompts), total), dtype=torch.long, device=self._device)
        self._ids[:, :width] = torch.tensor(
            [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)], device=self._device
        )
        self._positions = (torch.arange(total, device=self._device)[None] - self._pads[:, None]).clamp_(min=0)
        self._visible = torch.arange(total, device=self._device)[None] >= self._pads[:, None]
        self._cache = self._packed.cache(total) if self._use_cache else None
        return self._forward(0)

    def step(self, chosen: torch.Tensor) -> torch.Tensor:
        """Append one token per row; return the logits of the next."""
        self._ids[:, self._length] = chosen
        self._length += 1
        return self._forward(self._length - 1 if self._use_cache else 0)

    def keep(self, rows: list[int], chosen: torch.Tensor) -> torch.Tensor:
        """Drop every other row of the batch; return the chosen tokens of those kept."""
        picked = torch.tensor(rows, device=self._device)
        self._ids, self._positions = self._ids[picked], self._positions[picked]
        self._visible, self._pads = self._visible[picked], self._pads[picked]
        if self._cache is not None:
            for layer in self._cache.layers:
                if hasattr(layer, "keep"):
                    layer.keep(picked)
                else:
                    layer.batch_select_indices(picked)
        return chosen[picked]

    def _forward(self, start: int) -> torch.Tensor:
        end = self._length
        cache = self._cache
        if cache is None and self._packed.kv_algo is not None:
            # Without reuse the keys and values still pass through the cache's number format.
            cache = self._packed.cache(end)
        outputs = self._packed.model(
            input_ids=self._ids[:, start:end],
            position_ids=self._positions[:, start:end] if self._padded else self._positions[:1, start:end],
            attention_mask=self._mask(start, end),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
        )
        logits: torch.Tensor = outputs.logits[:, -1]
        return logits

    def _mask(self, start: int, end: int) -> torch.Tensor | None:
        if not self._padded:
            return None
        if not self._mask_4d:
            return self._visible[:, :end].long()
        visible = self._visible[:, None, None, :end]
        if end - start == 1:
            return visible
        places = torch.arange(end, device=self._device)
        causal = places[None, :] <= places[start:end, None]
        # A padding row would see nothing, and a softmax over nothing is NaN: it sees itself.
        own = places[None, :] == places[start:end, None]
        return (visible & causal) | own


def _block_mask(segments: torch.Tensor) -> torch.Tensor:
    """Let a continuation see its context and itself, never its neighbours. Segment 0 is the context, -1 padding."""
    width = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones((width, width), dtype=torch.bool, device=segments.device).tril_()
    return (causal & ((key == 0) | (key == query)))[:, None]


def _split(context: tuple[int, ...], members: Sequence[tuple[int, tuple[int, ...]]], *, limit: int) -> Iterator[_Row]:
    taken: list[tuple[int, tuple[int, ...]]] = []
    length = len(context)
    for member in members:
        if taken and length + len(member[1]) - 1 > limit:
            yield _Row(context=context, members=tuple(taken))
            taken, length = [], len(context)
        taken.append(member)
        length += len(member[1]) - 1
    yield _Row(context=context, members=tuple(taken))


def _sequence(index: int, request: GenerationRequest) -> _Sequence:
    generator = torch.Generator().manual_seed(request.seed) if request.temperature > 0 else None
    return _Sequence(index=index, request=request, generator=generator)


def _room(batch: Sequence[_Sequence]) -> int:
    return max(sequence.request.max_tokens for sequence in batch)


def _choose(logits: torch.Tensor, batch: Sequence[_Sequence]) -> torch.Tensor:
    chosen = logits.argmax(dim=-1)
    for row, sequence in enumerate(batch):
        if sequence.generator is not None and sequence.finish is None:
            chosen[row] = _sample(logits[row].float().cpu(), sequence.request, sequence.generator)
    return chosen


def _sample(logits: torch.Tensor, request: GenerationRequest, generator: torch.Generator) -> int:
    probabilities = (logits / request.temperature).softmax(dim=-1)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    if request.top_p < 1.0:
        # The smallest set that reaches top_p: a token stays while the mass before it is below.
        ordered[ordered.cumsum(dim=-1) - ordered >= request.top_p] = 0.0
    return int(ids[torch.multinomial(ordered, 1, generator=generator)])


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut before the first stop string; say whether there was one."""
    found = [place for place in (text.find(item) for item in stop if item) if place >= 0]
    return (text[: min(found)], True) if found else (text, False)


def _held_back(text: str, stop: Sequence[str]) -> int:
    lengths = [size for item in stop for size in range(1, len(item)) if text.endswith(item[:size])]
    return max(lengths, default=0)


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
    if resolved["compute_dtype"] not in _DTYPES:
        raise EngineError(
            f"engine option compute_dtype={resolved['compute_dtype']!r}.\n"
            f"{choices(resolved['compute_dtype'], _DTYPES, what='Types')}"
        )
    return resolved


def _whole(value: Scalar) -> int:
    return value if isinstance(value, int) else 0


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EngineError(f"{folder}: no tokenizer ({error})") from error


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for value in (
        tokenizer.eos_token_id,
        getattr(model.config, "eos_token_id", None),
        getattr(model.generation_config, "eos_token_id", None),
    ):
        if value is not None:
            found |= {int(value)} if isinstance(value, int) else {int(item) for item in value}
    if not found:
        raise EngineError("the model names no end-of-sequence token in its tokenizer or config.json")
    return frozenset(found)


def _has_full_attention(model: Any) -> bool:
    """Whether every layer attends to all earlier tokens, so that one mask serves all layers."""
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return getattr(model.config, "sliding_window", None) is None


def _hardware(device: str) -> Hardware:
    if device == "cuda":
        return Hardware(name=torch.cuda.get_device_name(), count=1, kind="gpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Hardware(name=_cpu_name(), count=cores, kind="cpu")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    import platform

    return platform.processor() or platform.machine() or "unknown CPU"


def _versions() -> Mapping[str, str]:
    found = {}
    for name in ("torch", "transformers", "nvidia-modelopt"):
        try:
            found[name.removeprefix("nvidia-")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
