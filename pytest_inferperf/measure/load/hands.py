"""What a process sends of a file: conversations that were dealt to it, whole, since each turn waits for the answer before it.

Conversation k goes to process k mod N, which keeps their order; so their requests are those of one process, and each of them
goes out once. A hand is a value that goes to another machine, and has no more of the file than its process sends.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.load.processes import Bodies
from pytest_inferperf.measure.load.talks import Talk, WrittenTurn
from pytest_inferperf.measure.recorded.requests import other_words

__all__ = ["Hand", "Played"]


@dataclass(frozen=True, kw_only=True)
class Hand:
    """Conversations, and how what is not measured is made of them."""

    conversations: tuple[tuple[WrittenTurn, ...], ...]
    """In the order in which they begin; a request that is no part of one is a conversation of one turn."""

    has_talks: bool = False
    """Whether the file has conversations of more turns than one, be they dealt to others."""

    think_time_s: float = 0.0
    spares: int = 0
    """Warm-up requests and fillers that are written before the clock starts."""

    spare_seed: str = ""
    """Of their words; "" where every request is measured."""

    def part(self, index: int, of: int) -> Hand:
        """Deal: return what one of several processes sends."""
        if of == 1:
            return self
        return replace(
            self,
            conversations=self.conversations[index::of],
            spares=-(-self.spares // of),
            # Two processes that have like conversations must not send the same.
            spare_seed=f"{self.spare_seed}/{index}/{of}" if self.spare_seed else "",
        )

    def open(self, endpoint: Endpoint) -> Bodies:
        """Return what the requests to an endpoint say. Raises `EngineError` for what no request says."""
        what = "messages" if endpoint.chat else "prompt"
        try:
            for turns in self.conversations:
                if not turns:
                    raise ValueError("a conversation without a turn")
                for turn in turns:
                    if not isinstance(json.loads(turn.body)[what], str | list):
                        raise ValueError(f"{what} of {turn.body[:40]!r}")
        except (LookupError, TypeError, ValueError) as error:
            raise EngineError(f"requests of a load that are none: {error!r}.") from None
        return Played(self).bodies()


class Played:
    """Writes the body of measured request i, counted without later turns; and all else that a process says."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        self._random = random.Random(hand.spare_seed)
        self._spares: list[tuple[bytes, tuple[int, int]]] = []
        if hand.spare_seed:
            self._write_spares(hand.spares)

    def bodies(self) -> Bodies:
        """Return what the requests of the process say."""
        return Bodies(
            make_body=self,
            sizes_of=self.sizes,
            make_spare=self.spare if self.hand.spare_seed else None,
            talk_of=self.talk if self.hand.has_talks else None,
        )

    def __call__(self, index: int) -> bytes:
        """Return the body of request `index`."""
        return self.hand.conversations[index][0].body

    def sizes(self, index: int) -> tuple[int, int]:
        """Return the tokens that it sends, -1 where only the server knows, and must get."""
        turn = self.hand.conversations[index][0]
        return turn.isl, turn.osl

    def talk(self, index: int) -> Talk:
        """Begin the conversation of request `index`."""
        return Talk(self.hand.conversations[index], think_time_s=self.hand.think_time_s)

    def spare(self, index: int) -> tuple[bytes, tuple[int, int]]:
        """Return a request that is not measured, with its sizes: a first turn in other words."""
        self._write_spares(index + 1)
        return self._spares[index]

    def _write_spares(self, count: int) -> None:
        known = self.hand.conversations
        while len(self._spares) < count:
            first = known[len(self._spares) % len(known)][0]
            self._spares.append((first.saying(other_words(first.messages, self._random)), (-1, first.osl)))
