"""What a chat endpoint is sent: prompts of whole words, since it takes no token ids."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["CHAT_WORDS", "words_of"]

CHAT_WORDS = tuple(f"{a}{b}{c}{d}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdglmnrst" for d in "aeiou")
"""Stand for tokens where there is no tokenizer."""


def words_of(prompt: Sequence[int]) -> str:
    """Return a word for each token id: ids that differ by less than the number of words are different words."""
    return " ".join(CHAT_WORDS[token % len(CHAT_WORDS)] for token in prompt)
