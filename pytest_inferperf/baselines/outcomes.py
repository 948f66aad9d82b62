"""Per-sample outcomes as text: one bit each where all are 0 or 1, else little-endian floats, in base64.

Log-probabilities of choices are a matrix of float16, a row per document; a row with fewer choices ends in -infinity.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pytest_inferperf.errors import BaselineError, InferperfError

__all__ = ["as_stored", "decode", "decode_bits", "decode_logprobs", "encode", "encode_bits", "encode_logprobs"]

_FLOATS = {"float16": ("e", 2), "float64": ("d", 8)}
"""Encoding to `struct` code and bytes per value."""


def encode(values: Sequence[float], *, floats: Literal["float16", "float64"] = "float16") -> dict[str, Any]:
    """Encode outcomes, as bits where all are 0 or 1, else as `floats`.

    float64 holds whatever was measured. float16 raises `BaselineError` for what it cannot hold: NaN, infinity, large
    values.
    """
    if all(value in (0.0, 1.0) for value in values):
        return encode_bits([value == 1.0 for value in values])
    code, _ = _FLOATS[floats]
    for number, value in enumerate(values if floats == "float16" else ()):
        if not math.isfinite(value):
            raise BaselineError(f"outcome {number} is {value}: only finite outcomes can be stored.")
        try:
            struct.pack(f"<{code}", value)
        except OverflowError:
            raise BaselineError(
                f"outcome {number} is {value!r}: float16 holds values up to 65504; scale the metric down."
            ) from None
    packed = struct.pack(f"<{len(values)}{code}", *values)
    return {"encoding": floats, "count": len(values), "data": base64.b64encode(packed).decode("ascii")}


def encode_bits(values: Sequence[bool]) -> dict[str, Any]:
    """Encode flags, eight per byte, the first in the highest bit."""
    packed = bytearray((len(values) + 7) // 8)
    for number, value in enumerate(values):
        if value:
            packed[number // 8] |= 0x80 >> number % 8
    return {"encoding": "bits", "count": len(values), "data": base64.b64encode(packed).decode("ascii")}


def decode(
    stored: Mapping[str, Any], *, where: str = "outcomes", error: type[InferperfError] = BaselineError
) -> tuple[float, ...]:
    """Decode what `encode` made. Raises `error`, which starts with `where`, for damaged data."""
    encoding, count, data = _unpack(stored, where=where, error=error)
    if encoding == "bits":
        return tuple(1.0 if flag else 0.0 for flag in _flags(count, data, where=where, error=error))
    code, size = _FLOATS[encoding]
    if len(data) != count * size:
        raise error(f"{where}: {count} {encoding} values take {count * size} bytes, but the data has {len(data)}.")
    values: tuple[float, ...] = struct.unpack(f"<{count}{code}", data)
    for number, value in enumerate(values):
        if encoding == "float16" and not math.isfinite(value):
            raise error(f"{where}: outcome {number} is {value}: only finite outcomes can be stored.")
    return values


def decode_bits(
    stored: Mapping[str, Any], *, where: str = "unparseable", error: type[InferperfError] = BaselineError
) -> tuple[bool, ...]:
    """Decode what `encode_bits` made. Raises `error` for any other encoding and for damaged data."""
    encoding, count, data = _unpack(stored, where=where, error=error)
    if encoding != "bits":
        raise error(f"{where}: encoding {encoding!r} cannot hold flags. Encodings: bits.")
    return _flags(count, data, where=where, error=error)


def as_stored(values: Sequence[float]) -> tuple[float, ...]:
    """Return the outcomes as a baseline file would give them back: rounded to float16 unless all are 0 or 1."""
    return decode(encode(values))


def encode_logprobs(values: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """Encode document numbers (32 bits, unsigned) and the log-probabilities of each document's choices (float16).

    What float16 cannot hold is cut to its smallest value: a probability of 0 for any purpose.
    """
    width = max((len(row) for row in values.values()), default=0)
    cells = [
        max(-65504.0, row[column]) if column < len(row) else -math.inf
        for row in values.values()
        for column in range(width)
    ]
    return {
        "choices": width,
        "count": len(values),
        "documents": base64.b64encode(struct.pack(f"<{len(values)}I", *values)).decode("ascii"),
        "data": base64.b64encode(struct.pack(f"<{len(cells)}e", *cells)).decode("ascii"),
    }


def decode_logprobs(
    stored: Mapping[str, Any], *, where: str = "logprobs", error: type[InferperfError] = BaselineError
) -> dict[int, tuple[float, ...]]:
    """Decode what `encode_logprobs` made. Raises `error`, which starts with `where`, for damaged data."""
    width, count = stored["choices"], stored["count"]
    found = []
    for name, code, size in (("documents", "I", 4), ("data", "e", 2 * width)):
        try:
            packed = base64.b64decode(stored[name], validate=True)
        except (binascii.Error, ValueError) as problem:
            raise error(f"{where}: {name} is not base64: {problem}.") from None
        if len(packed) != count * size:
            raise error(f"{where}: {name} of {count} documents takes {count * size} bytes, but has {len(packed)}.")
        found.append(struct.unpack(f"<{count * size // struct.calcsize(code)}{code}", packed))
    documents, cells = found
    if any(math.isnan(cell) or cell > 0 for cell in cells):
        raise error(f"{where}: data holds a log-probability that is NaN or above 0.")
    rows = (cells[place * width : (place + 1) * width] for place in range(count))
    return {
        document: tuple(cell for cell in row if cell != -math.inf)
        for document, row in zip(documents, rows, strict=True)
    }


def _unpack(stored: Mapping[str, Any], *, where: str, error: type[InferperfError]) -> tuple[str, int, bytes]:
    encoding, count = stored["encoding"], stored["count"]
    if encoding != "bits" and encoding not in _FLOATS:
        raise error(f"{where}: unknown encoding {encoding!r}. Encodings: bits, {', '.join(_FLOATS)}.")
    try:
        data = base64.b64decode(stored["data"], validate=True)
    except (binascii.Error, ValueError) as problem:
        raise error(f"{where}: data is not base64: {problem}.") from None
    return encoding, count, data


def _flags(count: int, data: bytes, *, where: str, error: type[InferperfError]) -> tuple[bool, ...]:
    size = (count + 7) // 8
    if len(data) != size:
        raise error(f"{where}: {count} bits take {size} bytes, but the data has {len(data)}.")
    if count % 8 and data[-1] & (0xFF >> count % 8):
        # A set padding bit means that the count was edited, or that data and count belong to different runs.
        raise error(f"{where}: bits after the last of {count} outcomes are set; count and data do not belong together.")
    return tuple(bool(data[number // 8] & 0x80 >> number % 8) for number in range(count))
