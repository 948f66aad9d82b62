"""Per-sample outcomes survive encoding, and damaged ones are refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from pytest_inferperf.baselines.outcomes import (
    as_stored,
    decode,
    decode_bits,
    decode_logprobs,
    encode,
    encode_bits,
    encode_logprobs,
)
from pytest_inferperf.errors import BaselineError


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_bits_round_trip(count: int) -> None:
    values = tuple(float(number % 3 == 0) for number in range(count))
    stored = encode(values)
    assert stored["encoding"] == "bits"
    assert decode(stored) == values
    flags = tuple(value == 1.0 for value in values)
    assert decode_bits(encode_bits(flags)) == flags


def test_bits_are_small_and_readable() -> None:
    assert encode((1, 0, 0, 0, 0, 0, 0, 0, 1)) == {"encoding": "bits", "count": 9, "data": "gIA="}
    assert len(encode((1.0,) * 14_042)["data"]) < 3000


def test_float16_round_trip() -> None:
    values = (0.5, -350.25, 12.3, 65504.0)
    stored = encode(values)
    assert (stored["encoding"], stored["count"]) == ("float16", 4)
    found = decode(stored)
    assert found == pytest.approx(values, rel=1e-3)
    assert found == as_stored(values)
    assert decode(encode(found)) == found


def test_float64_is_exact_and_holds_anything() -> None:
    values = (0.1, -1e300, math.inf)
    assert decode(encode(values, floats="float64")) == values


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "outcome 1 is nan: only finite outcomes can be stored."),
        (-math.inf, "outcome 1 is -inf: only finite outcomes can be stored."),
        (70000.0, "outcome 1 is 70000.0: float16 holds values up to 65504; scale the metric down."),
    ],
)
def test_float16_refuses_what_it_cannot_hold(value: float, message: str) -> None:
    with pytest.raises(BaselineError, match=f"^{re.escape(message)}$"):
        encode((0.5, value))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"encoding": "bits", "count": 9, "data": "gA=="}, "outcomes: 9 bits take 2 bytes, but the data has 1."),
        (
            {"encoding": "bits", "count": 3, "data": "/w=="},
            "outcomes: bits after the last of 3 outcomes are set; count and data do not belong together.",
        ),
        (
            {"encoding": "float16", "count": 2, "data": "AAA="},
            "outcomes: 2 float16 values take 4 bytes, but the data has 2.",
        ),
        (
            {"encoding": "float16", "count": 1, "data": "AHw="},
            "outcomes: outcome 0 is inf: only finite outcomes can be stored.",
        ),
        (
            {"encoding": "hex", "count": 1, "data": ""},
            "outcomes: unknown encoding 'hex'. Encodings: bits, float16, float64.",
        ),
        ({"encoding": "bits", "count": 1, "data": "ä"}, "outcomes: data is not base64: "),
    ],
)
def test_damaged_data(stored: dict[str, Any], message: str) -> None:
    with pytest.raises(BaselineError) as caught:
        decode(stored)
    assert str(caught.value).startswith(message)


def test_flags_are_bits() -> None:
    with pytest.raises(BaselineError, match=r"^unparseable: encoding 'float16' cannot hold flags\. Encodings: bits\.$"):
        decode_bits(encode((0.5,)))


def test_logprobs_round_trip() -> None:
    values = {7: (-0.5, -1.25, -2.0), 3: (-0.25, -3.0), 70_000: (0.0,)}
    stored = encode_logprobs(values)
    assert (stored["choices"], stored["count"]) == (3, 3)
    found = decode_logprobs(stored)
    assert found == values
    assert list(found) == [7, 3, 70_000], "in the order of asking"
    assert decode_logprobs(encode_logprobs({})) == {}
    assert decode_logprobs(encode_logprobs({0: (-1e9, -0.0)})) == {0: (-65504.0, 0.0)}


def test_logprobs_are_small() -> None:
    stored = encode_logprobs(dict.fromkeys(range(256), (-0.5,) * 4))
    assert len(stored["data"]) + len(stored["documents"]) < 4200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "ä"}, "logprobs: data is not base64: "),
        ({"documents": "AAAA"}, "logprobs: documents of 2 documents takes 8 bytes, but has 3."),
        ({"count": 3}, "logprobs: documents of 3 documents takes 12 bytes, but has 8."),
        ({"choices": 3}, "logprobs: data of 2 documents takes 12 bytes, but has 8."),
        ({"data": "AH4AvgC+AL4="}, "logprobs: data holds a log-probability that is NaN or above 0."),
        ({"data": "ADwAvgC+AL4="}, "logprobs: data holds a log-probability that is NaN or above 0."),
    ],
)
def test_damaged_logprobs(changes: dict[str, Any], message: str) -> None:
    stored = encode_logprobs({0: (-1.5, -1.5), 1: (-1.5, -1.5)}) | changes
    with pytest.raises(BaselineError) as caught:
        decode_logprobs(stored)
    assert str(caught.value).startswith(message)
