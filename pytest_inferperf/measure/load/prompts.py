"""Synthetic prompts for an endpoint: exact numbers of token ids, no shared prefix, written in a few microseconds."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_inferperf.engines.openai.chat import CHAT_WORDS
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import SettingsError
from pytest_inferperf.measure.load.processes import Bodies

__all__ = ["Drawing", "SyntheticBodies"]

_DRAWN = 8192
"""Numbers that are drawn at once: one at a time they would cost more than all the rest of a request."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How prompts go on from here, for whoever draws them on another machine."""

    isl: int
    osl: int
    vocab_size: int
    state: int
    """Of numpy's PCG64 generator, as the next ones."""

    increment: int
    has_half: int
    half: int
    drawn: bytes
    """What was drawn, and is not sent yet."""


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

        self._isl, self._osl, self._seed, self._vocab_size = isl, osl, seed, vocab_size
        self._random = np.random.default_rng(seed)
        if endpoint.chat:
            units = [f"{word} " for word in CHAT_WORDS]
            head, tail = endpoint.body("\x00", osl=osl).split(b"\\u0000")
        else:
            # JSON takes spaces before a number: with units of one width a prompt is a slice.
            width = len(f"{vocab_size},")
            units = [f"{token},".rjust(width) for token in range(vocab_size // 10, vocab_size)]
            head, tail = endpoint.body([-1], osl=osl).split(b"-1")
        self._units = np.array([unit.encode() for unit in units])
        self._head, self._tail = head, tail
        self._drawn, self._at = b"", 0

    def slice(self, index: int, of: int) -> Bodies:
        """See `Texts.slice`: another seed for each process, and what this one writes next for a single one."""
        if of > 1:
            import numpy as np

            self._random = np.random.default_rng((self._seed, of, index))
            self._drawn, self._at = b"", 0
        return Bodies(make_body=self)

    def drawing(self) -> Drawing:
        """Return what `of_drawing` goes on from, with the same prompts as this one would write next."""
        state = self._random.bit_generator.state
        return Drawing(
            isl=self._isl,
            osl=self._osl,
            vocab_size=self._vocab_size,
            state=state["state"]["state"],
            increment=state["state"]["inc"],
            has_half=state["has_uint32"],
            half=state["uinteger"],
            drawn=self._drawn[self._at :],
        )

    @classmethod
    def of_drawing(cls, endpoint: Endpoint, drawing: Drawing) -> SyntheticBodies:
        """Inverse of `drawing`. Raises `ValueError`, or what `__init__` does, for what no drawing is."""
        found = cls(endpoint, isl=drawing.isl, osl=drawing.osl, seed=0, vocab_size=drawing.vocab_size)
        if len(drawing.drawn) % (drawing.isl * found._units.itemsize):
            raise ValueError(f"{len(drawing.drawn)} bytes are no whole prompts")
        found._random.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": drawing.state, "inc": drawing.increment},
            "has_uint32": drawing.has_half,
            "uinteger": drawing.half,
        }
        found._drawn = drawing.drawn
        return found

    def __call__(self, index: int) -> bytes:
        """Return the body of the next request; `index` is its number, which the order already gives."""
        if self._at == len(self._drawn):
            count = max(1, _DRAWN // self._isl) * self._isl
            drawn = self._units.take(self._random.integers(len(self._units), size=count))
            self._drawn, self._at = drawn.tobytes(), 0
        begin, self._at = self._at, self._at + self._isl * self._units.itemsize
        # Without the separator after the last one.
        return b"%b%b%b" % (self._head, self._drawn[begin : self._at - 1], self._tail)
