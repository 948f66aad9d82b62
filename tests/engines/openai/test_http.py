"""HTTP/1.1 responses, however the network cuts them."""

from __future__ import annotations

import pytest

from pytest_inferperf.engines.openai.http import HttpError, ResponseReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = HEAD + b"5\r\nhello\r\n1;name=value\r\n \r\nA\r\n0\r\n\r\n67890\r\n0\r\n\r\n"
FIXED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\nX: a:b\r\n\r\nhello"
TRAILERS = HEAD + b"2\r\nhi\r\n0\r\nX-Time: 3\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n" + FIXED
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        (CHUNKED, 200, b"hello 0\r\n\r\n67890"),
        (FIXED, 503, b"hello"),
        (TRAILERS, 200, b"hi"),
        (CONTINUE, 503, b"hello"),
        (NOTHING, 204, b""),
        (HEAD + b"0\r\n\r\n", 200, b""),
    ],
)
def test_every_cut(data: bytes, status: int, body: bytes) -> None:
    for cut in range(1, len(data)):
        reader = ResponseReader()
        assert not reader.feed(data[:cut], 1.0)
        assert reader.begun or data[:cut] == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert reader.feed(data[cut:], 2.0)
        assert (reader.status, b"".join(reader.pieces)) == (status, body)
        assert len(reader.pieces) == len(reader.times)
        assert not reader.surplus
    reader = ResponseReader()
    done = [reader.feed(data[at : at + 1], float(at)) for at in range(len(data))]
    assert done == [False] * (len(data) - 1) + [True]
    assert b"".join(reader.pieces) == body


def test_each_piece_keeps_the_time_at_which_it_came() -> None:
    reader = ResponseReader()
    reader.feed(HEAD, 1.0)
    reader.feed(b"5\r\nhello\r\n", 2.0)
    reader.feed(b"5\r\nhe", 3.0)
    reader.feed(b"llo\r", 4.0)
    reader.feed(b"\n1\r\na\r\n1\r\nb\r\n", 5.0)
    assert reader.feed(b"0\r\n\r\n", 6.0)
    assert list(zip(reader.pieces, reader.times, strict=True)) == [
        (b"hello", 2.0),
        (b"he", 3.0),
        (b"llo", 4.0),
        (b"ab", 5.0),
    ]


def test_what_comes_after_the_end_is_kept_apart() -> None:
    for data in (CHUNKED, FIXED, TRAILERS, NOTHING):
        reader = ResponseReader()
        assert reader.feed(data + b"more", 1.0)
        assert reader.surplus == b"more"


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", True),
    ],
)
def test_whether_the_connection_stays(head: bytes, keep_alive: bool) -> None:
    reader = ResponseReader()
    assert reader.feed(head, 1.0)
    assert reader.keep_alive is keep_alive


def test_a_body_that_ends_with_the_connection() -> None:
    reader = ResponseReader()
    assert not reader.feed(b"HTTP/1.1 200 OK\r\n\r\nhel", 1.0)
    assert not reader.feed(b"lo", 2.0)
    assert reader.eof()
    assert not reader.keep_alive
    assert b"".join(reader.pieces) == b"hello"
    cut = ResponseReader()
    cut.feed(CHUNKED[:-5], 1.0)
    assert not cut.eof()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x16\x03\x01\x02\x00 TLS here", "not HTTP"),
        (b"HTTP/2 200\r\n\r\n", "not an HTTP/1.1 response"),
        (b"HTTP/1.1 OK\r\n\r\n", "not an HTTP/1.1 response"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "not a header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n", "content length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "transfer encoding"),
        (b"HTTP/" + b"x" * 70000, "does not end"),
        (HEAD + b"xyz\r\n", "not the size of a chunk"),
        (HEAD + b"-5\r\n", "not the size of a chunk"),
        (HEAD + b"0x5\r\n", "not the size of a chunk"),
        (HEAD + b"5\r\nhelloXX", "does not end where it says"),
        (HEAD + b"9" * 2000, "the size of a chunk does not end"),
    ],
)
def test_what_is_no_http(data: bytes, problem: str) -> None:
    with pytest.raises(HttpError, match=problem):
        ResponseReader().feed(data, 1.0)


@pytest.mark.parametrize("more", [b"5\r\nhelloXX", b"zz\r\nhello\r\n"])
def test_a_later_chunk_that_is_wrong(more: bytes) -> None:
    reader = ResponseReader()
    reader.feed(HEAD + b"5\r\nhello\r\n", 1.0)
    with pytest.raises(HttpError):
        reader.feed(more, 2.0)
    torn = ResponseReader()
    torn.feed(HEAD + b"5\r\nhello", 1.0)
    with pytest.raises(HttpError):
        torn.feed(b"XX", 2.0)
