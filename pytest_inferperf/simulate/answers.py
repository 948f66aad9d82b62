"""The answers: deterministic text, and the bytes of every event, formatted with as little work as possible."""

from __future__ import annotations

import functools
import json
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["WORDS", "Answer", "chunk", "error_body", "prompt_of", "prompt_units"]

WORDS = tuple(f" {a}{b}{c}" for a in "bdgk" for b in "aeio" for c in "lmns")
"""One word, four bytes, per token id from 0 to 63."""

_BYTES = tuple(word.encode() for word in WORDS)


def chunk(data: bytes) -> bytes:
    """Frame bytes as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


_DONE = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def error_body(message: str, status: int) -> bytes:
    """Return an error in the API's form."""
    return json.dumps({"error": {"message": message, "type": "simulated", "code": status}}).encode()


def prompt_of(body: Mapping[str, Any]) -> tuple[bytes, int]:
    """Return the prompt as bytes and the number of its tokens: ids, or words. Raises `ValueError` where there is none."""
    if "messages" in body:
        messages = body["messages"]
        if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
            raise ValueError("messages must be a list of objects")
        text = "\n".join(str(item.get("content", "")) for item in messages)
        return text.encode("utf-8", "surrogatepass"), len(text.split())
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "surrogatepass"), len(prompt.split())
    try:
        if isinstance(prompt, list):
            return array("q", prompt).tobytes(), len(prompt)
    except (TypeError, OverflowError):
        pass
    raise ValueError("prompt must be text or a list of token ids")


def prompt_units(body: Mapping[str, Any]) -> Sequence[Any]:
    """Return the tokens of a prompt that `prompt_of` has read: its ids, or its words."""
    prompt = body.get("prompt")
    return prompt if isinstance(prompt, list) else prompt_of(body)[0].split()


_quoted = functools.cache(json.dumps)


class Answer:
    """The answer to one request: which tokens, and what each event looks like on the wire."""

    __slots__ = (
        "_choice", "_first", "_head", "_ids", "_reasoning", "_tail", "cached", "chat", "claimed", "count", "digest", "prompt_tokens"
    )  # fmt: skip

    def __init__(
        self,
        body: Mapping[str, Any],
        *,
        model: str,
        count: int,
        chat: bool,
        reasoning_tokens: int = 0,
        shift: int = 0,
        claimed: int | None = None,
    ) -> None:
        """Answer a request with `count` tokens, of which usage says `claimed`; another `shift` is another answer.

        Raises `ValueError` for a request without a prompt.
        """
        prompt, self.prompt_tokens = prompt_of(body)
        # The same prompt gives the same answer, in every process.
        self.digest = digest = zlib.crc32(prompt)
        self._first = (digest + shift) % len(WORDS)
        self.count = count
        self.cached: int | None = None
        """Tokens of the prompt that usage says came from a cache; None says nothing."""

        self.claimed = count if claimed is None else claimed
        self.chat = chat
        self._reasoning = reasoning_tokens if chat else 0
        self._ids = body.get("return_token_ids") is True
        name = f'"id":"sim-{digest:08x}","created":1700000000,"model":{_quoted(model)}'
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._head = f'data: {{{name},"object":"{kind}","choices":['.encode()
        self._tail = b"]}\n\n"
        self._choice = (
            b'{"index":0,"finish_reason":null,"delta":{"%b":"%b"}}'
            if chat
            else b'{"index":0,"finish_reason":null,"text":"%b"}'
        )

    def token_ids(self) -> list[int]:
        """Return all token ids of the answer."""
        return [(self._first + index) % len(WORDS) for index in range(self.count)]

    def event(self, start: int, stop: int) -> bytes:
        """Return the framed event that carries the tokens from `start` to before `stop`."""
        first = self._first
        words = (
            _BYTES[(first + start) & 63]
            if stop == start + 1
            else b"".join([_BYTES[(first + index) & 63] for index in range(start, stop)])
        )
        if self.chat:
            kind = b"reasoning_content" if start < self._reasoning else b"content"
            choice = self._choice % (kind, words)
        else:
            choice = self._choice % words
        if self._ids:
            choice = choice[:-1] + b',"token_ids":%b}' % json.dumps(self.token_ids()[start:stop]).encode()
        return chunk(self._head + choice + self._tail)

    def fake(self) -> bytes:
        """Return the framed event of a token that the answer does not begin with."""
        choice = self._choice % ((b"content", b"~") if self.chat else (b"~",))
        return chunk(self._head + choice + self._tail)

    def role(self) -> bytes:
        """Return the framed event that opens a chat stream and carries no token."""
        choice = b'{"index":0,"finish_reason":null,"delta":{"role":"assistant","content":""}}'
        return chunk(self._head + choice + self._tail)

    def end(self, *, usage: bool) -> bytes:
        """Return the framed end of a stream: the finish reason, usage where asked for, and `[DONE]`."""
        empty = b'"delta":{}' if self.chat else b'"text":""'
        parts = [chunk(self._head + b'{"index":0,"finish_reason":"length",' + empty + b"}" + self._tail)]
        if usage:
            parts.append(
                chunk(self._head + b'],"usage":%b}\n\n' % _usage_text(self.prompt_tokens, self.claimed, self.cached))
            )
        return b"".join([*parts, _DONE])

    def whole(self) -> bytes:
        """Return the answer to a request that does not stream."""
        reasoning = "".join(self._words(range(self._reasoning)))
        text = "".join(self._words(range(min(self._reasoning, self.count), self.count)))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
            if reasoning:
                choice["message"]["reasoning_content"] = reasoning
        else:
            choice["text"] = text
        if self._ids:
            choice["token_ids"] = self.token_ids()
        head: dict[str, Any] = json.loads(self._head.removeprefix(b"data: ") + b"]}")
        head["object"] = "chat.completion" if self.chat else "text_completion"
        return json.dumps({**head, "choices": [choice], "usage": self._usage()}).encode()

    def _words(self, indices: Sequence[int]) -> list[str]:
        return [WORDS[(self._first + index) & 63] for index in indices if index < self.count]

    def _usage(self) -> dict[str, Any]:
        return _usage(self.prompt_tokens, self.claimed, self.cached)


def _usage(prompt: int, output: int, cached: int | None) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    return counts if cached is None else {**counts, "prompt_tokens_details": {"cached_tokens": cached}}


@functools.lru_cache(1024)
def _usage_text(prompt: int, output: int, cached: int | None) -> bytes:
    return json.dumps(_usage(prompt, output, cached)).encode()
