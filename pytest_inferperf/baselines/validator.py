"""The validator of the schemas of files, fast where a file is right: a file of 10,000 entries has millions of values.

`jsonschema` makes a validator for each value that it looks at. Here a plain test looks first, and `jsonschema` gets, to
explain it, only what the test does not take; so no test may take what its schema does not.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

__all__ = ["SchemaName", "schema", "validator"]

SchemaName = Literal["performance", "accuracy", "result", "cases"]

_Test = Callable[[Any], bool]

_TYPES: dict[str, _Test] = {
    "array": lambda value: type(value) is list,
    "boolean": lambda value: type(value) is bool,
    "integer": lambda value: type(value) is int,
    "null": lambda value: value is None,
    "number": lambda value: type(value) is float or type(value) is int,
    "object": lambda value: type(value) is dict,
    "string": lambda value: type(value) is str,
}
_BOUNDS = {"minimum": operator.ge, "exclusiveMinimum": operator.gt, "exclusiveMaximum": operator.lt}
_SIZES = {"minLength": str, "minItems": list, "minProperties": dict}
_KNOWN = {
    "type", "enum", "pattern", "description", "items", "properties", "required", "additionalProperties", *_BOUNDS, *_SIZES,
}  # fmt: skip
"""Keywords that a test can stand for; a schema with any other is left to `jsonschema`."""


@functools.cache
def schema(name: SchemaName) -> dict[str, Any]:
    """Return one of the schemas shipped with the package."""
    folder = resources.files("pytest_inferperf.baselines").joinpath("schema")
    text = folder.joinpath(f"{name}.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@functools.cache
def validator(name: SchemaName) -> Validator:
    """Return the validator of one of the schemas: it finds what `jsonschema` finds."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    known = Draft202012Validator.VALIDATORS
    tests = _Tests()

    def properties(
        validator: Validator, parts: Mapping[str, Any], data: Any, schema: Mapping[str, Any]
    ) -> Iterator[Any]:
        if isinstance(data, dict):
            parts = {key: part for key, part in parts.items() if key in data and not tests.take(part, data[key])}
        yield from known["properties"](validator, parts, data, schema)

    def items(validator: Validator, part: Any, data: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
        if not (isinstance(data, list) and all(tests.take(part, item) for item in data)):
            yield from known["items"](validator, part, data, schema)

    def additional(validator: Validator, part: Any, data: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
        named = schema.get("properties", {})
        if not (
            isinstance(part, dict)
            and isinstance(data, dict)
            and all(tests.take(part, item) for key, item in data.items() if key not in named)
        ):
            yield from known["additionalProperties"](validator, part, data, schema)

    # What patternProperties and prefixItems would leave out is looked at here; the schemas have neither.
    keywords = {"properties": properties, "items": items, "additionalProperties": additional}
    found: Validator = extend(Draft202012Validator, keywords)(_inlined(schema(name)))  # type: ignore[no-untyped-call]
    return found


class _Tests:
    """Tests of the parts of one schema, made once each."""

    def __init__(self) -> None:
        self._made: dict[int, _Test | None] = {}

    def take(self, part: Any, value: Any) -> bool:
        """Whether a part of the schema surely takes a value."""
        # By identity: the parts live as long as the validator that holds them and this.
        key = id(part)
        if key not in self._made:
            self._made[key] = _test(part)
        test = self._made[key]
        return test is not None and test(value)


def _test(part: Any) -> _Test | None:
    """Return a test that takes only what a schema takes; None where there is none."""
    if not isinstance(part, dict) or not part.keys() <= _KNOWN:
        return None
    tests: list[_Test] = []
    if "type" in part:
        names = [part["type"]] if isinstance(part["type"], str) else part["type"]
        tests.append(_any([_TYPES[name] for name in names]))
    if "enum" in part:
        # Of numbers, JSON and Python do not think alike: 1 is True.
        words = frozenset(value for value in part["enum"] if isinstance(value, str))
        tests.append(lambda value: (type(value) is str and value in words) or (value is None and None in part["enum"]))
    if "pattern" in part:
        search = re.compile(part["pattern"]).search
        tests.append(lambda value: type(value) is not str or search(value) is not None)
    for keyword in part.keys() & _BOUNDS.keys():
        tests.append(_bounded(_BOUNDS[keyword], part[keyword]))
    for keyword in part.keys() & _SIZES.keys():
        tests.append(_sized(_SIZES[keyword], part[keyword]))
    inner = [_listed(part["items"])] if "items" in part else []
    if part.keys() & {"properties", "required", "additionalProperties"}:
        inner.append(_mapped(part))
    if None in inner:
        return None
    return _all([*tests, *(test for test in inner if test is not None)])


def _any(tests: list[_Test]) -> _Test:
    return tests[0] if len(tests) == 1 else lambda value: any(test(value) for test in tests)


def _all(tests: list[_Test]) -> _Test:
    return tests[0] if len(tests) == 1 else lambda value: all(test(value) for test in tests)


def _bounded(compare: Callable[[Any, Any], bool], limit: float) -> _Test:
    return lambda value: type(value) not in (int, float) or compare(value, limit)


def _sized(kind: type[Any], least: int) -> _Test:
    return lambda value: type(value) is not kind or len(value) >= least


def _listed(part: Any) -> _Test | None:
    test = _test(part)
    return None if test is None else lambda value: type(value) is not list or all(map(test, value))


def _mapped(part: Mapping[str, Any]) -> _Test | None:
    named = {name: _test(inner) for name, inner in part.get("properties", {}).items()}
    others = part.get("additionalProperties", True)
    other = None if isinstance(others, bool) else _test(others)
    required = frozenset(part.get("required", ()))
    if None in named.values() or (other is None and not isinstance(others, bool)):
        return None

    def takes(name: str, value: Any) -> bool:
        test = named.get(name, other)
        return test(value) if test is not None else others is True

    return lambda value: (
        type(value) is not dict or (required <= value.keys() and all(takes(name, item) for name, item in value.items()))
    )


def _inlined(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Put what a reference names in its place: looking it up for each value takes longer than most values do."""
    made: dict[str, Any] = {}

    def walk(part: Any) -> Any:
        if isinstance(part, list):
            return [walk(item) for item in part]
        if not isinstance(part, dict):
            return part
        if part.keys() == {"$ref"}:
            name = part["$ref"].removeprefix("#/$defs/")
            if name not in made:
                made[name] = walk(whole["$defs"][name])
            return made[name]
        return {key: walk(item) for key, item in part.items()}

    return {key: walk(item) for key, item in whole.items()}
