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


def timed(reader: ResponseReader) -> list[tuple[int, float]]:
    """Every byte of the body, with the time at which it came: readers may cut the body elsewhere."""
    return [(byte, time_s) for piece, time_s in zip(reader.pieces, reader.times, strict=True) for byte in piece]


@pytest.mark.parametrize("data", BODIES.values(), ids=BODIES)
def test_every_two_cuts(data: bytes) -> None:
    for first, second in itertools.combinations(range(1, len(data)), 2):
        pieces = [data[:first], data[first:second], data[second:]]
        now, late = ResponseReader(), LateReader()
        for index, piece in enumerate(pieces):
            assert late.feed(piece, float(index)) == now.feed(piece, float(index)), (first, second)
        late.finish()
        assert (timed(late), late.status) == (timed(now), now.status)


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


CHUNKS = [b"5\r\nhello\r\n", b"a\r\n0123456789\r\n", b"5\r\nagain\r\n"]


@pytest.mark.parametrize(
    "arrivals",
    [
        pytest.param(CHUNKS, id="one each"),
        pytest.param([CHUNKS[0] + CHUNKS[1], CHUNKS[2]], id="two together"),
        pytest.param([b"3f\r\n%b\r\n" % (63 * b"x"), CHUNKS[0]], id="a size that was never seen"),
        pytest.param([b"5\r\nhel", b"lo\r\n" + CHUNKS[1], CHUNKS[2]], id="one torn"),
        pytest.param([b"9\r\na\r\n5\r\nbcd\r\n", CHUNKS[0]], id="one that looks like two"),
    ],
)
def test_arrivals_keep_their_times_however_they_are_read(arrivals: list[bytes]) -> None:
    now, late = ResponseReader(), LateReader()
    for reader in (now, late):
        reader.feed(HEAD, 0.0)
        for time_s, data in enumerate([*CHUNKS, *arrivals], 1):
            reader.feed(data, float(time_s))
        assert reader.feed(END, 9.0)
    late.finish()
    assert timed(late) == timed(now)


def test_chunks_that_came_together_are_read_apart() -> None:
    """What an event is does not depend on whether the client was late to look."""
    late = LateReader()
    late.feed(HEAD, 0.0)
    for time_s, data in enumerate((CHUNKS[0], CHUNKS[1] + CHUNKS[2], CHUNKS[0] + END), 1):
        late.feed(data, float(time_s))
    late.finish()
    assert list(zip(late.pieces, late.times, strict=True)) == [
        (b"hello", 1.0),
        (b"0123456789", 2.0),
        (b"again", 2.0),
        (b"hello", 3.0),
    ]


@pytest.mark.parametrize("wrong", [b"6\r\nhello\r\n", b"5\r\nhello!!", b"\r\nhello\r\n5\r\nhello\r\n"])
def test_a_wrong_chunk_among_right_ones_is_found(wrong: bytes) -> None:
    late = LateReader()
    late.feed(HEAD, 0.0)
    for data in (*CHUNKS, wrong, *CHUNKS, CHUNKS[0] + END):
        late.feed(data, 1.0)
    with pytest.raises(HttpError):
        late.finish()
