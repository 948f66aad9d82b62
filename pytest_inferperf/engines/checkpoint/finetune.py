"""Quantization-aware training: a quantized model learns to live with its rounding, before it is exported.

The forward pass rounds weights, activations and KV cache as the format says; the gradient passes the rounding as if it
were not there (a straight-through estimator). Scales stay as calibration found them. Imports torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pytest_inferperf.engines.checkpoint.texts import Text
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import CheckpointError

__all__ = ["TRAINING_BATCH", "finetune"]

TRAINING_BATCH = 32
"""Texts of one step."""

SEED = 0
_WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; after them it falls to zero, linearly."""

_IGNORED = -100
_TOLD_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class _Row:
    tokens: list[int]
    start: int
    """The first token that is to be learned."""


def finetune(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    *,
    steps: int,
    learning_rate: float,
    limit: int,
    progress: Progress,
) -> None:
    """Train every weight of a quantized model on the texts; their prompts are read and not learned.

    Args:
        model: What `mtq.quantize` returned, in float32.
        tokenizer: Its tokenizer.
        texts: The data set. It is passed as often as the steps need, each time in another order.
        steps: Steps of AdamW, `TRAINING_BATCH` texts each.
        learning_rate: The largest learning rate.
        limit: Tokens of a text; the rest is cut off.
        progress: Receives a line now and then.

    The same texts, versions, thread count and type of processor give the same weights. Raises `CheckpointError` for
    texts with nothing to learn, and for a loss that is not a number.

    """
    rows = [row for row in (_row(tokenizer, text, limit) for text in texts) if row is not None]
    if not rows:
        raise CheckpointError(
            f"qat_dataset: none of its {len(texts)} texts holds a token to learn within the first {limit} tokens"
        )
    torch.manual_seed(SEED)
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    for parameter in weights:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    warm_up = max(1, round(steps * _WARM_UP))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up), 1.0)
    )
    model.train(True)
    batches = _batches(rows, steps)
    for step, batch in enumerate(batches, start=1):
        loss = _loss(model, batch)
        told = float(loss.detach())
        if not math.isfinite(told):
            raise CheckpointError(
                f"recipe='qat': the loss is {told} at step {step} of {steps}; lower qat_learning_rate={learning_rate:g}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % _TOLD_EVERY == 0 or step == steps:
            progress(f"training {step}/{steps}, loss {told:.4f}")
    model.train(False)
    _snap(model)
    for parameter in weights:
        parameter.grad = None
        parameter.requires_grad_(False)


def _snap(model: Any) -> None:
    """Put every quantized weight on the grid that it was rounded to.

    Training leaves many weights close to the middle between two grid points: cast to bfloat16 for the export, they would
    be rounded to the other one.
    """
    with torch.no_grad():
        for module in model.modules():
            quantizer = getattr(module, "weight_quantizer", None)
            if quantizer is not None and isinstance(getattr(module, "weight", None), torch.nn.Parameter):
                module.weight.copy_(quantizer(module.weight))


def _row(tokenizer: Any, text: Text, limit: int) -> _Row | None:
    """Encode a text and the end-of-sequence token after it; None where nothing is left to learn."""
    prompt = list(tokenizer(text.prompt)["input_ids"]) if text.prompt else []
    answer = list(tokenizer(text.text, add_special_tokens=not text.prompt)["input_ids"])
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    tokens = [*prompt, *answer, *end][:limit]
    # Nothing predicts the very first token.
    start = max(1, len(prompt))
    return _Row(tokens=tokens, start=start) if len(tokens) > start else None


def _batches(rows: Sequence[_Row], steps: int) -> Iterator[list[_Row]]:
    rng = random.Random(SEED)
    waiting: list[_Row] = []
    for _ in range(steps):
        while len(waiting) < TRAINING_BATCH:
            waiting += rng.sample(list(rows), len(rows))
        yield waiting[:TRAINING_BATCH]
        del waiting[:TRAINING_BATCH]


def _loss(model: Any, batch: Sequence[_Row]) -> torch.Tensor:
    """Mean cross entropy over the tokens to be learned."""
    width = max(len(row.tokens) for row in batch)
    device = model.device
    tokens = torch.tensor([row.tokens + [0] * (width - len(row.tokens)) for row in batch], device=device)
    seen = torch.tensor([[1] * len(row.tokens) + [0] * (width - len(row.tokens)) for row in batch], device=device)
    learned = [
        [_IGNORED] * row.start + row.tokens[row.start :] + [_IGNORED] * (width - len(row.tokens)) for row in batch
    ]
    targets = torch.tensor(learned, device=device)
    logits = model(input_ids=tokens, attention_mask=seen, use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=_IGNORED
    )
