"""Speculative decoding: a small draft model proposes tokens, and one pass of the target checks them all. Imports torch.

Lossless: a proposal stays only where the target itself chose the same token, greedily or by the request's own random
numbers. What comes out is what the target alone would have written, up to the rounding of sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from pytest_inferperf.engines.checkpoint.conformance import read_quant_config
from pytest_inferperf.engines.checkpoint.sources import resolve_source
from pytest_inferperf.engines.decoding import Completion, Decoder, choose
from pytest_inferperf.engines.packed import PackedModel, load_packed
from pytest_inferperf.errors import CheckpointError, EngineError

__all__ = ["SpeculativeDecoder", "load_draft"]


@dataclass(frozen=True, kw_only=True)
class SpeculativeDecoder(Decoder):
    """Completes requests with a draft model, each row of a batch in passes of its own: rows accept as many as they do."""

    draft: PackedModel
    max_draft_len: int
    """Proposals of one step."""

    def complete(self, batch: Sequence[Completion]) -> Iterator[None]:
        """Yield after every step, which appends at least one token to each unfinished completion."""
        with torch.inference_mode():
            rows = [_Row(completion, self.packed, self.draft) for completion in batch]
            while rows:
                for row in rows:
                    row.step(self.max_draft_len, self._finish)
                yield
                rows = [row for row in rows if row.completion.finish is None]


class _Row:
    """One request, with the caches of both models."""

    def __init__(self, completion: Completion, target: PackedModel, draft: PackedModel) -> None:
        self.completion = completion
        request = completion.request
        self._ids = list(request.prompt)
        capacity = len(request.prompt) + request.max_tokens
        self._target = _Reader(target, capacity)
        self._draft = _Reader(draft, capacity)

    def step(self, length: int, finish: Callable[[Completion], Any]) -> None:
        """Propose, check, and append what the target chose."""
        completion = self.completion
        # The last token of a step is the target's own, so that one proposal less is of use.
        room = completion.request.max_tokens - len(completion.tokens) - 1
        # The first step reads the prompt and proposes nothing, as without a draft model.
        proposed = self._propose(min(length, room)) if completion.tokens else []
        logits = self._target.read([*self._ids, *proposed], keep=len(proposed) + 1)
        accepted = verify(proposed, logits, completion, finish)
        completion.steps += 1
        now = perf_counter()
        completion.times += [now] * accepted
        self._ids += completion.tokens[-accepted:]
        # The newest token was chosen and not read; of the proposals behind it nothing may stay.
        self._target.forget(len(self._ids) - 1)
        self._draft.forget(len(self._ids) - 1)

    def _propose(self, count: int) -> list[int]:
        proposed: list[int] = []
        for _ in range(count):
            logits = self._draft.read([*self._ids, *proposed], keep=1)
            proposed.append(int(logits[-1].argmax()))
        return proposed


def verify(
    proposed: Sequence[int], logits: torch.Tensor, completion: Completion, finish: Callable[[Completion], Any]
) -> int:
    """Append what the target chooses after each proposal, for as long as the proposals agree; return how many.

    `logits` holds one row more than there are proposals: what follows the last of them is a token for nothing.
    """
    for index, row in enumerate(logits):
        token = choose(row, completion)
        completion.tokens.append(token)
        completion.finish = finish(completion)
        if completion.finish is not None or index == len(proposed) or token != proposed[index]:
            return index + 1
    raise AssertionError("the last row has no proposal to agree with")


class _Reader:
    """One model and what it has read of one request."""

    def __init__(self, packed: PackedModel, capacity: int) -> None:
        self._packed = packed
        self._cache = packed.cache(capacity)
        self._length = 0

    def read(self, ids: Sequence[int], *, keep: int) -> torch.Tensor:
        """Read what is new of a sequence; return the logits after each of its last `keep` tokens."""
        fresh = ids[self._length :]
        positions = torch.arange(self._length, len(ids), device=self._packed.device)
        outputs = self._packed.model(
            input_ids=torch.tensor([fresh], device=self._packed.device),
            position_ids=positions[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        self._length = len(ids)
        logits: torch.Tensor = outputs.logits[0, -keep:]
        return logits

    def forget(self, length: int) -> None:
        """Keep the first `length` tokens only."""
        if length < self._length:
            self._length = length
            for layer in self._cache.layers:
                layer.forget(length)


def load_draft(
    name: str, target: PackedModel, tokenizer: Any, *, dtype: torch.dtype, device: str
) -> tuple[PackedModel, int]:
    """Load the draft model of a target; return it with the longest sequence it reads.

    Args:
        name: Its folder, or a hub id.
        target: The model it proposes tokens to.
        tokenizer: The target's.
        dtype: What it computes in.
        device: Where it runs.

    Raises `EngineError` for one that is missing, cannot be loaded, or speaks another vocabulary.

    """
    try:
        folder = resolve_source(name)
        draft = load_packed(folder, read_quant_config(folder), dtype=dtype, device=device)
    except CheckpointError as error:
        raise EngineError(f"engine option draft_model: {error}") from error
    for role, model in (("target", target), ("draft", draft)):
        if not model.full_attention:
            raise EngineError(
                f"engine option speculative='draft_target': the {role} model attends to a sliding window, and what was "
                "read of a refused proposal cannot be forgotten. Leave speculative out."
            )
    _check_vocabulary(folder, draft, target, tokenizer)
    return draft, int(getattr(draft.model.config, "max_position_embeddings", 0)) or 1 << 30


def _check_vocabulary(folder: Path, draft: PackedModel, target: PackedModel, tokenizer: Any) -> None:
    """A token id must mean the same to both: proposals travel as ids."""
    sizes = [int(model.model.config.vocab_size) for model in (target, draft)]
    if sizes[0] != sizes[1]:
        raise EngineError(
            f"engine option draft_model: {folder} knows {sizes[1]} tokens and the target {sizes[0]}; a draft model needs "
            "the target's own vocabulary"
        )
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer

    if Tokenizer.from_file(str(path)).get_vocab() != tokenizer.get_vocab():
        raise EngineError(
            f"engine option draft_model: the tokenizer of {folder} has other tokens than the target's; a draft model needs "
            "the target's own vocabulary"
        )
