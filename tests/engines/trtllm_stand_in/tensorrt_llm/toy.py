"""A language model that can be checked by hand: over the next token, a softmax of scores from the last token alone.

Under the fault `forgetful` it has another favourite after every eighth token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .behaviour import fault

VOCAB = 320


def favourite(last: int) -> int:
    return (last + 1 + (fault() == "forgetful" and last % 8 == 0)) % VOCAB


def score(last: int, token: int) -> float:
    """Return the score of `token` after `last`: highest for the favourite, then falling."""
    return -((token - favourite(last)) % VOCAB) / 8


def logprob(last: int, token: int) -> float:
    return score(last, token) - math.log(sum(math.exp(score(last, item)) for item in range(VOCAB)))


def rank(last: int, token: int) -> int:
    return 1 + (token - favourite(last)) % VOCAB


def greedy(prompt: Sequence[int]) -> int:
    return favourite(prompt[-1])
