"""Values of a load as JSON, field by field: what travels between the processes and the machines that send one.

Nothing that is read is ever run: a dataclass carries its name, and is built only where that name is expected, from the fields
that it has, each of its type. Columns of numbers are base64 of little-endian bytes, with their dtype.
"""

from __future__ import annotations

import base64
import json
import sys
import types
from array import array
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pytest_inferperf.hiding import excerpt
from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.records import Records, Sample

__all__ = ["dump", "load", "read", "write"]

_NAME = "is"
"""The key under which a value says what it is."""

_NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
"""JSON has no word for them."""


def write(value: object) -> bytes:
    """Turn a value into JSON. Raises `TypeError` for one that `load` could not build."""
    return json.dumps(dump(value), separators=(",", ":"), allow_nan=False).encode()


def read(kind: Any, data: bytes, name: str) -> Any:
    """Inverse of `write` for a value of this type. Raises `ValueError`, which says where under `name`, for anything else."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error}): {excerpt(data, 40)!r}") from None
    return load(kind, plain, name)


def dump(value: Any) -> Any:
    """Turn a value into plain data. Raises `TypeError` for one that `load` could not build."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        found = float(value)
        return found if found - found == 0 else str(found)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (tuple, list)):
        return [dump(item) for item in value]
    if isinstance(value, dict):
        return {_text(key): dump(item) for key, item in value.items()}
    if isinstance(value, array):
        return _dump_column(value)
    name = type(value).__name__
    if isinstance(value, Records):
        return {_NAME: name, **dump(vars(value))}
    if isinstance(value, Sample):
        ticks, counts, total_ms = value.state()
        return {_NAME: name, "ticks": dump(ticks), "counts": dump(counts), "total_ms": dump(total_ms)}
    if isinstance(value, ClockMeter):
        return {_NAME: name, **dump(value.state())}
    if is_dataclass(value) and not isinstance(value, type):
        return {_NAME: name, **{field.name: dump(getattr(value, field.name)) for field in fields(value)}}
    raise TypeError(f"{value!r}: {name} does not travel.")


def load(kind: Any, data: Any, name: str) -> Any:
    """Inverse of `dump` for a value of this type. Raises `ValueError`, which says where under `name`, for anything else."""
    if kind is object:
        return data
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return load(_meant(arguments, data, name), data, name)
    if origin is Literal and data in arguments:
        return data
    if kind is float and isinstance(data, str) and data in _NOT_FINITE:
        return _NOT_FINITE[data]
    if kind is float and type(data) in (int, float):
        return float(data)
    if kind in (int, str, bool, type(None)) and type(data) is kind:
        return data
    if kind is bytes and isinstance(data, str):
        return _load_bytes(data, name)
    if origin is tuple and isinstance(data, list):
        if arguments[-1] is ...:
            return tuple(load(arguments[0], item, f"{name}[{place}]") for place, item in enumerate(data))
        if len(data) == len(arguments):
            pairs = enumerate(zip(arguments, data, strict=True))
            return tuple(load(item_kind, item, f"{name}[{place}]") for place, (item_kind, item) in pairs)
    if origin is dict and isinstance(data, dict):
        return {key: load(arguments[1], item, f"{name}[{key!r}]") for key, item in data.items()}
    if isinstance(data, dict) and _named(kind) and data.get(_NAME) == kind.__name__:
        return _load_named(kind, {key: item for key, item in data.items() if key != _NAME}, name)
    raise ValueError(f"{name}: {excerpt(json.dumps(data), 60)} is no {getattr(kind, '__name__', kind)}")


def _named(kind: Any) -> bool:
    return is_dataclass(kind) or kind in (Records, Sample, ClockMeter)


def _meant(kinds: tuple[Any, ...], data: Any, name: str) -> Any:
    """Return which of several types a value is of."""
    if data is None and type(None) in kinds:
        return type(None)
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) == 1:
        return others[0]
    said = data.get(_NAME) if isinstance(data, dict) else None
    for kind in others:
        if kind.__name__ == said:
            return kind
    names = " or ".join(kind.__name__ for kind in others)
    raise ValueError(f"{name}: {excerpt(json.dumps(data), 60)} is no {names}")


def _load_named(kind: Any, data: Mapping[str, Any], name: str) -> Any:
    if kind is Records:
        return _load_records(data, name)
    if kind is Sample:
        return _load_sample(data, name)
    hints = _hints(kind)
    _expect(data, set(hints), name)
    values = {key: load(hint, data[key], f"{name}.{key}") for key, hint in hints.items()}
    return ClockMeter.of_state(**values) if kind is ClockMeter else kind(**values)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    if kind is ClockMeter:
        return {key: hint for key, hint in get_type_hints(ClockMeter.of_state).items() if key != "return"}
    found = get_type_hints(kind)
    return {field.name: found[field.name] for field in fields(kind)}


def _expect(data: Mapping[str, Any], names: set[str], name: str) -> None:
    if odd := sorted(names ^ set(data)):
        raise ValueError(f"{name}: {'lacks' if odd[0] in names else 'has no'} {odd[0]!r}")


def _load_records(data: Mapping[str, Any], name: str) -> Records:
    found = Records()
    _expect(data, set(vars(found)), name)
    for key, column in vars(found).items():
        column.extend(_load_column(data[key], column.typecode, f"{name}.{key}"))
        if len(column) != len(found.kind):
            raise ValueError(f"{name}.{key}: {len(column)} values for {len(found.kind)} requests")
    return found


def _load_sample(data: Mapping[str, Any], name: str) -> Sample:
    _expect(data, {"ticks", "counts", "total_ms"}, name)
    ticks, counts = (_load_column(data[key], "q", f"{name}.{key}") for key in ("ticks", "counts"))
    try:
        return Sample.of_state(ticks, counts, load(float, data["total_ms"], f"{name}.total_ms"))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _dump_column(column: array[Any]) -> dict[str, str]:
    found = array(column.typecode, column)
    if sys.byteorder == "big":
        found.byteswap()
    return {"dtype": _DTYPES[column.typecode], "data": base64.b64encode(found.tobytes()).decode()}


def _load_column(data: Any, typecode: str, name: str) -> array[Any]:
    dtype = _DTYPES[typecode]
    if not isinstance(data, dict) or set(data) != {"dtype", "data"} or data["dtype"] != dtype:
        raise ValueError(f"{name}: {excerpt(json.dumps(data), 60)} is no column of {dtype}")
    content = load(bytes, data["data"], name)
    found: array[Any] = array(typecode)
    try:
        found.frombytes(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if sys.byteorder == "big":
        found.byteswap()
    return found


def _load_bytes(data: str, name: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise ValueError(f"{name}: not base64 ({error})") from None


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{key!r}: only text can be a key.")
    return key


_DTYPES = {"b": "<i1", "h": "<i2", "i": "<i4", "q": "<i8", "d": "<f8"}
"""By the type code of an array."""
