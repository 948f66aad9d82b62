"""Synthetic prompts at exact token counts."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pytest_inferperf.engines.interface import Engine, GenerationRequest
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.model.case import Workload

__all__ = ["draw_requests", "make_requests", "vocabulary_of"]


def make_requests(engine: Engine, workload: Workload, *, round_index: int) -> list[GenerationRequest]:
    """Build one round of requests: `isl` random token ids each, `osl` tokens out.

    Every round and request has its own prompt, so that no prefix cache can answer; the same seed gives the same
    prompts. Raises `InvalidRun` when a request does not fit the engine's context.
    """
    return draw_requests(vocabulary_of(engine, workload), workload, round_index=round_index)


def vocabulary_of(engine: Engine, workload: Workload) -> list[int]:
    """Return the tokens a prompt may hold. Raises `InvalidRun` when a request does not fit the engine's context."""
    if workload.isl + workload.osl > engine.info.max_model_len:
        raise InvalidRun(
            f"isl {workload.isl} + osl {workload.osl} tokens do not fit the engine's context of "
            f"{engine.info.max_model_len} tokens."
        )
    special = engine.special_token_ids
    return [token for token in range(engine.vocab_size) if token not in special]


def draw_requests(vocabulary: Sequence[int], workload: Workload, *, round_index: int) -> list[GenerationRequest]:
    """Draw the prompts of one round from a vocabulary; see `make_requests`."""
    # Text seeds: the same in every process, unlike hash().
    generator = random.Random(f"{workload.seed}/{round_index}")
    return [
        GenerationRequest(
            prompt=tuple(generator.choices(vocabulary, k=workload.isl)),
            max_tokens=workload.osl,
            ignore_eos=True,
        )
        for _ in range(workload.requests_per_round)
    ]
