"""An lm-eval model over an `Engine`. Imported only once lm-eval is known to be installed.

Text becomes tokens exactly as lm-eval's own `hf` model does it (0.4.13), so that both score the same questions:
special tokens are the tokenizer's default, left out where the text already starts with the prefix token; a context's
trailing spaces go to the continuation; the continuation is what the whole text has after the tokens of the context.
Two things differ on purpose. All strings of a task are encoded in one call. And nothing is ever cut: `hf` drops the
start of a prompt that is too long and logs a warning, which scores another question; here that is an `InvalidRun`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pytest_inferperf.engines.interface import Engine, GenerationRequest, LogLikelihood, LogLikelihoodRequest, Progress
from pytest_inferperf.errors import EngineError, InvalidRun, TaskError

if TYPE_CHECKING:
    LM = object
else:
    from lm_eval.api.model import LM

__all__ = ["DEFAULT_MAX_GEN_TOKS", "EngineLM", "GenerationOptions", "InParts"]

P = ParamSpec("P")
Q = TypeVar("Q")
T = TypeVar("T")
Tokens = tuple[int, ...]

DEFAULT_MAX_GEN_TOKS = 256
InParts = Callable[[Sequence[Any], Callable[[Sequence[int]], list[Any]]], list[Any]]

_LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_OTHER_KEYS = ("until", "do_sample", "temperature", "top_p", "num_beams")


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """A task's `generation_kwargs`, understood."""

    until: tuple[str, ...] = ()
    max_gen_toks: int = DEFAULT_MAX_GEN_TOKS
    temperature: float = 0.0
    top_p: float = 1.0

    @classmethod
    def parse(cls, given: Mapping[str, Any], *, where: str) -> GenerationOptions:
        """Read the options, refusing what the engine interface cannot do. `where` names the document."""
        unknown = sorted(set(given) - {*_LENGTH_KEYS, *_OTHER_KEYS})
        if unknown or given.get("num_beams", 1) != 1:
            what = ", ".join(f"{key}={given[key]!r}" for key in unknown or ["num_beams"])
            raise TaskError(
                f"{where}: generation_kwargs has {what}, which engines do not support. Remove it from the task; "
                f"supported: {', '.join((*_LENGTH_KEYS, *_OTHER_KEYS[:-1]))}, num_beams=1."
            )
        until = given.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        temperature = float(given.get("temperature") or 0.0)
        sample = given.get("do_sample")
        if sample and temperature <= 0:
            raise TaskError(
                f"{where}: generation_kwargs has do_sample: true and no temperature above 0. "
                "Write temperature: 1.0 beside it, or do_sample: false for greedy decoding."
            )
        return cls(
            until=tuple(item for item in stops if item),
            max_gen_toks=int(next((given[key] for key in _LENGTH_KEYS if given.get(key)), DEFAULT_MAX_GEN_TOKS)),
            # do_sample: false is greedy whatever the temperature says, as lm-eval has it.
            temperature=temperature if sample is not False else 0.0,
            top_p=float(given.get("top_p") or 1.0),
        )


class EngineLM(LM):
    """Answers lm-eval's requests with an `Engine`."""

    def __init__(self, engine: Engine, *, concurrency: int = 64, progress: Progress | None = None) -> None:
        super().__init__()
        self._engine = engine
        self._concurrency = concurrency
        self._say = progress or (lambda line: None)
        self._prefix = engine.prefix_token_id
        self._prefix_text = engine.decode([[self._prefix]], skip_special_tokens=False)[0]
        self._eos_text = engine.decode([[engine.eos_token_id]], skip_special_tokens=False)[0]
        self.in_parts: InParts | None = None
        """What splits the requests up before the engine is asked; None asks all at once."""

        self.engine_failure: Exception | None = None
        """The last exception that came out of the engine, so that a caller can tell it from one of a task's code."""

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score each continuation after its context."""
        pairs = self._encode_pairs([(str(item.args[0]), str(item.args[1])) for item in requests])
        for item, (_, continuation) in zip(requests, pairs, strict=True):
            if not continuation:
                raise TaskError(
                    f"{_document(item)}: the continuation {item.args[1]!r} has no tokens to score. "
                    "Remove the empty choice or target from the task."
                )
        self._check_length(requests, pairs)

        def ask(numbers: Sequence[int]) -> list[tuple[float, bool]]:
            chosen = [requests[number] for number in numbers]
            answers = self._score(chosen, [pairs[number] for number in numbers], kind="loglikelihood")
            return [(item.logprob, item.is_greedy) for item in answers]

        return self._split(requests, ask)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score each whole text, in windows of the engine's length that overlap in one token."""
        texts = self._encode([str(item.args[0]) for item in requests])

        def ask(numbers: Sequence[int]) -> list[float]:
            windows: list[tuple[Tokens, Tokens]] = []
            owners: list[int] = []
            for place, number in enumerate(numbers):
                for window in get_rolling_token_windows(
                    token_list=list(texts[number]),
                    prefix_token=self._prefix,
                    max_seq_len=self._engine.info.max_model_len,
                    context_len=1,
                ):
                    context, continuation = make_disjoint_window(window)
                    windows.append((tuple(context), tuple(continuation)))
                    owners.append(place)
            owned = [requests[numbers[place]] for place in owners]
            totals = [0.0] * len(numbers)
            for place, answer in zip(owners, self._score(owned, windows, kind="loglikelihood_rolling"), strict=True):
                totals[place] += answer.logprob
            return totals

        return self._split(requests, ask)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Complete each prompt up to the first of its stop strings."""
        options = [GenerationOptions.parse(item.args[1], where=_document(item)) for item in requests]
        prompts = [tokens or (self._prefix,) for tokens in self._encode([str(item.args[0]) for item in requests])]
        limit = self._engine.info.max_model_len
        self._refuse_long(
            [
                f"{_document(item)}: {len(prompt)} prompt tokens + {option.max_gen_toks} to generate > {limit}"
                for item, prompt, option in zip(requests, prompts, options, strict=True)
                if len(prompt) + option.max_gen_toks > limit
            ],
            total=len(requests),
        )
        asked = [
            GenerationRequest(
                prompt=prompt,
                max_tokens=option.max_gen_toks,
                stop=option.until,
                temperature=option.temperature,
                top_p=option.top_p,
                # Repeats of one document must differ, and differ in the same way in the next run.
                seed=index,
            )
            for index, (prompt, option) in enumerate(zip(prompts, options, strict=True))
        ]

        def ask(numbers: Sequence[int]) -> list[str]:
            self._say(f"generate {len(numbers)} answers")
            chosen = [asked[number] for number in numbers]
            answers = self._ask(self._engine.generate, chosen, concurrency=self._concurrency)
            # The end-of-sequence token ends the output; its spelling, written out character by character, does too.
            return [
                _cut(answer.text, (*request.stop, self._eos_text))
                for answer, request in zip(answers, chosen, strict=True)
            ]

        return self._split(requests, ask)

    def _split(self, requests: Sequence[Any], ask: Callable[[Sequence[int]], list[T]]) -> list[T]:
        """Have all requests answered by `ask`, which takes their numbers: at once, or as `in_parts` splits them up.

        What is checked of the requests is checked of all before the first is asked.
        """
        return ask(range(len(requests))) if self.in_parts is None else self.in_parts(requests, ask)

    def _encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenize as `hf` does: with the tokenizer's special tokens, unless the text brings the prefix token along."""
        keys = [self._as_hf(text) for text in texts]
        tokens = self._encode_distinct(keys)
        return [tokens[key] for key in keys]

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Tokens, Tokens]]:
        # Trailing spaces of a context belong to the first word after it. Without a context, the continuation is
        # encoded plain, and the prefix token stands in for the context.
        heads = [self._as_hf(context.rstrip()) if context else None for context, _ in pairs]
        wholes = [
            self._as_hf(context + continuation) if context else (continuation, True) for context, continuation in pairs
        ]
        tokens = self._encode_distinct([*(head for head in heads if head is not None), *wholes])
        found: list[tuple[Tokens, Tokens]] = []
        for head_key, whole_key in zip(heads, wholes, strict=True):
            whole = tokens[whole_key]
            head = tokens[head_key] if head_key is not None else ()
            if head:
                found.append((head, whole[len(head) :]))
            elif whole[:1] == (self._prefix,):
                found.append((whole[:1], whole[1:]))
            else:
                found.append(((self._prefix,), whole))
        return found

    def _as_hf(self, text: str) -> tuple[str, bool]:
        return text, text.startswith(self._prefix_text)

    def _encode_distinct(self, keys: Iterable[tuple[str, bool]]) -> dict[tuple[str, bool], Tokens]:
        """Tokenize (text, without special tokens) keys: each distinct one once, in at most two calls."""
        found: dict[tuple[str, bool], Tokens] = {}
        distinct = dict.fromkeys(keys)
        for plain in (False, True):
            texts = [text for text, without in distinct if without is plain]
            if texts:
                tokens = self._ask(self._engine.encode, texts, add_special_tokens=not plain)
                found |= {(text, plain): tuple(item) for text, item in zip(texts, tokens, strict=True)}
        return found

    def _check_length(self, requests: Sequence[Any], pairs: Sequence[tuple[Tokens, Tokens]]) -> None:
        # The last token is predicted and never fed, so one token more than the engine's length still fits.
        limit = self._engine.info.max_model_len
        self._refuse_long(
            [
                f"{_document(item)}: {len(context)} context + {len(continuation)} continuation tokens > {limit} + 1"
                for item, (context, continuation) in zip(requests, pairs, strict=True)
                if len(context) + len(continuation) > limit + 1
            ],
            total=len(requests),
        )

    def _refuse_long(self, long: Sequence[str], *, total: int) -> None:
        if long:
            raise InvalidRun(
                f"{len(long)} of {total} requests do not fit the engine's max_model_len "
                f"({self._engine.info.max_model_len} tokens); the first is {long[0]}. Nothing is cut, because a "
                "shorter prompt is another question: load the engine with a larger max_model_len, or lower the task's "
                "num_fewshot or max_gen_toks."
            )

    def _score(
        self, requests: Sequence[Any], pairs: Sequence[tuple[Tokens, Tokens]], *, kind: str
    ) -> list[LogLikelihood]:
        if not pairs:
            return []
        self._say(f"score {len(pairs)} {kind} requests")
        answers = self._ask(
            self._engine.loglikelihood,
            [LogLikelihoodRequest(context=context, continuation=continuation) for context, continuation in pairs],
            concurrency=self._concurrency,
        )
        # An arg max over NaN still gives an answer, so a broken engine would score like a guessing one.
        broken = [item for item, answer in zip(requests, answers, strict=True) if not math.isfinite(answer.logprob)]
        if broken:
            raise InvalidRun(
                f"{len(broken)} of {len(pairs)} log-likelihoods are not finite numbers; the first is "
                f"{_document(broken[0])}. The engine computes NaN or infinity: check its checkpoint and its data types."
            )
        return answers

    def _ask(
        self,
        call: Callable[Concatenate[Sequence[Q], P], list[T]],
        asked: Sequence[Q],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[T]:
        try:
            answers = call(asked, *args, **kwargs)
        except Exception as error:
            self.engine_failure = error
            raise
        if len(answers) != len(asked):
            raise EngineError(
                f"the engine gave {len(answers)} answers to {len(asked)} requests. "
                "Report it to whoever maintains the backend: an engine answers every request, in order."
            )
        return answers


def _cut(text: str, stops: Iterable[str]) -> str:
    for stop in stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text


def _document(request: Any) -> str:
    return f"document {request.doc_id} of {request.task_name}"
