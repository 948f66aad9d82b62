"""Read the texts that a build calibrates or trains with: JSON lines, checked one by one. Standard library only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.hiding import excerpt

__all__ = ["Text", "read_texts"]


@dataclass(frozen=True, kw_only=True)
class Text:
    """One line of a data set."""

    text: str
    prompt: str = ""
    """What stands before it, and is not itself to be learned."""


def read_texts(path: str, *, keyword: str, size: int | None = None) -> list[Text]:
    """Read the first `size` texts of a JSONL file, or all.

    Args:
        path: The file.
        keyword: What the inferperf mark calls it.
        size: How many are read; None for all.

    Raises `CheckpointError` naming the keyword, the file and the line.

    """
    texts: list[Text] = []
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if len(texts) == size:
                    break
                if line.strip():
                    texts.append(_text(f"{keyword} {path}, line {number}", line))
    except OSError as error:
        raise CheckpointError(f"{keyword} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{keyword} {path}: not UTF-8 text ({error})") from None
    if not texts:
        raise CheckpointError(f'{keyword} {path} holds no texts; write one {{"text": "…"}} per line')
    return texts


def _text(where: str, line: str) -> Text:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise CheckpointError(f"{where}: not JSON ({error})") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text:
        raise CheckpointError(f'{where}: needs a non-empty "text", got {excerpt(line.strip(), 80)!r}')
    prompt = record.get("prompt", "")
    if not isinstance(prompt, str):
        raise CheckpointError(f'{where}: "prompt" is text, got {excerpt(line.strip(), 80)!r}')
    return Text(text=text, prompt=prompt)
