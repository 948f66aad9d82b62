"""An engine behind an OpenAI-compatible endpoint. What the endpoint can do is asked of it, not assumed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pytest_inferperf.engines.hardware import cpu_hardware
from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    Serving,
    TokenChunk,
)
from pytest_inferperf.engines.load_hosts import LoadHosts
from pytest_inferperf.engines.openai.chat import text_of, words_of
from pytest_inferperf.engines.openai.client import exchange, fetch, json_of, start_of
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.http import ResponseReader
from pytest_inferperf.engines.openai.sse import Decoded, StreamError, decode_stream
from pytest_inferperf.errors import EngineError, MissingExtra
from pytest_inferperf.hiding import excerpt
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import EngineInfo, Hardware

__all__ = ["UNKNOWN_TOKEN", "OpenAIEngine"]

UNKNOWN_TOKEN = -1
"""Stands for a token whose id the server does not send and the text does not tell."""

_MAX_STOPS = 4
"""As many as the API takes; outputs are cut at all of them here."""

_VOCABULARY = 32000
"""Token ids drawn from where nothing is known of the tokenizer, as `inferperf measure` does."""

_EXACT: tuple[str, ...] = ("ignore_eos", "generation_config")
"""The ways to ask for an exact length: fields of their own (vLLM, SGLang, TensorRT-LLM), or transformers' one."""


_NO_SUCH_PATH = (404, 405, 501)


@dataclass(frozen=True, kw_only=True)
class _Abilities:
    token_ids: bool
    """Whether a prompt may be token ids."""

    exact: str
    """One of `_EXACT`."""

    completions: bool = True
    """Whether it answers anything but chats."""


class OpenAIEngine(Engine):
    """Speaks to `/completions` of an endpoint, and to its `/chat/completions` for a load of chats. The endpoint is not its own: `close` leaves it running."""

    def __init__(
        self, spec: EngineSpec, endpoint: Endpoint, *, info: EngineInfo, timeout_s: float = 600.0, tokenizer: str = ""
    ) -> None:
        """Ask the endpoint what it can do.

        `tokenizer` is the folder or hub id of the tokenizer; the model's own by default. `timeout_s` is the time of
        any one request. Raises `EngineError` for an endpoint that answers no completion at all.
        """
        self.spec = spec
        self.info = info
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._tokenizer_name = str(dict(spec.engine_options).get("tokenizer") or tokenizer or spec.model)
        self._abilities = self._probe()
        self.load_hosts: LoadHosts | None = None
        """Other machines that may send load to it; None where there are none."""

    # What the endpoint can do.

    def _probe(self) -> _Abilities:
        refusals = []
        for exact in _EXACT:
            for token_ids in (True, False):
                found = _Abilities(token_ids=token_ids, exact=exact)
                prompt: Any = [1] if token_ids else "a"
                answer = self._fetch({"prompt": prompt, "stream": False, **_length(exact, 1)})
                if answer.status == 200:
                    return found
                refusals.append(f"HTTP {answer.status}: {start_of(answer)}")
                if answer.status in _NO_SUCH_PATH and (chat := self._probe_chat()) is not None:
                    return chat
                if answer.status not in (400, 422):
                    raise EngineError(f"{self._endpoint.shown} answers no completion: {refusals[-1]}")
        raise EngineError(f"{self._endpoint.shown} answers no completion of an exact length: {'; '.join(refusals)}")

    def _probe_chat(self) -> _Abilities | None:
        """Ask an endpoint without `/completions` for a chat; None where it has none either."""
        endpoint = replace(self._endpoint, chat=True)
        for exact in _EXACT:
            asked = {"model": endpoint.model, "messages": _messages("a"), "stream": False, **_length(exact, 1)}
            body = json.dumps(asked).encode()
            if fetch(endpoint, endpoint.post(body), timeout_s=self._timeout_s).status == 200:
                return _Abilities(token_ids=False, exact=exact, completions=False)
        return None

    def _fetch(self, asked: Mapping[str, Any]) -> ResponseReader:
        body = json.dumps({"model": self._endpoint.model, "temperature": 0, **asked}).encode()
        return fetch(self._endpoint, self._endpoint.post(body), timeout_s=self._timeout_s)

    @property
    def serving(self) -> Serving | None:
        """See `Engine.serving`."""
        return Serving(
            endpoint=self._endpoint,
            body=self._body,
            fresh_prompts=not self.can_relaunch,
            encode=(lambda text: self.encode([text])[0]) if self._has_tokenizer else None,
            hosts=self.load_hosts,
            chat=self._chat_serving,
        )

    def _chat_serving(self) -> Serving:
        return Serving(
            endpoint=replace(self._endpoint, chat=True),
            body=self._chat_body,
            fresh_prompts=not self.can_relaunch,
            encode=(lambda text: self.encode([text])[0]) if self._has_tokenizer else None,
            hosts=self.load_hosts,
        )

    @property
    def watched_hardware(self) -> Hardware:
        """See `Engine.watched_hardware`: of another machine, nothing can be watched."""
        return cpu_hardware()

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Engine.notes`: who has sent load to it."""
        return self.load_hosts.notes if self.load_hosts is not None else ()

    # Tokens.

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise MissingExtra("the tokenizer of the openai backend", "server", "transformers") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return AutoTokenizer.from_pretrained(self._tokenizer_name, trust_remote_code=False)
            except Exception as error:  # tokenizers raises plain exceptions
                first = str(error).strip().splitlines()[:1]
                raise EngineError(
                    f"{self._tokenizer_name}: no tokenizer ({type(error).__name__}: {' '.join(first)}). Name one: "
                    'engine_options={"tokenizer": "folder or hub id"}'
                ) from None

    @property
    def _has_tokenizer(self) -> bool:
        """Whether there is a tokenizer without a download, or one that was named."""
        return (
            "tokenizer" in dict(self.spec.engine_options) or (Path(self._tokenizer_name) / "tokenizer.json").is_file()
        )

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        """See `Engine.encode`."""
        if not texts:
            return []
        found = self._tokenizer(list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False)
        return [tuple(ids) for ids in found["input_ids"]]

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """See `Engine.decode`."""
        return [
            str(
                self._tokenizer.decode(
                    list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
                )
            )
            for ids in sequences
        ]

    @property
    def prefix_token_id(self) -> int:
        """See `Engine.prefix_token_id`."""
        bos = self._tokenizer.bos_token_id
        return self.eos_token_id if bos is None else int(bos)

    @property
    def eos_token_id(self) -> int:
        """See `Engine.eos_token_id`."""
        eos = self._tokenizer.eos_token_id
        if eos is None:
            raise EngineError(f"{self._tokenizer_name}: the tokenizer has no end-of-sequence token")
        return int(eos)

    @cached_property
    def vocab_size(self) -> int:
        """See `Engine.vocab_size`: the tokenizer's; 32000 where there is none and the server takes token ids."""
        return len(self._tokenizer) if self._needs_tokenizer else _VOCABULARY

    @property
    def _needs_tokenizer(self) -> bool:
        # To a chat endpoint words can stand for tokens.
        return self._has_tokenizer or (self._abilities.completions and not self._abilities.token_ids)

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """See `Engine.special_token_ids`.

        Without a tokenizer, the first tenth of the vocabulary, where special tokens are kept. For a server that takes
        text alone, all but whole words: their tokens stay the same tokens when the text is read.
        """
        if not self._needs_tokenizer:
            return frozenset(range(self.vocab_size // 10))
        special = frozenset(map(int, self._tokenizer.all_special_ids))
        if self._abilities.token_ids:
            return special
        return frozenset(range(self.vocab_size)).difference(self._whole_words)

    @cached_property
    def _whole_words(self) -> tuple[int, ...]:
        special = frozenset(map(int, self._tokenizer.all_special_ids))
        texts = self.decode([[token] for token in range(self.vocab_size)], skip_special_tokens=False)
        words = [token for token, text in enumerate(texts) if text[:1] == " " and text[1:].isalpha()]
        found = tuple(token for token in words if token not in special)
        if not found:
            raise EngineError(
                f"{self._endpoint.shown} takes text and no token ids, and {self._tokenizer_name} has no tokens for whole "
                "words: no prompt of an exact length can be written"
            )
        return found

    def _check_completions(self) -> None:
        if not self._abilities.completions:
            raise EngineError(
                f"{self._endpoint.shown}: the server has no such path and answers chats alone: measure it with "
                '@pytest.mark.inferperf(endpoint="chat", …)'
            )

    def _prompt(self, prompt: tuple[int, ...]) -> str | list[int]:
        """Return the prompt as the server takes it. Raises `EngineError` where text would be read as other tokens."""
        self._check_completions()
        if self._abilities.token_ids:
            return list(prompt)
        text = self.decode([prompt])[0]
        (found,) = self.encode([text], add_special_tokens=True)
        if found != prompt:
            raise EngineError(
                f"{self._endpoint.shown} takes text and no token ids, and {len(prompt)} prompt tokens would be read as "
                f"{len(found)} others: {excerpt(text, 60)!r}. Take a server that takes token ids (vLLM, SGLang, "
                "trtllm-serve)."
            )
        return text

    # Requests.

    def _body(self, request: GenerationRequest) -> bytes:
        if request.messages:
            self._check_completions()
            return self._asked(request, {"prompt": text_of(request.messages)})
        return self._asked(request, {"prompt": self._prompt(request.prompt)})

    def _chat_body(self, request: GenerationRequest) -> bytes:
        """Write a chat: the messages as they are, else one of as many whole words as the prompt has tokens, a token each."""
        if request.messages:
            messages = [{"role": role, "content": content} for role, content in request.messages]
            return self._asked(request, {"messages": messages})
        if not self._needs_tokenizer:
            return self._asked(request, {"messages": _messages(words_of(request.prompt))})
        words = self._whole_words
        text = self.decode([[words[token % len(words)] for token in request.prompt]])[0]
        return self._asked(request, {"messages": _messages(text)})

    def _asked(self, request: GenerationRequest, prompt: Mapping[str, Any]) -> bytes:
        self._check_length(len(request.prompt) + request.max_tokens)
        asked: dict[str, Any] = {
            "model": self._endpoint.model,
            **prompt,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.temperature > 0:
            asked |= {"top_p": request.top_p, "seed": request.seed}
        if request.stop:
            asked["stop"] = list(request.stop[:_MAX_STOPS])
        exact = _length(self._abilities.exact, request.max_tokens)
        asked |= exact if request.ignore_eos else {"max_tokens": request.max_tokens}
        return json.dumps(asked, separators=(",", ":")).encode()

    def _check_length(self, tokens: int) -> None:
        if tokens > self.info.max_model_len:
            raise EngineError(
                f"a request of {tokens} tokens, prompt and output, does not fit max_model_len={self.info.max_model_len}"
            )

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        """See `Engine.generate`. A token id that nobody tells is `UNKNOWN_TOKEN`."""
        bodies = [self._body(request) for request in requests]
        pool = ThreadPoolExecutor(max_workers=max(1, min(concurrency, len(bodies))))
        try:
            answers = list(pool.map(self._answer, requests, bodies))
        finally:
            pool.shutdown(cancel_futures=True)
        return answers

    def _answer(self, request: GenerationRequest, body: bytes) -> Generation:
        reader = fetch(self._endpoint, self._endpoint.post(body), timeout_s=self._timeout_s)
        decoded = self._decode_stream(reader)
        ids = self.encode([decoded.text])[0] if self._needs_tokenizer else ()
        if len(ids) != decoded.num_tokens:
            # Usage counts the end of the sequence, which has no text, and text may be read as other tokens.
            ids = (UNKNOWN_TOKEN,) * decoded.num_tokens
        text = decoded.text
        for stop in request.stop:
            text = text.split(stop, 1)[0]
        reason: Literal["stop", "length"] = "length" if decoded.finish_reason == "length" else "stop"
        return Generation(
            token_ids=ids,
            text=text,
            finish_reason=reason,
            prompt_tokens=len(request.prompt) if decoded.prompt_tokens is None else decoded.prompt_tokens,
            token_times_s=tuple(
                moment for moment, count in zip(decoded.times, decoded.tokens, strict=True) for _ in range(count)
            ),
        )

    def _decode_stream(self, reader: ResponseReader) -> Decoded:
        if reader.status != 200:
            raise EngineError(f"{self._endpoint.shown}: HTTP {reader.status}: {start_of(reader)}")
        try:
            return decode_stream(reader.pieces, reader.times)
        except StreamError as error:
            if error.cause == "no_tokens":
                # The end of the sequence was the first token, and it has no text.
                return Decoded(
                    times=(),
                    tokens=(),
                    source="chunks",
                    text="",
                    reasoning="",
                    first="",
                    finish_reason="stop",
                    prompt_tokens=None,
                    cached_tokens=0,
                )
            raise EngineError(f"{self._endpoint.shown}: {error}") from None

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        """See `Engine.stream`."""
        shown = 0
        for reader in exchange(self._endpoint, self._endpoint.post(self._body(request)), timeout_s=self._timeout_s):
            if reader.status != 200:
                continue
            try:
                text = decode_stream(reader.pieces, reader.times, partial=True).text
            except StreamError as error:
                raise EngineError(f"{self._endpoint.shown}: {error}") from None
            for stop in request.stop:
                text = text.split(stop, 1)[0]
            if len(text) > shown:
                new, shown = text[shown:], len(text)
                ids = self.encode([new])[0] if self._needs_tokenizer else (UNKNOWN_TOKEN,)
                yield TokenChunk(token_ids=ids, text=new, time_s=reader.times[-1])
        self._decode_stream(reader)

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        """See `Engine.loglikelihood`.

        Raises `EngineError` where the server returns no log-probabilities of the prompt, or those of other tokens.
        """
        pool = ThreadPoolExecutor(max_workers=max(1, min(concurrency, len(requests))))
        try:
            # The first alone: a server that cannot do it says so once.
            answers = [self._score(item) for item in requests[:1]]
            answers += pool.map(self._score, requests[1:])
        finally:
            pool.shutdown(cancel_futures=True)
        return answers

    def _score(self, request: LogLikelihoodRequest) -> LogLikelihood:
        whole = request.context + request.continuation
        self._check_length(len(whole))
        answer = self._fetch(
            {"prompt": self._prompt(whole), "max_tokens": 1, "echo": True, "logprobs": 1, "stream": False}
        )
        refusal = (
            f"{self._endpoint.shown} returns no log-probabilities of prompts (echo with logprobs), which "
            "multiple-choice and perplexity tasks need: take a generate_until task, or a server that has them (vLLM)"
        )
        if answer.status in (400, 422):
            raise EngineError(f"{refusal}. HTTP {answer.status}: {start_of(answer)}")
        if answer.status != 200:
            raise EngineError(f"{self._endpoint.shown}: HTTP {answer.status}: {start_of(answer)}")
        found = json_of(answer)
        try:
            logprobs = found["choices"][0]["logprobs"]
            each, best = logprobs["token_logprobs"], logprobs["top_logprobs"]
        except (KeyError, IndexError, TypeError):
            raise EngineError(refusal) from None
        # The token that was generated comes last, where the server generates one.
        if len(each) - len(whole) not in (0, 1) or len(best) != len(each):
            raise EngineError(f"{refusal}; it gave {len(each)} for a prompt of {len(whole)} tokens")
        places = range(len(request.context), len(whole))
        try:
            return LogLikelihood(
                logprob=sum(float(each[place]) for place in places),
                is_greedy=all(float(each[place]) >= max(best[place].values()) for place in places),
            )
        except (TypeError, ValueError, AttributeError):
            raise EngineError(f"{refusal}; some of them are missing") from None

    def peak_memory_bytes(self) -> int:
        """See `Engine.peak_memory_bytes`: 0, for a server does not tell."""
        return 0

    def close(self) -> None:
        """See `Engine.close`."""


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _length(exact: str, tokens: int) -> dict[str, Any]:
    """Ask for an output of exactly so many tokens."""
    if exact == "ignore_eos":
        return {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}
    lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    return {"max_tokens": tokens, "generation_config": json.dumps(lengths)}
