"""A language model that can be checked by hand: over the next token, a softmax of scores from the last token alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

VOCAB = 320


def score(last: int, token: int) -> float:
    """Return the score of `token` after `last`: highest for `last + 1`, then falling."""
    return -((token - last - 1) % VOCAB) / 8


def logprob(last: int, token: int) -> float:
    return score(last, token) - math.log(sum(math.exp(score(last, item)) for item in range(VOCAB)))


def rank(last: int, token: int) -> int:
    return 1 + (token - last - 1) % VOCAB


def greedy(prompt: Sequence[int]) -> int:
    return (prompt[-1] + 1) % VOCAB
