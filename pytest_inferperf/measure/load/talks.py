"""Conversations: each turn is a request of its own, and carries all that was said before, the server's answers included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.openai.sse import Decoded

__all__ = ["Talk"]


class Talk:
    """A conversation under way: what was said, and what its user says next."""

    def __init__(
        self, request: GenerationRequest, write: Callable[[GenerationRequest], bytes], *, think_time_s: float = 0.0
    ) -> None:
        """Begin with a request; `write` makes the bodies of those that follow it, `think_time_s` after an answer."""
        self._said = list(request.messages)
        self._rest = list(request.follow_ups)
        self._write = write
        self.think_time_s = think_time_s
        self.first_tokens = 0
        """Prompt tokens of the first turn, as the server counts them."""

        self.known_tokens = 0
        """Prompt tokens of the later turns that earlier turns had sent or received: a prefix cache may know them."""

    @property
    def left(self) -> int:
        """How many turns are still to come."""
        return len(self._rest)

    def next(self, answer: Decoded) -> tuple[bytes, int]:
        """Return the body of the next turn, given the answer to the last one, and the tokens that it must get."""
        turn = self._rest.pop(0)
        self._said += [("assistant", answer.text), *turn.messages]
        self.known_tokens += (answer.prompt_tokens or 0) + answer.num_tokens
        return self._write(replace(turn, messages=tuple(self._said))), turn.max_tokens

    def end(self) -> int:
        """Say no more; return how many turns were still to come."""
        left, self._rest = len(self._rest), []
        return left
