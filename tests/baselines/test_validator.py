"""The fast validator finds what `jsonschema` finds: over every place of real files, and whatever may stand there."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from pytest_inferperf.baselines.result_file import ResultRecord, gate_from_json, record_to_json
from pytest_inferperf.baselines.validator import SchemaName, schema, validator
from pytest_inferperf.model.verdicts import GateVerdict, Status
from tests.baselines.test_schema import accuracy, performance

Make = Callable[..., ResultRecord]
WRONG: tuple[Any, ...] = (None, True, 0, 1, -1, 1.0, 10**400, "", "x", "uniform(1,2)", [], [0], {}, {"x": 1})


def described(problems: Any) -> list[tuple[str, str, str]]:
    return sorted((item.json_path, str(item.validator), item.message) for item in problems)


def places(data: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield place
    for key, item in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(item, (*place, key))


def changed(data: Any) -> Iterator[Any]:
    """Yield a file with each of its values replaced by each of `WRONG`, left out, and with a key too many."""
    for place in places(data):
        for value in WRONG:
            yield _put(data, place, value)
        if place:
            yield _put(data, place, None, leave_out=True)
            if isinstance(_at(data, place), dict):
                yield _put(data, (*place, "unknown"), 1)


def _at(data: Any, place: tuple[str | int, ...]) -> Any:
    for key in place:
        data = data[key]
    return data


def _put(data: Any, place: tuple[str | int, ...], value: Any, *, leave_out: bool = False) -> Any:
    if not place:
        return value
    whole = copy.deepcopy(data)
    inner = _at(whole, place[:-1])
    if leave_out:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return whole


@pytest.fixture
def files(speed: Make, answers: Make) -> dict[SchemaName, Any]:
    """A small file for each schema."""
    gates = (gate_from_json({"type": "performance", "metric": "ttft_ms.p99", "limit": None, "tolerance": 0.1}),)
    verdict = GateVerdict(gate="ttft_ms.p99", status=Status.FAIL, measured=2.0, notes=("uncalibrated",))
    records = [replace(speed({"ttft_ms.p99": 2.0}), gates=gates, verdicts=(verdict,)), answers((1.0, 0.0))]
    plain = json.loads(json.dumps([record_to_json(record) for record in records]))
    case = {"nodeid": "t.py::test", "case": plain[0]["result"]["case"], "gates": plain[0]["gates"]}
    return {
        "performance": performance(),
        "accuracy": accuracy(),
        "result": {"schema_version": 1, "created": "2026", "environment": {"torch": "2"}, "records": plain},
        "cases": {"schema_version": 1, "partial": "", "cases": [case]},
    }


@pytest.mark.parametrize("name", get_args(SchemaName))
def test_it_finds_what_jsonschema_finds(files: dict[SchemaName, Any], name: SchemaName) -> None:
    plain, fast = Draft202012Validator(schema(name)), validator(name)
    assert described(plain.iter_errors(files[name])) == described(fast.iter_errors(files[name])) == []
    wrong = 0
    # Of a result file, which has hundreds of places, a part: every kind of value at every seventh place or so.
    for item in itertools.islice(changed(files[name]), 0, None, 7 if name == "result" else 1):
        expected = described(plain.iter_errors(item))
        assert described(fast.iter_errors(item)) == expected, item
        wrong += bool(expected)
    assert wrong > 150


def test_right_values_are_not_left_to_jsonschema(files: dict[SchemaName, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand sessions cost as many validators as one does."""
    made: list[object] = []

    def count(data: Any) -> int:
        made.clear()
        assert list(validator("performance").iter_errors(data)) == []
        return len(made)

    kind = type(validator("performance"))
    evolve = kind.evolve

    def counted(self: Any, **changes: Any) -> Any:
        made.append(changes)
        return evolve(self, **changes)

    monkeypatch.setattr(kind, "evolve", counted)
    few, many = files["performance"], copy.deepcopy(files["performance"])
    (entry,) = many["entries"].values()
    entry["metrics"]["ttft_ms.p99"]["sessions"] *= 10_000
    entry["context"] = {str(number): "x" for number in range(1000)}
    assert count(few) > 0
    assert count(many) == count(few)
