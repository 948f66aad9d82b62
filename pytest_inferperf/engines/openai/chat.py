"""What a chat endpoint is sent: prompts of whole words, since it takes no token ids; and chats as one text."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_inferperf.engines.interface import Message

__all__ = ["CHAT_WORDS", "text_of", "words_of"]

CHAT_WORDS = tuple(f"{a}{b}{c}{d}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdglmnrst" for d in "aeiou")
"""Stand for tokens where there is no tokenizer."""


def words_of(prompt: Sequence[int]) -> str:
    """Return a word for each token id: ids that differ by less than the number of words are different words."""
    return " ".join(CHAT_WORDS[token % len(CHAT_WORDS)] for token in prompt)


def text_of(messages: Sequence[Message]) -> str:
    """Return messages as one text, for an endpoint that knows none: their contents, a blank line between."""
    return "\n\n".join(content for _, content in messages)
