"""Decode a batch token by token: forward passes over a shared cache, sampling, and stop strings. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import torch

from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.packed import PackedModel
from pytest_inferperf.engines.stopping import cut

__all__ = ["Completion", "Decoder", "choose"]


@dataclass(kw_only=True)
class Completion:
    """One request while it is being completed."""

    request: GenerationRequest
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each token arrived, on the clock of `perf_counter`."""

    steps: int = 0
    """Forward passes of the model that it took, that of the prompt included."""

    finish: Literal["stop", "length"] | None = None
    generator: torch.Generator | None = None
    """None is greedy."""

    def __post_init__(self) -> None:
        if self.request.temperature > 0:
            self.generator = torch.Generator().manual_seed(self.request.seed)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Completes batches of requests, one token per step and unfinished request."""

    packed: PackedModel
    eos: frozenset[int]
    text: Callable[[Sequence[int]], str]
    """Turns tokens into text, special tokens left out."""

    use_cache: bool = True

    def complete(self, batch: Sequence[Completion]) -> Iterator[None]:
        """Yield after every step; each one appends one token to each unfinished completion."""
        with torch.inference_mode():
            runner = _Runner(self.packed, use_cache=self.use_cache)
            active = list(batch)
            logits = runner.start([completion.request for completion in active])
            while True:
                chosen = _choose(logits, active)
                tokens = chosen.tolist()
                now = perf_counter()
                finished = 0
                for completion, token in zip(active, tokens, strict=True):
                    if completion.finish is None:
                        completion.tokens.append(token)
                        completion.times.append(now)
                        completion.steps += 1
                        completion.finish = self._finish(completion)
                    finished += completion.finish is not None
                yield
                if finished == len(active):
                    return
                # Copying the cache costs about one step, so rows leave in groups.
                if finished * 4 >= len(active):
                    rows = [index for index, completion in enumerate(active) if completion.finish is None]
                    active = [active[index] for index in rows]
                    chosen = runner.keep(rows, chosen)
                logits = runner.step(chosen)

    def _finish(self, completion: Completion) -> Literal["stop", "length"] | None:
        request = completion.request
        if not request.ignore_eos and completion.tokens[-1] in self.eos:
            return "stop"
        if any(request.stop) and cut(self._tail(completion), request.stop)[1]:
            # The tail may begin inside a character: only the whole text is sure.
            _, found = cut(self.text(completion.tokens), request.stop)
            if found:
                return "stop"
        return "length" if len(completion.tokens) >= request.max_tokens else None

    def _tail(self, completion: Completion) -> str:
        """The end of the text, which holds any stop string that the newest token can have completed."""
        tokens = completion.tokens
        longest = max(len(text) for text in completion.request.stop)
        # A token is at least one byte and a character at most four, except that special tokens leave no text.
        size = 4 * longest + 4
        while size < len(tokens) and len(self.text(tokens[-size:-1])) < longest:
            size *= 2
        return self.text(tokens[-size:])


class _Runner:
    """The forward passes of one batch: prompts first, then one token per row and step."""

    def __init__(self, packed: PackedModel, *, use_cache: bool) -> None:
        self._packed = packed
        self._device = packed.device
        self._use_cache = use_cache

    def start(self, requests: Sequence[GenerationRequest]) -> torch.Tensor:
        """Read the prompts; return the logits of the first new token."""
        lengths = [len(request.prompt) for request in requests]
        width = max(lengths)
        total = width + max(request.max_tokens for request in requests)
        padding = [width - length for length in lengths]
        self._pads = torch.tensor(padding, device=self._device)
        self._padded = any(padding)
        self._length = width
        self._ids = torch.zeros((len(requests), total), dtype=torch.long, device=self._device)
        self._ids[:, :width] = torch.tensor(
            [[0] * pad + list(request.prompt) for pad, request in zip(padding, requests, strict=True)],
            device=self._device,
        )
        self._positions = (torch.arange(total, device=self._device)[None] - self._pads[:, None]).clamp_(min=0)
        if self._padded:
            # A finished row stays until its group leaves. Its position stops where its own request ends: some models
            # know none beyond their maximum.
            last = [length + request.max_tokens - 1 for length, request in zip(lengths, requests, strict=True)]
            self._positions = self._positions.minimum(torch.tensor(last, device=self._device)[:, None])
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
        if not self._packed.full_attention:
            return self._visible[:, :end].long()
        visible = self._visible[:, None, None, :end]
        if end - start == 1:
            return visible
        places = torch.arange(end, device=self._device)
        causal = places[None, :] <= places[start:end, None]
        # A padding row would see nothing, and a softmax over nothing is NaN: it sees itself.
        own = places[None, :] == places[start:end, None]
        return (visible & causal) | own


def _choose(logits: torch.Tensor, batch: Sequence[Completion]) -> torch.Tensor:
    chosen = logits.argmax(dim=-1)
    for row, completion in enumerate(batch):
        if completion.generator is not None and completion.finish is None:
            chosen[row] = _sample(logits[row].float().cpu(), completion.request, completion.generator)
    return chosen


def choose(logits: torch.Tensor, completion: Completion) -> int:
    """Choose the next token of one request from the logits of one place."""
    if completion.generator is None:
        return int(logits.argmax())
    return _sample(logits.float().cpu(), completion.request, completion.generator)


def _sample(logits: torch.Tensor, request: GenerationRequest, generator: torch.Generator) -> int:
    probabilities = (logits / request.temperature).softmax(dim=-1)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    if request.top_p < 1.0:
        # The smallest set that reaches top_p: a token stays while the mass before it is below, the first in any case.
        before = ordered.cumsum(dim=-1) - ordered
        ordered[1:][before[1:] >= request.top_p] = 0.0
    return int(ids[torch.multinomial(ordered, 1, generator=generator)])
