"""What a server with a prefix cache knows of a prompt: the blocks with which an earlier one began."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

__all__ = ["BLOCK", "PrefixCache"]

BLOCK = 16
"""Tokens that are kept together; what does not fill a block is not kept."""


class PrefixCache:
    """Remembers every block of every prompt, together with all that stands before it."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def look(self, prompt: Sequence[Hashable]) -> int:
        """Return how many tokens at the start of a prompt are known, and remember it."""
        found, chain, hit = 0, 0, True
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            chain = hash((chain, tuple(prompt[start : start + BLOCK])))
            hit = hit and chain in self._known
            found += BLOCK if hit else 0
            self._known.add(chain)
        return found
