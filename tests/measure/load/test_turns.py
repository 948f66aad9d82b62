"""Figures by turn: from rows to what a result says of each turn."""

from __future__ import annotations

import pytest

from pytest_inferperf.measure.load.records import FILLER, MEASURED, Records
from pytest_inferperf.measure.load.turns import turn_figures
from pytest_inferperf.report.turns import turn_lines


def rows(*turns: tuple[int, float | None, int], kind: int = MEASURED) -> Records:
    """Requests of (turn, TTFT in ms or None for a failure, prompt tokens)."""
    records = Records()
    for turn, ttft_ms, prompt in turns:
        first = 0.0 if ttft_ms is None else 1.0 + ttft_ms / 1000
        records.add(
            kind=kind,
            ok=ttft_ms is not None,
            intended=1.0,
            sent=1.0,
            first=first,
            done=2.0,
            prompt_tokens=prompt,
            turn=turn,
        )
    return records


def figures(records: Records) -> list[tuple[object, ...]]:
    columns = records.columns()
    found = turn_figures(columns, columns["prompt_tokens"].astype(float))
    return [(one.turn, one.requests, one.failed, one.input_tokens, one.ttft_ms_p50, one.ttft_ms_p99) for one in found]


def test_each_turn_has_its_own_figures() -> None:
    found = figures(rows((1, 10.0, 5), (1, 20.0, 7), (2, 100.0, 30), (2, 300.0, 50), (2, None, -1), (3, None, -1)))
    assert found == [
        (1, 2, 0, 6.0, pytest.approx(15.0), pytest.approx(19.9)),
        (2, 3, 1, 40.0, pytest.approx(200.0), pytest.approx(298.0)),
        (3, 1, 1, None, None, None),
    ]


@pytest.mark.parametrize("turns", [(), ((0, 10.0, 5),), ((1, 10.0, 5), (0, 20.0, 5))])
def test_without_a_second_turn_there_is_nothing_to_tell(turns: tuple[tuple[int, float, int], ...]) -> None:
    assert figures(rows(*turns)) == []


def test_lines_say_what_is_not_known() -> None:
    columns = rows((1, 10.0, 5), (2, None, -1)).columns()
    lines = turn_lines(turn_figures(columns, columns["prompt_tokens"].astype(float)))
    assert lines == [
        "turn 1     TTFT p50 10.00 ms, p99 10.00 ms; 5.000 input tokens in the mean; n 1",
        "turn 2     TTFT p50 -, p99 -; - in the mean; n 1, 1 failed",
        "",
    ]
    assert turn_lines(()) == []


def test_packed_rows_keep_their_turns_and_old_ones_have_none() -> None:
    records = rows((1, 10.0, 5), (2, 20.0, 9))
    assert list(Records.unpack(records.pack()).turn) == [1, 2]
    plain = rows((0, 10.0, 5), kind=FILLER).pack()
    assert not {"turn", "number"} & plain.keys()
    found = Records.unpack(plain)
    assert (list(found.turn), list(found.number)) == ([0], [-1])


def test_packed_turns_of_an_older_result_belong_to_nothing() -> None:
    packed = rows((1, 10.0, 5), (2, 20.0, 9)).pack()
    del packed["number"]
    found = Records.unpack(packed)
    assert (list(found.turn), list(found.number)) == ([1, 2], [-1, -1])
