"""Whether an engine answers under load as it answers alone, after MLPerf's TEST01: fast because wrong is not fast.

A random sample of the answers given in the measured rounds is asked for again at concurrency 1, when the clock no longer
runs. An honest engine does not agree with itself in every token: batches change the order of sums, and a greedy token
that was nearly a tie becomes another one, after which the texts differ. So what is compared is the part before the
first difference, as a share of what was asked for again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_inferperf.engines.interface import Engine, Generation, GenerationRequest
from pytest_inferperf.model.metrics import COMPARED_TOKENS
from pytest_inferperf.model.results import Round

__all__ = ["Agreement", "check_agreement", "common_prefix", "compare", "generations_alone"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How answers under load compare with those at concurrency 1. Shares from 0 to 1."""

    prefix: float
    """The part before the first difference, mean over the answers."""

    identical: float
    """Answers without a difference."""

    compared: int
    """How many answers."""


def common_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many elements two sequences have in common before they first differ."""
    shorter = min(len(one), len(other))
    return next((index for index in range(shorter) if one[index] != other[index]), shorter)


def compare(pairs: Sequence[tuple[Sequence[object], Sequence[object]]]) -> Agreement:
    """Compare answers under load with the same ones alone, tokens or characters: at least one pair, load first.

    An answer is as good as the part of the one alone that it begins with; it may go on after the end of that one.
    """
    shares = [
        common_prefix(loaded, alone) / len(alone) if len(alone) else float(not len(loaded)) for loaded, alone in pairs
    ]
    count = len(shares)
    return Agreement(prefix=sum(shares) / count, identical=sum(share == 1 for share in shares) / count, compared=count)


def generations_alone(engine: Engine, answers: Sequence[tuple[GenerationRequest, Generation]]) -> Agreement:
    """Ask an engine again, one request at a time, for some of what it answered: at least one answer."""
    requests = [replace(request, max_tokens=min(request.max_tokens, COMPARED_TOKENS)) for request, _ in answers]
    alone = engine.generate(requests, concurrency=1)
    return compare([_units(before, after) for (_, before), after in zip(answers, alone, strict=True)])


def _units(loaded: Generation, alone: Generation) -> tuple[Sequence[object], Sequence[object]]:
    # Where ids are not known, one below 0 stands for each.
    if min((*loaded.token_ids, *alone.token_ids), default=0) < 0:
        return loaded.text, alone.text.rstrip("\ufffd")
    return loaded.token_ids, alone.token_ids


def check_agreement(rounds: Sequence[Round], limits: Mapping[str, float]) -> str:
    """Say why the rounds of a session must not be judged by what they answered; "" where they can be.

    Reads stored figures alone: the same rounds and limits give the same answer, today or from a result file.
    """
    limit = limits["inferperf_min_agreement"]
    found = [item.metrics["output_agreement"] for item in rounds if "output_agreement" in item.metrics]
    if not found or min(found) >= limit:
        return ""
    return (
        f"the answers under load begin as those at concurrency 1 for {100 * min(found):.3g} % of their length in the mean, "
        f"where {100 * limit:.3g} % is the least: what was measured does not answer as the engine does. Look for requests "
        "that are mixed up, a damaged KV cache or sampling that is not greedy, or set inferperf_min_agreement in the ini "
        "file"
    )
