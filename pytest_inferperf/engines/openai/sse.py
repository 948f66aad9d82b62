"""From the body of a stream to tokens with times: read after the response has ended, off the path of the clock.

An event carries tokens when its text is not empty: `text`, `delta.content`, or a reasoning model's
`delta.reasoning_content` or `delta.reasoning`. A chunk that only names the role, an empty last chunk and the usage chunk
carry none. The number of tokens comes from the chunks' `token_ids` where the server sends them, else from `usage`, else
from a tokenizer, else one per chunk; where a response has more tokens than chunks, they are shared among the chunks
by length of text, at least one each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pytest_inferperf.hiding import excerpt

__all__ = ["CountSource", "CountTokens", "Decoded", "StreamError", "decode_stream"]

CountSource = Literal["token_ids", "usage", "tokenizer", "chunks"]
CountTokens = Callable[[str], int]
"""Counts the tokens of a text."""

_LF, _CR, _QUOTE, _BACKSLASH = b'\n\r"\\'
"""To look for one of them as a number costs a fifth of looking for it as bytes."""

_loads = json.JSONDecoder().decode
_REASONING = ("reasoning_content", "reasoning")
_PROBE = "inferperf~probe"
_ATTEMPTS = 3
"""To read the rest of a stream at once, which a stream of events that all differ does not let."""

_LAST_PIECES = 4
"""At most so many at the end are others: the finish reason, usage, `[DONE]`."""


class StreamError(Exception):
    """A stream that is not a complete, well-formed answer. `cause` is a key of the counts, `str(error)` the detail."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The tokens of one answer."""

    times: Sequence[float]
    """When each chunk that carries tokens arrived, seconds on the clock of the arrivals."""

    tokens: Sequence[int]
    """Tokens of each of these chunks, at least 1; same length as `times`."""

    source: CountSource
    text: str
    reasoning: str
    first: str
    """Text of the first chunk that carries tokens, reasoning or not."""

    finish_reason: str
    prompt_tokens: int | None
    """As usage says; None where there is no usage."""

    cached_tokens: int
    """Prompt tokens that usage says came from a cache."""

    @property
    def num_tokens(self) -> int:
        """Output tokens, reasoning included."""
        return sum(self.tokens)


@dataclass
class _State:
    times: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Bytes of text of each chunk that carries tokens."""

    first: bytes = b""
    ids: list[int] = field(default_factory=list)
    text: list[bytes] = field(default_factory=list)
    reasoning: list[bytes] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, Any] | None = None
    done: bool = False


def decode_stream(
    pieces: Sequence[bytes], times: Sequence[float], *, count_tokens: CountTokens | None = None, partial: bool = False
) -> Decoded:
    """Read the body of a streamed answer, given as it arrived: `times[i]` is when `pieces[i]` came.

    `partial` reads what has come of a stream that has not ended. Raises `StreamError` for a stream that is malformed,
    ends early, reports an error, carries no token, or whose usage counts fewer tokens than it has chunks.
    """
    state = _State()
    separator = b""
    head = close = b"\x00"
    sink = state.text
    carry = b""
    position, attempts = 0, _ATTEMPTS
    while position < len(pieces):
        piece, time_s = pieces[position], times[position]
        position += 1
        if carry:
            piece = carry + piece
        if not separator:
            line = piece.find(b"\n")
            if line < 0:
                carry = piece
                continue
            separator = b"\r\n\r\n" if piece[line - 1 : line] == b"\r" else b"\n\n"
        if piece.startswith(head) and piece.endswith(close):
            plain = piece[len(head) : -len(close)]
            if plain and _is_plain(plain):
                state.times.append(time_s)
                state.sizes.append(len(plain))
                sink.append(plain)
                carry = b""
                continue
        templated = False
        while True:
            # Events that differ from an earlier one in nothing but their text are read without JSON, all at once.
            if piece.startswith(head):
                texts = piece[len(head) :].split(close + head)
                rest = texts.pop()
                end = rest.find(close)
                if end >= 0:
                    texts.append(rest[:end])
                    together = b"".join(texts)
                    if all(texts) and _is_plain(together):
                        state.times.extend([time_s] * len(texts))
                        state.sizes.extend(map(len, texts))
                        sink.extend(texts)
                        piece = rest[end + len(close) :]
            end = piece.find(separator)
            if end < 0:
                carry = piece
                break
            event, piece = piece[:end], piece[end + len(separator) :]
            found = _read_event(event, state, time_s)
            if found is not None:
                sink = state.reasoning if found[1] else state.text
                head, close = _template(event, *found)
                close += separator
                templated = True
        if templated and not carry and attempts:
            read = _read_alike(pieces[position:], times[position:], (head, close), separator, sink, state)
            position += read
            attempts -= not read
    if carry.strip() and not partial:
        _read_event(carry, state, times[-1])
    try:
        text, reasoning = b"".join(state.text).decode(), b"".join(state.reasoning).decode()
    except UnicodeDecodeError as error:
        raise StreamError("malformed", f"the text is not UTF-8: {error}") from None
    if not partial:
        if not state.finish_reason and not state.done:
            raise StreamError("truncated", "the stream ended without a finish reason and without [DONE]")
        if not state.times:
            raise StreamError("no_tokens", "the stream carried no token")
    tokens, source = _count(state, text, reasoning, None if partial else count_tokens)
    usage = state.usage or {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Decoded(
        times=state.times,
        tokens=tokens,
        source=source,
        text=text,
        reasoning=reasoning,
        first=state.first.decode(errors="replace"),
        finish_reason=state.finish_reason,
        prompt_tokens=_whole(usage, "prompt_tokens"),
        cached_tokens=cached if isinstance(cached, int) else 0,
    )


def _read_alike(
    pieces: Sequence[bytes],
    times: Sequence[float],
    template: tuple[bytes, bytes],
    separator: bytes,
    sink: list[bytes],
    state: _State,
) -> int:
    """Read pieces at once where each is one event that differs from the template in its text alone; return how many.

    Those at the end may be others. A text that is not plain is read as the event that it is.
    """
    head, close = template
    count = len(pieces)
    least = max(0, count - _LAST_PIECES)
    while count > least and not (pieces[count - 1].startswith(head) and pieces[count - 1].endswith(close)):
        count -= 1
    begin, end = len(head), -len(close)
    texts = [piece[begin:end] for piece in pieces[:count]]
    # All of them at once: put together again they are what came, and a piece too short for both would be missed in the sum.
    if b"".join(pieces[:count]) != head + (close + head).join(texts) + close:
        return 0
    together = b"".join(texts)
    if separator in together:
        return 0
    begin = 0
    if not all(texts) or not _is_plain(together):
        for index, text in enumerate(texts):
            if not text or not _is_plain(text):
                _keep_plain(texts[begin:index], times[begin:index], sink, state)
                _read_event(pieces[index][: -len(separator)], state, times[index])
                begin = index + 1
    _keep_plain(texts[begin:], times[begin:count], sink, state)
    return count


def _is_plain(text: bytes) -> bool:
    """Say whether all bytes of the text of an event stand for themselves."""
    return _QUOTE not in text and _BACKSLASH not in text


def _keep_plain(texts: Sequence[bytes], times: Sequence[float], sink: list[bytes], state: _State) -> None:
    """Keep texts that are plain."""
    state.times.extend(times)
    state.sizes.extend(map(len, texts))
    sink.extend(texts)


def _read_event(event: bytes, state: _State, time_s: float) -> tuple[str, bool] | None:
    """Read one event of any form; return its text and whether it is reasoning, if it can serve as a template."""
    if event.startswith(b"data: {") and _LF not in event and _CR not in event:
        data = event[6:]
    else:
        data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
    if not data:
        # A comment, a keep-alive, or another field.
        if event.lstrip()[:1] in (b"{", b"<", b"["):
            raise StreamError("not_openai", f"not an event stream: {excerpt(event.strip(), 60)!r}")
        return None
    if data == b"[DONE]":
        state.done = True
        return None
    try:
        # Decoded first: from bytes, `loads` would look for other encodings than UTF-8 in every event.
        value = _loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        raise StreamError("malformed", f"an event is not JSON: {excerpt(data, 60)!r}") from None
    if not isinstance(value, dict):
        raise StreamError("malformed", f"an event is not an object: {excerpt(data, 60)!r}")
    if value.get("error") or value.get("object") == "error":
        raise StreamError("server_error", f"the server reports an error in the stream: {excerpt(data, 200)!r}")
    usage = value.get("usage")
    if isinstance(usage, dict):
        state.usage = usage
    options = value.get("choices")
    if not isinstance(options, list):
        raise StreamError("not_openai", f"an event has no choices: {excerpt(data, 60)!r}")
    if not options:
        return None
    choice = options[0]
    if not isinstance(choice, dict):
        raise StreamError("malformed", f"a choice is not an object: {excerpt(data, 60)!r}")
    text, reasoning = _text(choice)
    reason = choice.get("finish_reason")
    if reason:
        state.finish_reason = str(reason)
        if reason in ("error", "abort"):
            raise StreamError("server_error", f"the server ended the stream: finish_reason {reason!r}")
    ids = choice.get("token_ids")
    count = len(ids) if isinstance(ids, list) else 0
    if not text and not count:
        return None
    encoded = text.encode("utf-8", "surrogatepass")
    if not state.times:
        state.first = encoded
    state.times.append(time_s)
    state.sizes.append(len(encoded))
    (state.reasoning if reasoning else state.text).append(encoded)
    if count:
        state.ids.append(count)
    return (text, reasoning) if not count and not reason and not usage else None


def _text(choice: dict[str, Any]) -> tuple[str, bool]:
    """Return the text of a choice, and whether it is reasoning."""
    text = choice.get("text")
    reasoning = False
    delta = choice.get("delta")
    if isinstance(delta, dict):
        text = delta.get("content")
        if not text:
            text = next((delta[name] for name in _REASONING if delta.get(name)), None)
            reasoning = text is not None
    if text is not None and not isinstance(text, str):
        raise StreamError("malformed", f"the text of a chunk is {text!r:.60}")
    return text or "", reasoning


def _template(event: bytes, text: str, reasoning: bool) -> tuple[bytes, bytes]:
    """Return what stands before and after the text of an event; a pair that fits nothing where that is not certain.

    Certain means: with another text in the same place the event reads as that text, and as nothing else.
    """
    nothing = (b"\x00", b"\x00")
    quoted = b'"' + text.encode("utf-8", "surrogatepass") + b'"'
    if event.count(quoted) != 1 or _LF in event or _CR in event or not event.startswith(b"data:"):
        return nothing
    at = event.index(quoted)
    head, tail = event[: at + 1], event[at + len(quoted) - 1 :]
    if _BACKSLASH not in event:
        # Every string of it is written as it reads, so the one place in which the text stands is that of the text.
        return head, tail
    try:
        value = _loads((head[5:] + _PROBE.encode() + tail).decode("utf-8", "surrogatepass"))
    except ValueError:
        return nothing
    return (head, tail) if _text(value["choices"][0]) == (_PROBE, reasoning) else nothing


def _count(
    state: _State, text: str, reasoning: str, count_tokens: CountTokens | None
) -> tuple[Sequence[int], CountSource]:
    chunks = len(state.times)
    if state.ids and len(state.ids) == chunks:
        return state.ids, "token_ids"
    total = _whole(state.usage or {}, "completion_tokens")
    source: CountSource = "usage"
    if total is None:
        if count_tokens is None:
            return [1] * chunks, "chunks"
        total, source = count_tokens(reasoning + text), "tokenizer"
    if total < chunks:
        if source == "tokenizer":
            # Text that is encoded anew may be shorter than what was generated.
            return [1] * chunks, "chunks"
        raise StreamError("usage", f"usage counts {total} tokens where {chunks} chunks carried text")
    return _share(total, state.sizes), source


def _share(total: int, sizes: Sequence[int]) -> list[int]:
    """Share tokens among chunks by length of text, at least one each, rounded so that the sum is exact."""
    chunks = len(sizes)
    if total == chunks:
        return [1] * chunks
    length = sum(sizes) or 1
    shares, seen, given = [], 0, 0
    for index, size in enumerate(sizes):
        seen += size
        upto = min(max(round(total * seen / length), given + 1), total - (chunks - 1 - index))
        shares.append(upto - given)
        given = upto
    return shares


def _whole(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
