"""Per-sample outcomes as text: one bit each where all are 0 or 1, else little-endian floats, in base64."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pytest_inferperf.errors import BaselineError, InferperfError

__all__ = ["as_stored", "decode", "decode_bits", "encode", "encode_bits"]

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
