"""How long sockets may wait to be looked at."""

from __future__ import annotations

import pytest

from pytest_inferperf.measure.load.rest import Rest


def under_way(tokens: int = 64, *, since: float = 0.0) -> Rest:
    rest = Rest()
    rest.sent(since, tokens)
    return rest


def rested(duration_s: float, tokens: int) -> float:
    rest = under_way(tokens)
    rest.answered(duration_s, tokens)
    rest.looked(10.0, more=False)
    return rest.left(10.0)


@pytest.mark.parametrize(
    ("duration_s", "tokens", "expected"),
    [
        pytest.param(60.0, 64, 0.005, id="never more than 5 ms"),
        pytest.param(0.4, 64, 0.0008, id="a small share of the request"),
        pytest.param(1.0, 1000, 0.00025, id="less than the time between two tokens of a stream"),
        pytest.param(0.001, 1, 0.000002, id="nothing to speak of where the server answers at once"),
    ],
)
def test_length_follows_what_is_measured(duration_s: float, tokens: int, expected: float) -> None:
    assert rested(duration_s, tokens) == pytest.approx(expected)


def test_the_shortest_request_decides() -> None:
    rest = under_way(1)
    for duration_s in (2.0, 0.2, 4.0):
        rest.answered(duration_s, 1)
    rest.looked(10.0, more=False)
    assert rest.left(10.0) == pytest.approx(0.0004)
    assert rest.left(10.001) < 0


def test_before_any_answer_a_request_takes_as_long_as_the_first_is_under_way() -> None:
    rest = under_way(1000, since=10.0)
    rest.sent(10.5, 1)
    rest.looked(11.0, more=False)
    assert rest.left(11.0) == pytest.approx(0.00025)


def test_none_before_anything_was_sent() -> None:
    rest = Rest()
    rest.looked(10.0, more=False)
    assert rest.left(10.0) <= 0


def test_none_while_more_sockets_are_ready() -> None:
    rest = under_way()
    rest.answered(2.0, 64)
    rest.looked(10.0, more=False)
    rest.looked(10.0, more=True)
    assert rest.left(10.0) <= 0


def test_none_where_the_kernel_does_not_time_arrivals() -> None:
    """A look that is late would be taken for an answer that is late."""
    rest = under_way()
    rest.answered(2.0, 64)
    rest.untimed()
    rest.looked(10.0, more=False)
    assert rest.left(10.0) <= 0
