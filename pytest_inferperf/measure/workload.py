"""Synthetic prompts at exact token counts."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pytest_inferperf.engines.interface import Engine, GenerationRequest
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.measure.recorded.requests import dataset_requests
from pytest_inferperf.measure.recorded.traces import draw_trace, trace_of
from pytest_inferperf.model.case import Workload

__all__ = ["draw_requests", "make_requests", "vocabulary_of"]


def make_requests(engine: Engine, workload: Workload, *, round_index: int) -> list[GenerationRequest]:
    """Build one round of requests: `isl` random token ids each, `osl` tokens out, or as many as are drawn for each.

    A workload with a data set takes its prompts from there: see `dataset_requests`.

    Every load, round and request has its own prompt, so that no prefix cache can answer more than the share that the workload
    wants shared; the same seed gives the same prompts. Raises `InvalidRun` when a request does not fit the engine's context.
    """
    if workload.dataset:
        return dataset_requests(engine, workload, round_index=round_index)
    return draw_requests(vocabulary_of(engine, workload), workload, round_index=round_index)


def vocabulary_of(engine: Engine, workload: Workload) -> list[int]:
    """Return the tokens a prompt may hold. Raises `InvalidRun` when a request does not fit the engine's context."""
    if workload.dataset:
        # What it holds is checked request by request, by the engine that gets it.
        return []
    isl, osl = _longest(workload)
    if isl + osl > engine.info.max_model_len:
        raise InvalidRun(
            f"isl {isl} + osl {osl} tokens do not fit the engine's context of {engine.info.max_model_len} tokens."
        )
    special = engine.special_token_ids
    return [token for token in range(engine.vocab_size) if token not in special]


def _longest(workload: Workload) -> tuple[int, int]:
    if workload.trace:
        rows = trace_of(workload).rows[: workload.requests_per_round]
        longest = max(rows, key=lambda row: row.isl + row.osl)
        return longest.isl, longest.osl
    return workload.input_lengths.largest, workload.output_lengths.largest


def draw_requests(vocabulary: Sequence[int], workload: Workload, *, round_index: int) -> list[GenerationRequest]:
    """Draw the prompts of one round from a vocabulary; see `make_requests`."""
    if workload.trace:
        return draw_trace(vocabulary, workload, round_index=round_index)
    # Text seeds: the same in every process, unlike hash(). Of all that tells workloads apart: one server sees several.
    generator = random.Random(f"{sorted(workload.identity().items())}/{round_index}")
    lengths, outputs = workload.input_lengths, workload.output_lengths
    # Of the workload, not of the round: what is shared is shared by all rounds, and in a cache from the second on.
    longest = workload.shared_tokens(lengths.largest)
    common = random.Random(f"{workload.seed}/prefix").choices(vocabulary, k=longest)

    def request() -> GenerationRequest:
        isl = lengths.draw(generator)
        shared = workload.shared_tokens(isl)
        own = generator.choices(vocabulary, k=isl - shared)
        return GenerationRequest(prompt=(*common[:shared], *own), max_tokens=outputs.draw(generator), ignore_eos=True)

    return [request() for _ in range(workload.requests_per_round)]
