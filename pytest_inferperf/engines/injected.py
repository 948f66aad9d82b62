"""An engine made worse on purpose: what is behind it cannot tell, so a gate that catches this catches the real thing.

Time is really spent: a round that is to take longer sleeps, and the times of its tokens move with it, so that a request
still ends within its round. Answers are made wrong for a share of the prompts, chosen by a hash of their tokens: the same
ones in every order, in every call, on every machine.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Literal

from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    TokenChunk,
    Watched,
)
from pytest_inferperf.model.injection import Injection
from pytest_inferperf.model.metrics import COMPARED_TOKENS
from pytest_inferperf.model.results import Hardware

__all__ = ["InjectedEngine", "wrong_text"]

Fate = Literal["kept", "wrong", "empty"]


class InjectedEngine(Engine):
    """Delegates to an engine, and makes it worse by what is injected."""

    def __init__(
        self, engine: Engine, injections: Sequence[Injection], *, score: float | None = None, seed: str = ""
    ) -> None:
        """Wrap `engine`.

        `score` (a share, 0 to 1) is what the unharmed engine is known to score: `accuracy:2pt` then spoils 2 / score
        percent of the prompts, because an answer that is wrong already costs nothing. None takes it to be 1. `seed`
        names the noise of the launches.
        """
        self.spec = engine.spec
        self.info = engine.info
        self._engine = engine
        self._injections = tuple(injections)
        self._seed = seed
        self._launch = 0
        size = {(item.kind, item.unit): item.size for item in injections}
        self._factor = (1 + size.get(("latency", "%"), 0.0) / 100) / (1 - size.get(("slowdown", "%"), 0.0) / 100)
        self._delay_s = size.get(("latency", "ms"), 0.0) / 1000
        self._noise = size.get(("noise", "%"), 0.0) / 100
        self._memory = 1 + size.get(("memory", "%"), 0.0) / 100
        self._loss = size.get(("accuracy", "pt"), 0.0) / 100
        self._errors = size.get(("errors", "%"), 0.0) / 100
        self._due_errors = 0.0
        self._disagreement = size.get(("agreement", "%"), 0.0) / 100
        self._answered: set[tuple[int, ...]] = set()
        self._score = score if score else 1.0
        self._saved_s = 0.0

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        """See `Engine.encode`."""
        return self._engine.encode(texts, add_special_tokens=add_special_tokens)

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """See `Engine.decode`."""
        return self._engine.decode(sequences, skip_special_tokens=skip_special_tokens)

    @property
    def prefix_token_id(self) -> int:
        """See `Engine.prefix_token_id`."""
        return self._engine.prefix_token_id

    @property
    def eos_token_id(self) -> int:
        """See `Engine.eos_token_id`."""
        return self._engine.eos_token_id

    @property
    def vocab_size(self) -> int:
        """See `Engine.vocab_size`."""
        return self._engine.vocab_size

    @property
    def special_token_ids(self) -> frozenset[int]:
        """See `Engine.special_token_ids`."""
        return self._engine.special_token_ids

    @property
    def devices(self) -> tuple[str, ...]:
        """See `Engine.devices`."""
        return self._engine.devices

    @property
    def watched_hardware(self) -> Hardware:
        """See `Engine.watched_hardware`."""
        return self._engine.watched_hardware

    @property
    def machine(self) -> Mapping[str, str] | None:
        """See `Engine.machine`."""
        return self._engine.machine

    @property
    def where(self) -> str:
        """See `Engine.where`."""
        return self._engine.where

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Engine.notes`."""
        return self._engine.notes

    def take_notes(self) -> tuple[str, ...]:
        """See `Engine.take_notes`: what the engine has told stays told, whatever is around it in the next test."""
        return self._engine.take_notes()

    def watch(self) -> AbstractContextManager[Watched] | None:
        """See `Engine.watch`."""
        return self._engine.watch()

    def clock_s(self) -> float:
        """See `Engine.clock_s`. Runs behind by what noise made faster: an engine cannot be hurried, its clock can."""
        return self._engine.clock_s() - self._saved_s

    @contextmanager
    def evaluators(self, replicas: int) -> Iterator[Engine]:
        """See `Engine.evaluators`: whoever answers, its answers are made wrong where those of one engine are."""
        with self._engine.evaluators(replicas) as engine:
            if engine is self._engine:
                yield self
            else:
                yield InjectedEngine(engine, self._injections, score=self._score, seed=self._seed)

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        """See `Engine.generate`."""
        start = self._engine.clock_s()
        answers = self._engine.generate(requests, concurrency=concurrency)
        # A slot answers its requests one after the other, and each of them is late.
        self._spend(self._engine.clock_s() - start, turns=math.ceil(len(requests) / max(1, concurrency)))
        late = [replace(item, token_times_s=tuple(map(self._late, item.token_times_s))) for item in answers]
        if self._is_load(requests, concurrency):
            return [self._fail(self._garble(item)) for item in late]
        return self._spoil(requests, late)

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        """See `Engine.stream`. A spoilt answer comes as one chunk."""
        if self._fate(request.prompt, self._share()) != "kept" and not request.ignore_eos:
            (answer,) = self.generate([request], concurrency=1)
            yield TokenChunk(token_ids=answer.token_ids, text=answer.text, time_s=answer.token_times_s[-1])
            return
        start = time.perf_counter()
        for chunk in self._engine.stream(request):
            due_s = self._late(chunk.time_s)
            time.sleep(max(0.0, start + due_s - time.perf_counter()))
            yield replace(chunk, time_s=due_s)

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        """See `Engine.loglikelihood`.

        The continuations of one context share its fate. Several: their order is turned around, so that the best becomes
        the last. One alone, or any without a context: it is half as likely per token as before, squared.
        """
        start = time.perf_counter()
        answers = self._engine.loglikelihood(requests, concurrency=concurrency)
        self._spend(time.perf_counter() - start, turns=1)
        if not self._loss:
            return answers
        groups: defaultdict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
        for index, item in enumerate(requests):
            # A context of one token is none: the prefix token, or the overlap of two windows of a text.
            own = item.continuation if len(item.context) < 2 else ()
            groups[(item.context, own)].append(index)
        found = list(answers)
        for (context, own), members in groups.items():
            choices = len({requests[index].continuation for index in members})
            if self._fate((*context, *own), self._share(choices)) == "kept":
                continue
            values = [answers[index].logprob for index in members]
            ends = min(values) + max(values)
            for index, value in zip(members, values, strict=True):
                found[index] = LogLikelihood(logprob=ends - value if choices > 1 else 2 * value, is_greedy=False)
        return found

    def peak_memory_bytes(self) -> int:
        """See `Engine.peak_memory_bytes`."""
        return round(self._engine.peak_memory_bytes() * self._memory)

    def forget_peak_memory(self) -> None:
        """See `Engine.forget_peak_memory`."""
        self._engine.forget_peak_memory()

    @property
    def can_relaunch(self) -> bool:  # type: ignore[override]
        """See `Engine.can_relaunch`."""
        return self._engine.can_relaunch

    def relaunch(self) -> None:
        """See `Engine.relaunch`. Every launch has a noise of its own."""
        self._engine.relaunch()
        self.info = self._engine.info
        self._launch += 1
        self._answered.clear()

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.close()

    def _speed(self) -> float:
        """Return by what the times of this launch are multiplied."""
        if not self._noise:
            return self._factor
        sigma = math.sqrt(math.log1p(self._noise**2))
        draw = random.Random(f"{self._seed}/{self._launch}").gauss(0.0, 1.0)
        return self._factor * math.exp(sigma * draw - sigma**2 / 2)

    def _late(self, time_s: float) -> float:
        return time_s * self._speed() + self._delay_s

    def _spend(self, took_s: float, *, turns: int) -> None:
        """Make a call that took `took_s` last as long as it should."""
        extra_s = took_s * (self._speed() - 1) + turns * self._delay_s
        if extra_s > 0:
            time.sleep(extra_s)
        else:
            self._saved_s -= extra_s

    def _is_load(self, requests: Sequence[GenerationRequest], concurrency: int) -> bool:
        """Whether requests are those of a workload, and not some of them asked for again to compare the answers."""
        if not requests or not all(request.ignore_eos for request in requests):
            return False
        prompts = {tuple(request.prompt) for request in requests}
        if concurrency == 1 and prompts <= self._answered:
            self._answered.clear()
            return False
        self._answered |= prompts
        return True

    def _fail(self, answer: Generation) -> Generation:
        """Let every so many requests fail, exactly as many as the share says."""
        self._due_errors += self._errors
        if self._due_errors < 1 - 1e-9:
            return answer
        self._due_errors -= 1
        return replace(answer, text="", token_ids=(), token_times_s=())

    def _garble(self, answer: Generation) -> Generation:
        """Change the last part of an answer, counted back from as much of it as is compared."""
        if not self._disagreement or not answer.token_ids:
            return answer
        compared = min(len(answer.token_ids), COMPARED_TOKENS)
        kept = math.floor(compared * (1 - self._disagreement) + 1e-9)
        ids = tuple(
            token if index < kept or token < 0 else (token + 1) % self.vocab_size
            for index, token in enumerate(answer.token_ids)
        )
        # Where ids are not known, texts are compared.
        start = len(answer.text) * kept // len(answer.token_ids)
        other = "*" if answer.text[start : start + 1] != "*" else "#"
        return replace(answer, token_ids=ids, text=answer.text[:start] + other + answer.text[start + 1 :])

    def _share(self, choices: int = 1) -> float:
        """Return the share of prompts to spoil.

        Turned around, the answer to a wrong one of k choices is right one time in k - 1, which gives some points back.
        """
        score = self._score
        lost = score - (1 - score) / (choices - 1) if choices > 1 else score
        return min(1.0, self._loss / lost) if lost > 0 else float(self._loss > 0)

    @staticmethod
    def _fate(tokens: Sequence[int], share: float) -> Fate:
        digest = hashlib.blake2b(struct.pack(f"<{len(tokens)}q", *tokens), digest_size=16).digest()
        first, second = struct.unpack("<QQ", digest)
        if first >= share * 2**64:
            return "kept"
        return "wrong" if second % 2 else "empty"

    def _spoil(self, requests: Sequence[GenerationRequest], answers: Sequence[Generation]) -> list[Generation]:
        """Answer the chosen prompts wrong. A request of a workload (`ignore_eos`) asks nothing and is left alone."""
        share = self._share()
        found = list(answers)
        for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            fate = "kept" if request.ignore_eos or not answer.token_ids else self._fate(request.prompt, share)
            if fate == "kept":
                continue
            text = wrong_text(answer.text) if fate == "wrong" else ""
            tokens = self._engine.encode([text])[0] if text else (self.eos_token_id,)
            # As many times as tokens: a longer answer ends when the true one did.
            times = answer.token_times_s
            times = (times + times[-1:] * len(tokens))[: len(tokens)]
            found[index] = replace(answer, text=text, token_ids=tokens, token_times_s=times, finish_reason="stop")
        return found


def _successors(alphabet: str) -> dict[str, str]:
    return dict(zip(alphabet, alphabet[1:] + alphabet[:1], strict=True))


_LOWER = "abcdefghijklmnopqrstuvwxyz"
_NEXT = _successors("123456789") | {"0": "1"} | _successors(_LOWER) | _successors(_LOWER.upper())
# Digits where there are any; else the letter of a choice; else every letter.
_ANSWERS = tuple(map(re.compile, (r"[0-9]", r"\b[A-Z]\b", r"[a-zA-Z]")))


def wrong_text(text: str) -> str:
    """Return another text of the same form: `#### 42` becomes `#### 53`, `(A)` becomes `(B)`, `Paris` becomes `Qbsjt`."""
    for pattern in _ANSWERS:
        wrong, count = pattern.subn(lambda match: _NEXT[match[0]], text)
        if count:
            return wrong
    return f"{text}0"
