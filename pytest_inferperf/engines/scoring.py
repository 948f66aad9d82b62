"""Score continuations: requests that share a context are packed into one row, in which it is read once. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_inferperf.engines.interface import LogLikelihood, LogLikelihoodRequest
from pytest_inferperf.engines.packed import PackedModel

__all__ = ["Scorer", "has_plain_head"]

_MAX_LOGIT_ELEMENTS = 1 << 25
"""Largest block of float32 logits that is held at once."""


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


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Rows laid out for one forward pass, and which of its outputs predict which token of which request."""

    ids: list[list[int]] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)
    segments: list[list[int]] = field(default_factory=list)
    """0 for the context, then one number per continuation, -1 for padding."""

    wanted: list[int] = field(default_factory=list)
    """Places in the flattened output whose prediction is scored."""

    targets: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Log-likelihoods of continuations under one model."""

    packed: PackedModel
    max_batch_tokens: int
    """Tokens of one forward pass, unless a single row has more."""

    plain_head: bool
    """See `has_plain_head`."""

    def score(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        """Score every request, at most `concurrency` rows at a time; answers in the order of the requests."""
        rows = _rows(requests, share=self.packed.full_attention)
        rows.sort(key=lambda row: (-row.length, row.context))
        answers: dict[int, LogLikelihood] = {}
        start = 0
        while start < len(rows):
            size = max(1, min(concurrency, self.max_batch_tokens // rows[start].length))
            answers.update(self._score(rows[start : start + size]))
            start += size
        return [answers[index] for index in range(len(requests))]

    def _score(self, rows: Sequence[_Row]) -> dict[int, LogLikelihood]:
        batch = _lay_out(rows)
        with torch.inference_mode():
            scores, greedy = self._log_probs(batch, shared=any(len(row.members) > 1 for row in rows))
        sums: dict[int, float] = {}
        hits: dict[int, bool] = {}
        for index, score, hit in zip(batch.owners, scores, greedy, strict=True):
            sums[index] = sums.get(index, 0.0) + score
            hits[index] = hits.get(index, True) and hit
        return {index: LogLikelihood(logprob=total, is_greedy=hits[index]) for index, total in sums.items()}

    def _log_probs(self, batch: _Batch, *, shared: bool) -> tuple[list[float], list[bool]]:
        packed = self.packed
        tokens = torch.tensor(batch.ids, device=packed.device)
        inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": packed.kv_algo is not None}
        if packed.kv_algo is not None:
            inputs["past_key_values"] = packed.cache(tokens.shape[1])
        if shared:
            inputs["position_ids"] = torch.tensor(batch.positions, device=packed.device)
            inputs["attention_mask"] = _block_mask(torch.tensor(batch.segments, device=packed.device))
        # Without shared contexts the padding stands on the right, where causal attention hides it: no mask is needed.
        places = torch.tensor(batch.wanted, device=packed.device)
        expected = torch.tensor(batch.targets, device=packed.device)
        if self.plain_head:
            states = packed.model.base_model(**inputs).last_hidden_state.flatten(0, 1)[places]
            head = packed.model.get_output_embeddings()
        else:
            states = packed.model(**inputs).logits.flatten(0, 1)[places]
            head = torch.nn.Identity()
        scores: list[float] = []
        greedy: list[bool] = []
        block = max(1, _MAX_LOGIT_ELEMENTS // int(packed.model.config.vocab_size))
        for part, goal in zip(torch.split(states, block), torch.split(expected, block), strict=True):
            logits = head(part).float()
            best = logits.argmax(dim=-1)
            scores += (logits.gather(1, goal[:, None])[:, 0] - logits.logsumexp(dim=-1)).tolist()
            greedy += (best == goal).tolist()
        return scores, greedy


def has_plain_head(packed: PackedModel) -> bool:
    """Whether logits are just the head over the last hidden states: some models scale or cap them."""
    model = packed.model
    probe = torch.tensor([[1, 0]], device=packed.device)
    with torch.inference_mode():
        head = model.get_output_embeddings()
        if head is None or not hasattr(model, "base_model"):
            return False
        found = head(model.base_model(input_ids=probe, use_cache=False).last_hidden_state)
        return bool(torch.allclose(found, model(input_ids=probe, use_cache=False).logits))


def _rows(requests: Sequence[LogLikelihoodRequest], *, share: bool) -> list[_Row]:
    members: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for index, request in enumerate(requests):
        members.setdefault(request.context, []).append((index, request.continuation))
    rows: list[_Row] = []
    for context, found in members.items():
        # A row's attention is quadratic in its length: it takes continuations up to twice the context, and none beside
        # the first where reading the context again costs less than a longer row (rolling windows share one token).
        mean = sum(len(continuation) for _, continuation in found) / len(found)
        limit = max(256, 3 * len(context)) if share and 4 * len(context) >= mean else 0
        rows += _split(context, found, limit=limit)
    return rows


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


def _lay_out(rows: Sequence[_Row]) -> _Batch:
    width = max(row.length for row in rows)
    batch = _Batch()
    for number, row in enumerate(rows):
        line, places, parts = list(row.context), list(range(len(row.context))), [0] * len(row.context)
        for part, (index, continuation) in enumerate(row.members, start=1):
            last = number * width + len(row.context) - 1
            fresh = number * width + len(line)
            batch.wanted.extend((last, *range(fresh, fresh + len(continuation) - 1)))
            batch.targets.extend(continuation)
            batch.owners.extend([index] * len(continuation))
            line += continuation[:-1]
            places += range(len(row.context), len(row.context) + len(continuation) - 1)
            parts += [part] * (len(continuation) - 1)
        padding = width - len(line)
        batch.ids.append(line + [0] * padding)
        batch.positions.append(places + [0] * padding)
        batch.segments.append(parts + [-1] * padding)
    return batch


def _block_mask(segments: torch.Tensor) -> torch.Tensor:
    """Let a continuation see its context and itself, never its neighbours."""
    width = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones((width, width), dtype=torch.bool, device=segments.device).tril_()
    return (causal & ((key == 0) | (key == query)))[:, None]
