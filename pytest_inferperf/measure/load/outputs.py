"""Some of the answers of a load, kept while it runs: what they say is looked at afterwards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_inferperf.engines.openai.sse import Decoded

__all__ = ["Output", "OutputSample", "drawn"]


@dataclass(frozen=True, kw_only=True)
class Output:
    """One streamed answer that was given under load."""

    body: bytes
    """Of the request."""

    text: str
    """Reasoning included."""

    first: str
    """Text of the first chunk that carried a token."""

    tokens: int
    """As they were counted."""

    finish_reason: str
    """As the server says; "" where it says nothing."""


class OutputSample:
    """Keeps `size` of the answers that it is offered, each with the same chance, however many there are."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._random = random.Random("outputs")
        self._kept: list[Output] = []
        self._offered = 0

    def offer(self, request: bytes, found: Decoded) -> None:
        """Take the answer to a request, given with its head."""
        place = len(self._kept) if self._offered < self._size else self._random.randrange(self._offered + 1)
        self._offered += 1
        if place >= self._size:
            return
        output = Output(
            body=request.partition(b"\r\n\r\n")[2],
            text=found.reasoning + found.text,
            first=found.first,
            tokens=found.num_tokens,
            finish_reason=found.finish_reason,
        )
        self._kept[place : place + 1] = [output]

    @property
    def kept(self) -> tuple[Output, ...]:
        """What was kept."""
        return tuple(self._kept)


def drawn(outputs: Sequence[Output], size: int) -> tuple[Output, ...]:
    """Return `size` of the answers that several processes kept, drawn by chance."""
    return tuple(outputs) if len(outputs) <= size else tuple(random.Random("outputs").sample(outputs, size))
