"""A reader that reads after the end finds what the one that reads at once finds, however the network cuts it."""

from __future__ import annotations

import itertools

import pytest

from pytest_inferperf.engines.openai.http import HttpError, ResponseReader
from pytest_inferperf.engines.openai.late import LateReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"12\r\ndata: {'a': 'bc'}\n\r\n"
END = b"0\r\n\r\n"
STREAM = HEAD + 4 * EVENT + END
BODIES = {
    "events": STREAM,
    "CRLF between events": HEAD + 2 * b"9\r\ndata: 1\r\n\r\n" + b"4\r\n\r\n\r\n\r\n" + END,
    "what looks like the end in a chunk": HEAD + b"A\r\nab\r\n0\r\n\r\nc\r\n" + END,
    "trailers and an extension": HEAD + b"2;x=y\r\nhi\r\n0\r\nX-Time: 3\r\n\r\n",
    "no chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "nothing": HEAD + END,
}


@pytest.mark.parametrize("data", BODIES.values(), ids=BODIES)
def test_every_two_cuts(data: bytes) -> None:
    for first, second in itertools.combinations(range(1, len(data)), 2):
        pieces = [data[:first], data[first:second], data[second:]]
        now, late = ResponseReader(), LateReader()
        for index, piece in enumerate(pieces):
            assert late.feed(piece, float(index)) == now.feed(piece, float(index)), (first, second)
        late.finish()
        assert (late.pieces, late.times, late.status) == (now.pieces, now.times, now.status)


def test_chunks_are_not_read_before_the_end() -> None:
    late = LateReader()
    late.feed(HEAD, 0.0)
    for time_s in (1.0, 2.0, 3.0):
        assert not late.feed(EVENT, time_s)
    assert not late.pieces
    late.catch_up()
    assert late.times == [1.0, 2.0, 3.0]
    assert late.feed(END, 4.0)


def test_bytes_that_are_no_chunks_are_found_after_the_end() -> None:
    late = LateReader()
    late.feed(HEAD, 0.0)
    assert not late.feed(b"zz\r\nhello\r\n", 1.0)
    assert late.feed(EVENT + END, 2.0)
    with pytest.raises(HttpError, match="not the size of a chunk"):
        late.finish()


def test_an_end_that_lies_in_a_chunk_is_found_out() -> None:
    late = LateReader()
    late.feed(HEAD, 0.0)
    assert not late.feed(b"ff\r\nhello", 1.0)
    assert late.feed(END, 2.0)
    with pytest.raises(HttpError, match="does not end where it says"):
        late.finish()


def test_a_connection_that_ends_early_is_no_complete_response() -> None:
    late = LateReader()
    late.feed(HEAD + EVENT, 0.0)
    late.feed(EVENT, 1.0)
    assert not late.eof()
    assert len(late.pieces) == 2
