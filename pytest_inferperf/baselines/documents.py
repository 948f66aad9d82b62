"""JSON text to checked data: strict parsing, then the schema, and one clear message for whatever is wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_inferperf.baselines.validator import SchemaName, validator
from pytest_inferperf.errors import InferperfError, choices

__all__ = ["SCHEMA_VERSION", "check_schema", "dump_json", "json_path", "parse_json"]

SCHEMA_VERSION = 1
"""The version of every file this package writes, and the only one it reads."""

_CONFLICT = re.compile(r"^(<{7}|={7}|>{7})(?: |$)", re.MULTILINE)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_MAX_NUMBER_LENGTH = 300
"""Digits of the longest integer that a float can hold, about."""


class _RejectedError(ValueError):
    """Raised by a hook of the JSON parser, which does not know where it is."""


def parse_json(raw: bytes, shown: str, *, error: type[InferperfError], cut_short: str, hint: str) -> Any:
    """Parse strict JSON: no NaN, no infinity, no duplicate keys.

    `cut_short` explains a text that ends too early, `hint` any other text that is not JSON; both end the message.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise error(f"{shown}: line {line}: not JSON: the bytes are not UTF-8. {hint}") from None
    if not text.strip():
        raise error(f"{shown}: the file is empty. {cut_short}")
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer
        )
    except json.JSONDecodeError as problem:
        message = _not_json(text, shown, problem, cut_short, hint)
    except RecursionError:
        message = f"{shown}: nested too deeply. {hint}"
    except _RejectedError as problem:
        message = f"{shown}: {_place(text, problem)}"
    raise error(message)


def dump_json(data: Mapping[str, Any]) -> str:
    """Write data the way every file is written: sorted keys, one value per line, a newline at the end.

    Raises `ValueError` for NaN and infinity.
    """
    text = json.dumps(data, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate, for instance from an undecodable file name: only escapes can carry it.
        text = json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"
    return text


def check_schema(data: Any, name: SchemaName, shown: str, *, error: type[InferperfError]) -> None:
    """Check data against a schema and raise `error` for the first thing that is wrong with it."""
    if isinstance(data, dict):
        version = data.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            # Before anything else: whatever a newer file holds is right in its own schema.
            raise error(
                f"{shown}: schema_version {version} is newer than {SCHEMA_VERSION}, the version this pytest-inferperf"
                " reads. Upgrade: pip install --upgrade pytest-inferperf"
            )
    problems = sorted(validator(name).iter_errors(data), key=_rank)
    if problems:
        first = problems[0]
        raise error(f"{shown}: {json_path(first.absolute_path)}: {_explain(first)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RejectedError("duplicate")
    return found


def _no_constant(name: str) -> float:
    raise _RejectedError(name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RejectedError(text)
    return value


def _integer(text: str) -> int:
    if len(text) > _MAX_NUMBER_LENGTH:
        raise _RejectedError(text)
    return int(text)


def _place(text: str, problem: _RejectedError) -> str:
    """Say where the rejected thing is. The parser's hooks do not know, so the tokens are read once more."""
    wanted = str(problem)
    open_objects: list[dict[str, int] | None] = []
    previous: tuple[str, int] = ("", 0)
    line, counted = 1, 0
    for match in _TOKEN.finditer(text):
        word = match.group()
        line, counted = line + text.count("\n", counted, match.start()), match.start()
        if word == wanted:
            short = word if len(word) <= 40 else f"{word[:40]}…"
            return f"line {line}: {short} is not a finite number. Numbers in this file are finite."
        if word in "{[":
            open_objects.append({} if word == "{" else None)
        elif word in "}]":
            open_objects.pop()
        elif word == ":":
            seen = open_objects[-1]
            key = json.loads(previous[0])
            if seen is not None and key in seen:
                if wanted == "duplicate":
                    return f"line {previous[1]}: duplicate key {key!r}, first on line {seen[key]}. Remove one of them."
            elif seen is not None:
                seen[key] = previous[1]
        previous = (word, line)
    return f"{wanted} is not valid."  # pragma: no cover - the parser and the tokens always agree


def _not_json(text: str, shown: str, problem: json.JSONDecodeError, cut_short: str, hint: str) -> str:
    conflict = _CONFLICT.search(text)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        return f"{shown}: line {line}: a merge conflict marker ({conflict.group(1)}). Resolve the conflict first."
    ended = problem.pos >= len(text.rstrip()) or problem.msg.startswith("Unterminated string")
    # A literal or number cut in two ("tru", "1.") fails before the end.
    ended = ended or re.fullmatch(r"[A-Za-z.+-]+", text[problem.pos :].rstrip()) is not None
    where = f"line {problem.lineno}, column {problem.colno}"
    return f"{shown}: {where}: not JSON: {problem.msg}. {cut_short if ended else hint}"


_RANKS = {"additionalProperties": 0, "required": 1, "type": 2, "enum": 3, "const": 3}
"""A mistyped key is also a missing key: the unknown one, with its nearest guess, says more."""


def _rank(problem: Any) -> tuple[int, list[str]]:
    return _RANKS.get(str(problem.validator), 4), [str(part) for part in problem.absolute_path]


def json_path(parts: Iterable[str | int]) -> str:
    """Write a place in JSON data: `$.entries["NVFP4-c1"].metrics`."""
    path = "$"
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if re.fullmatch(r"[A-Za-z_]\w*", part) else f"[{json.dumps(part, ensure_ascii=False)}]"
    return path


_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}


def _explain(problem: Any) -> str:
    """Say what one schema error means: the bad value, and what is valid."""
    rule, limit, value = problem.validator, problem.validator_value, problem.instance
    given = json.dumps(value, ensure_ascii=False)
    given = given if len(given) <= 60 else f"{given[:59]}…"
    if rule == "additionalProperties":
        known = problem.schema.get("properties", {})
        unknown = sorted(set(value) - set(known))
        return f"unknown key {unknown[0]!r}. {choices(unknown[0], known, what='Keys')}"
    if rule == "required":
        missing = sorted(set(limit) - set(value))
        return f"the key {missing[0]!r} is missing. Required keys: {', '.join(sorted(limit))}."
    if rule == "type":
        names = [limit] if isinstance(limit, str) else limit
        return f"{given} is not {' or '.join(_TYPES[name] for name in names)}."
    if rule == "enum":
        return f"{given} is not valid. {choices(value, [str(item) for item in limit], what='Valid values')}"
    if rule == "const":
        return f"{given} is not valid. Valid value: {json.dumps(limit)}."
    if rule in ("exclusiveMinimum", "exclusiveMaximum"):
        bounds = (("above", "exclusiveMinimum"), ("below", "exclusiveMaximum"))
        valid = " and ".join(f"{word} {problem.schema[name]}" for word, name in bounds if name in problem.schema)
        return f"{given} is not valid: it must be {valid}."
    if rule == "minimum":
        return f"{given} is below {limit}."
    if rule in ("minLength", "minItems", "minProperties"):
        return f"{given} is empty; at least {limit} is needed."
    return f"{given} is not valid: {problem.message}."
