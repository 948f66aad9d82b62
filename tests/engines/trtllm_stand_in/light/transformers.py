"""The one class of transformers that the backend needs, over `tokenizers` alone: the real one loads torch for seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers


class AutoTokenizer:
    def __init__(self, folder: Path) -> None:
        self._inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        words = json.loads((folder / "tokenizer_config.json").read_text())
        self.all_special_ids = [
            self._inner.token_to_id(words[name]) for name in ("bos_token", "eos_token", "pad_token")
        ]
        self.bos_token_id, self.eos_token_id, _ = self.all_special_ids

    @classmethod
    def from_pretrained(cls, folder: Path, *, trust_remote_code: bool) -> AutoTokenizer:
        assert not trust_remote_code
        return cls(Path(folder))

    def __len__(self) -> int:
        return int(self._inner.get_vocab_size())

    def __call__(self, texts: list[str], *, add_special_tokens: bool, return_attention_mask: bool) -> dict[str, Any]:
        assert not return_attention_mask
        found = self._inner.encode_batch(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [item.ids for item in found]}

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        return str(self._inner.decode(list(tokens), skip_special_tokens=skip_special_tokens))
