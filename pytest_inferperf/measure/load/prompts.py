"""Synthetic prompts for an endpoint: exact numbers of token ids, no shared prefix, written in a few microseconds."""

from __future__ import annotations

import operator

from pytest_inferperf.engines.openai.chat import CHAT_WORDS
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import SettingsError

__all__ = ["SyntheticBodies"]

_DRAWN = 8192
"""Numbers that are drawn at once: one at a time they would cost more than all the rest of a request."""


class SyntheticBodies:
    """Writes the body of request i: `isl` random token ids, or for a chat endpoint `isl` random words.

    The same seed gives the same prompts, so a seed that a server has seen may be answered from its prefix cache. Ids
    leave out the first tenth of the vocabulary, where many tokenizers keep special tokens.
    Raises `SettingsError` for an ISL or a vocabulary that is too small.
    """

    def __init__(self, endpoint: Endpoint, *, isl: int, osl: int, seed: int, vocab_size: int = 32000) -> None:
        if isl < 1:
            raise SettingsError(f"isl {isl}: must be at least 1.")
        if vocab_size < 20:
            raise SettingsError(f"vocabulary of {vocab_size}: must be at least 20 tokens.")
        import numpy as np

        self._isl = isl
        self._random = np.random.default_rng(seed)
        self._drawn: list[list[int]] = []
        if endpoint.chat:
            self._units: tuple[str, ...] = CHAT_WORDS
            self._glue = " "
            head, tail = endpoint.body("\x00", osl=osl).split(b"\\u0000")
        else:
            self._units = tuple(map(str, range(vocab_size // 10, vocab_size)))
            self._glue = ","
            head, tail = endpoint.body([-1], osl=osl).split(b"-1")
        self._head, self._tail = head, tail

    def __call__(self, index: int) -> bytes:
        """Return the body of the next request; `index` is its number, which the order already gives."""
        if not self._drawn:
            shape = (max(1, _DRAWN // self._isl), self._isl)
            self._drawn = self._random.integers(len(self._units), size=shape).tolist()
        # One more, that is left out: for a single index `itemgetter` returns no tuple.
        prompt = self._glue.join(operator.itemgetter(*self._drawn.pop(), 0)(self._units)[:-1])
        return self._head + prompt.encode() + self._tail
