"""The requests of a round in a result file: all of them, or a sample that says so."""

from __future__ import annotations

from pytest_inferperf.measure.load.kept_records import keep_records
from pytest_inferperf.measure.load.records import MEASURED, Records


def records(count: int) -> Records:
    found = Records()
    for number in range(count):
        found.add(kind=MEASURED, ok=True, intended=1.0 + number, sent=1.0 + number, done=2.0 + number, tokens=number)
    return found


def test_all_of_a_few() -> None:
    found = keep_records(records(5), most=5)
    assert found["of"] == 5
    assert list(Records.unpack(found["rows"]).tokens) == [0, 1, 2, 3, 4]


def test_some_of_many_in_their_order_and_always_the_same() -> None:
    found = keep_records(records(100), most=10)
    tokens = list(Records.unpack(found["rows"]).tokens)
    assert (found["of"], found["rows"]["requests"], len(set(tokens))) == (100, 10, 10)
    assert tokens == sorted(tokens)
    assert found == keep_records(records(100), most=10)
