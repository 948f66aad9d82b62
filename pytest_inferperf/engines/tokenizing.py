"""The tokenizer of a checkpoint. Imports transformers, when one is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_inferperf.errors import CheckpointError

__all__ = ["Tokenizer"]


class Tokenizer:
    """Turns texts into token ids and back, as an `Engine` must."""

    def __init__(self, folder: Path) -> None:
        """Load it. Raises `CheckpointError` for a folder without one, or one that names no end of the sequence."""
        from transformers import AutoTokenizer

        try:
            self._inner: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # tokenizers raises plain exceptions
            raise CheckpointError(f"{folder}: no tokenizer ({type(error).__name__}: {error})") from error
        if self._inner.eos_token_id is None:
            raise CheckpointError(f"{folder}: the tokenizer names no end-of-sequence token")

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[tuple[int, ...]]:
        """See `Engine.encode`."""
        if not texts:
            return []
        found = self._inner(list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False)
        return [tuple(ids) for ids in found["input_ids"]]

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Turn token ids into text, spaces as the model wrote them."""
        return str(
            self._inner.decode(
                list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def __len__(self) -> int:
        """Return how many ids it knows."""
        return len(self._inner)

    @property
    def eos_token_id(self) -> int:
        """The end-of-sequence token."""
        return int(self._inner.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The beginning-of-sequence token, else the end."""
        bos = self._inner.bos_token_id
        return self.eos_token_id if bos is None else int(bos)

    def special_token_ids(self, vocab_size: int) -> frozenset[int]:
        """Return the ids that a synthetic prompt must not contain: special ones, and those the tokenizer does not know."""
        unused = range(len(self), vocab_size)
        return frozenset({*map(int, self._inner.all_special_ids), *unused})
