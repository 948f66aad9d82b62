"""One line or row per request, in a file: JSON Lines, or Parquet where pyarrow is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_inferperf.errors import MissingExtra, SettingsError
from pytest_inferperf.measure.load.records import Records

__all__ = ["check_records_path", "write_records"]

_KINDS = ("warmup", "measured", "filler")
_SUFFIXES = (".jsonl", ".parquet")
_ROWS = 16384
"""Rows that are made at once: the file may have millions."""


def check_records_path(path: Path) -> None:
    """Say before a run what would keep its records from being written.

    Raises `SettingsError` for another suffix or a folder that is not there, and `MissingExtra` for Parquet without
    pyarrow.
    """
    if path.suffix not in _SUFFIXES:
        raise SettingsError(f"--records {path}: name it {' or '.join(f'*{suffix}' for suffix in _SUFFIXES)}.")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: cannot be written: no such folder.")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra("a Parquet file of records", "records", "pyarrow")


def write_records(path: Path, records: Records) -> None:
    """Write every request, in the order of `Records.joined`. Raises `SettingsError` where the file cannot be written.

    `kind` is warmup, measured or filler; `request` is which of the measured ones, in the order of the plan, from 1, and all
    turns of a conversation have that of the first; `turn` is which turn of it, from 1; `due_s` and `sent_s` count from when the
    first request was due; a figure that a request does not have is null.
    """
    try:
        if path.suffix == ".parquet":
            _write_parquet(path, records)
        else:
            with path.open("w") as file:
                for table in _tables(records):
                    for row in zip(*table.values(), strict=True):
                        file.write(json.dumps(dict(zip(table, row, strict=True))) + "\n")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written: {error.strerror or error}.") from None


def _write_parquet(path: Path, records: Records) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number, count = pa.float64(), pa.int64()
    schema = pa.schema(
        {
            "kind": pa.string(),
            "request": count,
            "turn": count,
            "ok": pa.bool_(),
            "due_s": number,
            "sent_s": number,
            "ttft_ms": number,
            "tpot_ms": number,
            "e2e_latency_ms": number,
            "output_tokens": count,
            "first_chunk_tokens": count,
            "prompt_tokens": count,
        }
    )
    with pq.ParquetWriter(path, schema) as writer:
        for table in _tables(records):
            writer.write_table(pa.table(table, schema=schema))


def _tables(records: Records) -> Iterator[dict[str, list[Any]]]:
    """Yield the columns of the file, some rows at a time."""
    import numpy as np

    everything = records.columns()
    start = float(everything["intended"].min()) if len(records) else 0.0
    for first in range(0, len(records), _ROWS):
        column = {name: values[first : first + _ROWS] for name, values in everything.items()}
        ok, due = column["ok"], column["intended"]
        later = column["tokens"] - column["first_tokens"]
        tpot_ms = 1000 * (column["last"] - column["first"]) / np.maximum(later, 1)
        yield {
            "kind": [_KINDS[kind] for kind in column["kind"].tolist()],
            "request": _or_none(column["number"] + 1, column["number"] >= 0),
            "turn": _or_none(column["turn"], column["turn"] > 0),
            "ok": ok.tolist(),
            "due_s": (due - start).tolist(),
            "sent_s": _or_none(column["sent"] - start, column["sent"] > 0),
            "ttft_ms": _or_none(1000 * (column["first"] - due), ok),
            "tpot_ms": _or_none(tpot_ms, ok & (later > 0)),
            "e2e_latency_ms": _or_none(1000 * (column["last"] - due), ok),
            "output_tokens": column["tokens"].tolist(),
            "first_chunk_tokens": column["first_tokens"].tolist(),
            "prompt_tokens": _or_none(column["prompt_tokens"], column["prompt_tokens"] >= 0),
        }


def _or_none(values: Any, known: Any) -> list[Any]:
    return [value if there else None for value, there in zip(values.tolist(), known.tolist(), strict=True)]
