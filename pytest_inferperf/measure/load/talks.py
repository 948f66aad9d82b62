"""Conversations: each turn is a request of its own, and carries all that was said before, the server's answers included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_inferperf.engines.interface import Message
from pytest_inferperf.engines.openai.chat import text_of
from pytest_inferperf.engines.openai.sse import Decoded

__all__ = ["Talk", "WrittenTurn", "said_before"]


@dataclass(frozen=True, kw_only=True)
class WrittenTurn:
    """One turn of a conversation, or a request that is no part of one, as it is sent where nothing was said before it."""

    body: bytes
    isl: int
    """Tokens that it sends; -1 where only the server knows."""

    osl: int
    """Tokens that it must get."""

    messages: tuple[Message, ...] = ()
    """What it says; none where its prompt is token ids."""

    def saying(self, messages: Sequence[Message]) -> bytes:
        """Return the body of a request that is as this one is, but says these messages."""
        asked = json.loads(self.body)
        if "messages" in asked:
            asked["messages"] = [{"role": role, "content": content} for role, content in messages]
        else:
            asked["prompt"] = text_of(messages)
        return json.dumps(asked, separators=(",", ":")).encode()


class Talk:
    """A conversation under way: what was said, and what its user says next."""

    def __init__(self, turns: Sequence[WrittenTurn], *, think_time_s: float = 0.0) -> None:
        """Begin with the first turn; each of the others follows an answer, `think_time_s` after it."""
        first, *self._rest = turns
        self._said = list(first.messages)
        self.think_time_s = think_time_s

    @property
    def left(self) -> int:
        """How many turns are still to come."""
        return len(self._rest)

    def next(self, answer: Decoded) -> tuple[bytes, int]:
        """Return the body of the next turn, given the answer to the last one, and the tokens that it must get."""
        turn = self._rest.pop(0)
        self._said += [("assistant", answer.text), *turn.messages]
        return turn.saying(self._said), turn.osl

    def end(self) -> int:
        """Say no more; return how many turns were still to come."""
        left, self._rest = len(self._rest), []
        return left


def said_before(answered: Mapping[str, Any]) -> int:
    """Return how many prompt tokens of later turns the turns before them had sent or received: a prefix cache may know them.

    `answered` are the rows (columns of `Records`) of all answered requests, in any order. What nobody went on from, since the
    turn after it failed, is in no prompt that counts.
    """
    import numpy as np

    turn = answered["turn"].astype(np.int64)
    place = answered["number"] * (turn.max(initial=0) + 2) + turn
    followed = np.isin(place + 1, place)
    said = np.maximum(answered["prompt_tokens"], 0) + answered["tokens"]
    return int(said[followed].sum())
