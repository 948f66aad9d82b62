"""From events to tokens with times."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from pytest_inferperf.engines.openai.sse import Decoded, StreamError, decode_stream

DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text(*words: str, reason: str | None = None, **more: Any) -> bytes:
    return b"".join(event({"choices": [{"index": 0, "text": word, "finish_reason": reason, **more}]}) for word in words)


def delta(reason: str | None = None, **fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": reason}]})


def usage(tokens: int, prompt: int = 3, **more: Any) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens, **more}})


def decode(*pieces: bytes, **options: Any) -> Decoded:
    """Each piece arrives one second after the one before it, the first at 1."""
    return decode_stream(pieces, [float(at + 1) for at in range(len(pieces))], **options)


END = text("", reason="length")


def test_one_token_per_chunk() -> None:
    found = decode(text(" a"), text(" b"), text(" c"), END, usage(3, 7), DONE)
    assert found.times == [1.0, 2.0, 3.0]
    assert list(found.tokens) == [1, 1, 1]
    assert (found.text, found.finish_reason, found.source) == (" a b c", "length", "usage")
    assert (found.num_tokens, found.prompt_tokens, found.cached_tokens) == (3, 7, 0)


def test_four_tokens_per_chunk() -> None:
    found = decode(text(" a b c d"), text(" e f g h"), text(" i j"), END, usage(10), DONE)
    assert list(found.tokens) == [4, 4, 2]
    assert found.num_tokens == 10


def test_bursts_are_shared_by_length_of_text() -> None:
    found = decode(text(" word"), text(" word word word word word"), text(" word"), END, usage(7), DONE)
    assert list(found.tokens) == [1, 5, 1]


def test_token_ids_are_exact() -> None:
    burst = event({"choices": [{"index": 0, "text": " supercalifragilistic", "token_ids": [1]}]})
    short = event({"choices": [{"index": 0, "text": " a b c", "token_ids": [2, 3, 4]}]})
    found = decode(burst, short, END, usage(4), DONE)
    assert (list(found.tokens), found.source) == ([1, 3], "token_ids")


def test_a_role_only_first_chunk_carries_no_token() -> None:
    found = decode(delta(role="assistant", content=""), delta(content="x"), delta(content="y"), delta("stop"), usage(2))
    assert found.times == [2.0, 3.0]


def test_reasoning_tokens_are_tokens() -> None:
    found = decode(
        delta(role="assistant", content=None),
        delta(reasoning_content="hm"),
        delta(reasoning="mm"),
        delta(content="so"),
        delta("stop"),
        usage(3),
        DONE,
    )
    assert found.times == [2.0, 3.0, 4.0]
    assert (found.reasoning, found.text) == ("hmmm", "so")


def test_reasoning_is_told_apart_after_many_chunks_of_a_kind() -> None:
    pieces = [delta(reasoning_content=f"r{n} ") for n in range(9)] + [delta(content=f"c{n} ") for n in range(9)]
    found = decode(*pieces, delta("stop"), DONE)
    assert found.reasoning.split() == [f"r{n}" for n in range(9)]
    assert found.text.split() == [f"c{n}" for n in range(9)]


def test_missing_usage() -> None:
    pieces = (text(" a b"), text(" c d"), END, DONE)
    assert (decode(*pieces).num_tokens, decode(*pieces).source) == (2, "chunks")
    counted = decode(*pieces, count_tokens=lambda found: len(found.split()))
    assert (list(counted.tokens), counted.source) == ([2, 2], "tokenizer")


def test_every_event_in_one_piece() -> None:
    whole = b"".join([text(*(f" w{n}" for n in range(50))), END, usage(50), DONE])
    found = decode(whole)
    assert found.times == [1.0] * 50
    assert found.text == "".join(f" w{n}" for n in range(50))


@pytest.mark.parametrize("line", [b"\n", b"\r\n"])
def test_every_cut(line: bytes) -> None:
    body = b": hello\n\n" + text(" a", ' "q"', " c\\", " é", " 日本", " f", " g") + END + usage(7) + DONE
    body = body.replace(b"\n", line)
    for cut in range(1, len(body)):
        found = decode(body[:cut], body[cut:])
        assert found.text == ' a "q" c\\ é 日本 f g'
        assert list(found.times) == sorted(found.times)
        assert len(found.times) == 7
    single = [body[at : at + 1] for at in range(len(body))]
    assert decode(*single).text == ' a "q" c\\ é 日本 f g'


def test_raw_unicode() -> None:
    raw = 'data: {"choices":[{"text":"%s"}]}\n\n'
    pieces = [(raw % word).encode() for word in ("é", "日", "本", "x", "🙂")]
    assert decode(*pieces, END, DONE).text == "é日本x🙂"


def test_text_that_looks_like_an_event_or_stands_elsewhere_too() -> None:
    """The way around JSON must never change what is read."""
    words = ["a", "index", "stop", 'b","finish_reason":"stop', "}]}", "\n\ndata: [DONE]", "\\", "\\\\", "", "text", "a"]
    for extra in ({}, {"name": "a"}):
        pieces = [text(word, **extra) for word in words * 3]
        assert decode(*pieces, END, DONE).text == "".join(words * 3)
        assert decode(b"".join(pieces), END, DONE).text == "".join(words * 3)


@pytest.mark.parametrize("word", [":", ",", "b", "t", "é"])
def test_text_that_is_found_between_strings_too(word: str) -> None:
    raw = b'data: {"choices":[{"a":"b","text":"%b"}]}\n\n'
    pieces = [raw % item.encode() for item in (word, "x", word, "a")]
    assert decode(*pieces, END, DONE).text == f"{word}x{word}a"


@pytest.mark.parametrize("last", [(END + usage(9) + DONE,), (END, usage(9), DONE)], ids=["at once", "one by one"])
@pytest.mark.parametrize("words", [("a", "b", "c"), ("a", 'b"', "", "\\c"), ("a", "b", 'c"}]}\n\n')])
def test_one_event_each_reads_like_events_that_are_torn(words: tuple[str, ...], last: tuple[bytes, ...]) -> None:
    """Pieces that are one event each are read all at once, torn ones one by one."""
    events = [text(word) for word in words * 3]
    torn = [half for piece in events for half in (piece[:9], piece[9:])]
    found, expected = decode(*events, *last), decode(*torn, *last)
    assert found.times == [time_s / 2 for time_s in expected.times]
    assert (found.text, list(found.tokens)) == (expected.text, list(expected.tokens))


def test_a_long_stream_of_events_that_all_differ_is_read_in_time() -> None:
    pieces = [text(" a", number=number) for number in range(4000)]
    begin = time.process_time()
    assert decode(*pieces, END, DONE).text == " a" * 4000
    assert time.process_time() - begin < 2


def test_chunks_with_running_usage() -> None:
    pieces = [
        event({"choices": [{"text": f" {n}"}], "usage": {"prompt_tokens": 2, "completion_tokens": n}})
        for n in (1, 2, 3)
    ]
    assert decode(*pieces, END, DONE).num_tokens == 3


def test_the_last_event_may_lack_its_empty_line() -> None:
    assert decode(text(" a"), DONE.strip()).num_tokens == 1


def test_cached_tokens() -> None:
    assert decode(text("a"), END, usage(1, 9, prompt_tokens_details={"cached_tokens": 8}), DONE).cached_tokens == 8
    assert decode(text("a"), END, usage(1, 9, prompt_tokens_details=None), DONE).cached_tokens == 0


@pytest.mark.parametrize(
    ("pieces", "cause"),
    [
        ((text(" a"),), "truncated"),
        ((END, DONE), "no_tokens"),
        ((DONE,), "no_tokens"),
        ((), "truncated"),
        ((text(" a"), b'data: {"choices": [{"tex\n\n', DONE), "malformed"),
        ((text(" a"), b"data: 3\n\n", DONE), "malformed"),
        ((event({"choices": [3]}), DONE), "malformed"),
        ((event({"choices": [{"text": 3}]}), DONE), "malformed"),
        ((b'data: {"choices":[{"text":"\xff\xfe"}]}\n\n', DONE), "malformed"),
        ((text(" a"), text(" b"), b'data: {"choices": [{"index": 0, "text": "\xff"}]}\n\n', DONE), "malformed"),
        ((text(" a"), event({"error": {"message": "out of memory"}}), DONE), "server_error"),
        ((text(" a"), text("", reason="abort"), DONE), "server_error"),
        ((text(" a", " b", " c"), END, usage(2), DONE), "usage"),
        ((event({"hello": 1}), DONE), "not_openai"),
        ((b'{"error": "no stream"}\n\n',), "not_openai"),
        ((b"<html>\n\n</html>",), "not_openai"),
    ],
)
def test_streams_that_are_no_answer(pieces: tuple[bytes, ...], cause: str) -> None:
    with pytest.raises(StreamError) as found:
        decode(*pieces)
    assert found.value.cause == cause
    assert str(found.value)


def test_a_stream_under_way() -> None:
    found = decode(text(" a"), text(" b"), text(" c")[:20], partial=True)
    assert found.times == [1.0, 2.0]
    assert decode(partial=True).times == []
