"""Whether a server's answers under load are what it says of them, after MLPerf's TEST01 and TEST06.

A sample of the answers is asked for again, whole instead of streamed, one at a time. Then the text under load must begin
as the text alone does; the first token that was streamed must be the first of the answer; the tokens that the server
counts must be in its text; and whole and streamed answers must count alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_inferperf.engines.openai.client import fetch
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.sse import StreamError, decode_stream
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.hiding import excerpt
from pytest_inferperf.measure.agreement import Agreement, compare
from pytest_inferperf.measure.audit import Timed
from pytest_inferperf.measure.load.outputs import Output
from pytest_inferperf.model.metrics import COMPARED_TOKENS

__all__ = ["Encode", "Whole", "ask_alone", "check_outputs", "outputs_agreement", "timed_answer"]

Encode = Callable[[str], Sequence[int]]
"""Tokenizes a text, without special tokens."""

_REASKED = 3
"""How often a request that the server failed is sent again before it counts as refused."""

_TIMEOUT_S = 600.0
_LENGTHS = ("max_tokens", "min_tokens", "max_completion_tokens", "max_new_tokens", "min_new_tokens")
_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The answer to the same prompt, not streamed, with nothing beside it."""

    text: str
    tokens: int | None
    """As usage says."""

    asked: int
    """Tokens that it was asked for."""


def ask_alone(endpoint: Endpoint, outputs: Sequence[Output], *, timeout_s: float = _TIMEOUT_S) -> list[Whole]:
    """Ask for each answer again, whole, one after the other, up to the length that is compared.

    Raises `InvalidRun` where the server does not answer the question that it has answered before, `EngineError` where it
    cannot be reached.
    """
    return [_ask(endpoint, output, timeout_s) for output in outputs]


def timed_answer(endpoint: Endpoint, body: bytes, *, timeout_s: float = _TIMEOUT_S) -> Timed:
    """Ask for one streamed answer, with nothing beside it, and return how long it took.

    Raises `InvalidRun` for anything but an answer, `EngineError` where the server cannot be reached.
    """
    reader = fetch(endpoint, endpoint.post(body), timeout_s=timeout_s)
    try:
        if reader.status != 200:
            raise StreamError("http", f"HTTP {reader.status}")
        found = decode_stream(reader.pieces, reader.times)
    except StreamError as error:
        raise InvalidRun(f"a prompt that was asked at concurrency 1 has no answer: {error}") from None
    return Timed(first_s=found.times[0], last_s=found.times[-1], cached_tokens=found.cached_tokens)


def _ask(endpoint: Endpoint, output: Output, timeout_s: float) -> Whole:
    asked = json.loads(output.body)
    most = _shorten(asked)
    asked["stream"] = False
    asked.pop("stream_options", None)
    request = endpoint.post(json.dumps(asked).encode())
    reader = fetch(endpoint, request, timeout_s=timeout_s)
    for _ in range(_REASKED):
        # Where a gate lets a share of requests fail, one that fails here says nothing about the answers.
        if reader.status < 500:
            break
        reader = fetch(endpoint, request, timeout_s=timeout_s)
    body = b"".join(reader.pieces)
    if reader.status != 200:
        shown = excerpt(body, 200).strip()
        raise InvalidRun(
            f"a prompt that was answered under load is refused when it is asked again, not streamed, at concurrency 1: "
            f"HTTP {reader.status}: {shown}"
        )
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        text = choice.get("text")
        if text is None:
            message = choice["message"]
            reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
            text = reasoning + (message.get("content") or "")
        usage = found.get("usage") or {}
        counted = usage.get("completion_tokens")
        return Whole(text=str(text), tokens=counted if isinstance(counted, int) else None, asked=most)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise InvalidRun(
            f"the answer to a prompt that is asked again, not streamed, is none of the API: {excerpt(body, 120)!r}"
        ) from None


def _shorten(asked: dict[str, Any]) -> int:
    """Ask for no more tokens than are compared; return how many."""
    most = COMPARED_TOKENS
    for name in _LENGTHS:
        if isinstance(asked.get(name), int):
            most = asked[name] = min(asked[name], COMPARED_TOKENS)
    if isinstance(asked.get("generation_config"), str):
        # transformers takes lengths as JSON in JSON.
        inner = json.loads(asked["generation_config"])
        _shorten(inner)
        asked["generation_config"] = json.dumps(inner)
    return most


def outputs_agreement(outputs: Sequence[Output], alone: Sequence[Whole], *, encode: Encode | None) -> Agreement:
    """Compare each answer with the one alone: in tokens where there is a tokenizer, else in characters."""

    def units(text: str) -> Sequence[object]:
        # A detokenizer may drop the space before the first word; half a character at the end is none.
        text = text.lstrip().rstrip("\ufffd")
        return encode(text) if encode is not None else text

    return compare([(units(output.text), units(whole.text)) for output, whole in zip(outputs, alone, strict=True)])


def check_outputs(
    outputs: Sequence[Output], alone: Sequence[Whole], *, encode: Encode | None, max_count_error: float
) -> str:
    """Say what the answers contradict; "" where they are sound. `max_count_error` is a share of 1."""
    return (
        _check_counts(outputs, encode, max_count_error)
        or _check_ends(outputs)
        or _check_usage(outputs, alone)
        or _check_first(outputs, alone)
    )


def _check_counts(outputs: Sequence[Output], encode: Encode | None, limit: float) -> str:
    counted = sum(output.tokens for output in outputs)
    if encode is not None:
        found, how = sum(len(encode(output.text)) for output in outputs), "tokens, tokenized again"
    else:
        # No token has less than a byte of text, and how much more it has is unknown.
        found, how = sum(len(output.text.encode()) for output in outputs), "bytes, at least one for each token"
    # Bytes that are no UTF-8 are shown as U+FFFD, which is up to three tokens where there was one.
    broken = encode is None or any("\ufffd" in output.text for output in outputs)
    short, long = found < (1 - limit) * counted, not broken and counted < (1 - limit) * found
    if not short and not long:
        return ""
    return (
        f"the server counts {counted} tokens in {len(outputs)} answers whose text has {found} {how}, and a share of "
        f"{limit:g} is what they may differ by: its usage is wrong, or special tokens without text follow the end of its "
        "answers. Look at an answer, name the right tokenizer, or set inferperf_max_count_error in the ini file"
    )


def _check_ends(outputs: Sequence[Output]) -> str:
    wrong = [output for output in outputs if output.finish_reason not in ("", "length")]
    if not wrong:
        return ""
    return (
        f"{len(wrong)} of {len(outputs)} answers ended by {wrong[0].finish_reason!r} and not by their length, and yet the "
        f"server counts the {wrong[0].tokens} tokens that were asked for"
    )


def _check_usage(outputs: Sequence[Output], alone: Sequence[Whole]) -> str:
    wrong = [whole for whole in alone if whole.tokens is not None and whole.tokens != whole.asked]
    if not wrong:
        return ""
    return (
        f"{len(wrong)} of {len(outputs)} answers have another length when they are not streamed: usage counts "
        f"{wrong[0].tokens} tokens where {wrong[0].asked} were asked for"
    )


def _check_first(outputs: Sequence[Output], alone: Sequence[Whole]) -> str:
    wrong = [
        (output.first, whole.text)
        for output, whole in zip(outputs, alone, strict=True)
        if not _begins(output.first, whole.text)
    ]
    # A first token that was nearly a tie may become another one in a batch; half of them do not.
    if len(wrong) <= _HALF * len(outputs):
        return ""
    first, text = wrong[0]
    return (
        f"the first token that was streamed is not the first of the answer in {len(wrong)} of {len(outputs)} answers "
        f"({excerpt(first, 20)!r}, and {excerpt(text, 20)!r} when the same prompt is asked again, not streamed): TTFT is the time of "
        "something else"
    )


def _begins(first: str, text: str) -> bool:
    """Whether an answer begins with its first chunk, the space of a first word aside."""
    first = first.rstrip("\ufffd")
    if not text or text.startswith(first) or first.startswith(text):
        # Where there is no text to compare with, the agreement has nothing to agree with either.
        return bool(text)
    first, text = first.lstrip(), text.lstrip()
    return bool(first) and (text.startswith(first) or first.startswith(text))
