"""Loads the documents of the test tasks from the JSONL files beside this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets


def load(file: str, **_: Any) -> datasets.DatasetDict:
    """Read `file` into memory, as the `test` split."""
    text = (Path(__file__).resolve().parent / file).read_text(encoding="utf-8")
    return datasets.DatasetDict({"test": datasets.Dataset.from_list([json.loads(line) for line in text.splitlines()])})


def mean_right(doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """Average over the samples of one question, as AIME over k samples does."""
    (samples,) = results
    return {"exact_match": sum(text.startswith(doc["answer"]) for text in samples) / len(samples)}


def all_or_nothing(values: list[float]) -> float:
    """Aggregate all 48 documents, or one, and no other part of them."""
    if 1 < len(values) < 48:
        raise ValueError("too few documents")
    return sum(values) / len(values)


def as_acc(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score generated text under the name that multiple choice has."""
    return {"acc": float(results[0].startswith(doc["answer"]))}
