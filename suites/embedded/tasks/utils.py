"""Loads the documents of the embedded suite from the JSONL files next to this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

DATA = Path(__file__).resolve().parents[1] / "data"


def load(file: str, **_: Any) -> datasets.DatasetDict:
    """Read ``file`` of the suite's data folder into memory, as the ``test`` split.

    lm-eval passes ``dataset_kwargs`` and ``metadata`` of the task; only ``file`` is used.
    Neither the network nor a cache folder nor the current directory plays a part.
    """
    lines = (DATA / file).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
