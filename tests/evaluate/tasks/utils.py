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
