"""What the requests of one round say, written before the clock starts: drawn prompts, or those of a file."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from pytest_inferperf.engines.interface import GenerationRequest, Serving
from pytest_inferperf.measure.load.supply import Spare, TalkOf
from pytest_inferperf.measure.load.talks import Talk
from pytest_inferperf.measure.recorded.requests import marked, reworded, shared_share
from pytest_inferperf.measure.recorded.traces import trace_of
from pytest_inferperf.model.case import Workload

__all__ = ["RoundPrompts", "prompts_of"]

_OPEN_LOOP_SPARE_S = 2.0
"""Seconds of warm-up and fillers that requests are written for ahead of time."""

_MOST_SPARE = 1000
_THIS_PROCESS = random.SystemRandom().random()


def _spare_count(workload: Workload) -> int:
    # As many as there are slots, unless some requests take several times as long as others; under open loop nobody knows.
    return 2 * workload.concurrency or min(int(_OPEN_LOOP_SPARE_S * workload.request_rate) + 1, _MOST_SPARE)


class RoundPrompts(Protocol):
    """What the load generator asks of the prompts of a round."""

    def known_share(self, counted: int) -> float:
        """Return the share of `counted` prompt tokens, those of a whole run, that a prefix cache may know."""

    @property
    def spare(self) -> Spare | None:
        """Writes warm-up requests and fillers; None where they come from the same stream, or there are none."""

    @property
    def talk(self) -> TalkOf | None:
        """Begins the conversation of a request; None where each is one turn."""

    def body(self, index: int) -> bytes:
        """Return the body of request `index`."""

    def sizes(self, index: int) -> tuple[int, int]:
        """Return the tokens that it sends, -1 where only the server knows, and must get."""


def prompts_of(
    serving: Serving, workload: Workload, requests: Sequence[GenerationRequest], *, round_index: int = 0
) -> RoundPrompts:
    """Return the prompts of a round, those that are known to be needed already written."""
    if workload.dataset:
        return _RecordedPrompts(serving, workload, requests, round_index)
    if workload.trace:
        return _TracePrompts(serving, workload, requests)
    return _SyntheticPrompts(serving, workload, requests)


class _SyntheticPrompts:
    """The prompts of a round and ever more like them: warm-up and fillers come from the same stream."""

    spare: Spare | None = None
    talk: TalkOf | None = None

    def __init__(self, serving: Serving, workload: Workload, requests: Sequence[GenerationRequest]) -> None:
        self._serving = serving
        self._prompts = _prompts(requests, workload, fresh=serving.fresh_prompts, occasion=serving.occasion)
        self._sent: list[GenerationRequest] = []
        self._bodies: list[bytes] = []
        self._shared_share = workload.shared_prefix
        # Tokenizing is not part of the load.
        for _ in range(len(requests) + _spare_count(workload)):
            self._write()

    def _write(self) -> None:
        self._sent.append(next(self._prompts))
        self._bodies.append(self._serving.body(self._sent[-1]))

    def known_share(self, counted: int) -> float:
        """See `RoundPrompts.known_share`."""
        return self._shared_share

    def body(self, index: int) -> bytes:
        """See `RoundPrompts.body`."""
        while index >= len(self._bodies):
            self._write()
        return self._bodies[index]

    def sizes(self, index: int) -> tuple[int, int]:
        """See `RoundPrompts.sizes`: what the template of a chat adds to a prompt is the server's."""
        request = self._sent[index]
        return -1 if self._serving.endpoint.chat else len(request.prompt), request.max_tokens


class _RecordedPrompts:
    """Every record of a round is measured, with all its turns; warm-up and fillers are the first turns in other words.

    Tests at other loads send the same records to the same server, and one that outlives the run may have seen them before:
    every prompt begins with a mark of the workload and the occasion, and there of this process too.
    """

    def __init__(
        self, serving: Serving, workload: Workload, requests: Sequence[GenerationRequest], round_index: int
    ) -> None:
        self._serving = serving
        seed = f"{_THIS_PROCESS if serving.fresh_prompts else ''}/{sorted(workload.identity().items())}"
        if serving.occasion:
            seed += f"/{serving.occasion}"
        mark = f"{random.Random(seed).getrandbits(32):08x}"
        self._random = random.Random(f"{mark}/{requests[0].messages}")
        self._shared_share = shared_share(workload, requests, round_index=round_index, mark=mark)
        self._requests = [marked(request, mark) for request in requests]
        self._bodies = [serving.body(request) for request in self._requests]
        self._talks: list[Talk] = []
        self._think_time_s = workload.think_time
        self.talk: TalkOf | None = self._begin if any(request.follow_ups for request in requests) else None
        self._spares = [self._write_spare(index) for index in range(_spare_count(workload))]

    def body(self, index: int) -> bytes:
        """See `RoundPrompts.body`."""
        return self._bodies[index]

    def sizes(self, index: int) -> tuple[int, int]:
        """See `RoundPrompts.sizes`: the server reads text with a tokenizer and a template of its own."""
        return -1, self._requests[index].max_tokens

    def spare(self, index: int) -> tuple[bytes, tuple[int, int]]:
        """See `RoundPrompts.spare`."""
        while index >= len(self._spares):
            self._spares.append(self._write_spare(len(self._spares)))
        return self._spares[index]

    def known_share(self, counted: int) -> float:
        """See `RoundPrompts.known_share`: what first turns have in common, and what earlier turns of a conversation had."""
        if self.talk is None:
            return self._shared_share
        known = sum(talk.known_tokens + self._shared_share * talk.first_tokens for talk in self._talks)
        return known / max(counted, 1)

    def _begin(self, index: int) -> Talk:
        self._talks.append(Talk(self._requests[index], self._serving.body, think_time_s=self._think_time_s))
        return self._talks[-1]

    def _write_spare(self, index: int) -> tuple[bytes, tuple[int, int]]:
        request = reworded(self._requests[index % len(self._requests)], self._random)
        return self._serving.body(request), (-1, request.max_tokens)


class _TracePrompts:
    """The requests of a trace. For a server that may know them every token is another one, the same for all."""

    spare: Spare | None = None
    talk: TalkOf | None = None

    def __init__(self, serving: Serving, workload: Workload, requests: Sequence[GenerationRequest]) -> None:
        self._requests = requests
        if serving.fresh_prompts:
            self._requests = _renamed(requests, random.Random())
        elif serving.occasion:
            self._requests = _renamed(requests, random.Random(f"{serving.occasion}/{requests[0].prompt}"))
        self._chat = serving.endpoint.chat
        self._bodies = [serving.body(request) for request in self._requests]
        self._shared_share = trace_of(workload).shared_share(len(requests))

    def known_share(self, counted: int) -> float:
        """See `RoundPrompts.known_share`."""
        return self._shared_share

    def body(self, index: int) -> bytes:
        """See `RoundPrompts.body`."""
        return self._bodies[index]

    def sizes(self, index: int) -> tuple[int, int]:
        """See `RoundPrompts.sizes`: what the template of a chat adds to a prompt is the server's."""
        request = self._requests[index]
        return -1 if self._chat else len(request.prompt), request.max_tokens


def _renamed(requests: Sequence[GenerationRequest], shuffle: random.Random) -> list[GenerationRequest]:
    """Put another token in the place of each, by chance: what prompts have in common stays so, and no cache knows them."""
    tokens = sorted({token for request in requests for token in request.prompt})
    names = dict(zip(tokens, shuffle.sample(tokens, len(tokens)), strict=True))
    return [replace(request, prompt=tuple(names[token] for token in request.prompt)) for request in requests]


def _prompts(
    requests: Sequence[GenerationRequest], workload: Workload, *, fresh: bool, occasion: int = 0
) -> Iterator[GenerationRequest]:
    """Yield the prompts of a round and ever more like them: their tokens in another order, but for a shared prefix.

    `fresh` prompts are shuffled by chance from the start: no earlier run has sent them. Their shared prefix, too, is
    one of this process. From the second occasion on they are shuffled as its number says.
    """
    seed = f"{occasion}/" if occasion else ""
    shuffle = random.Random() if fresh else random.Random(f"{seed}{requests[0].prompt!r}")
    longest = max(requests, key=lambda request: len(request.prompt)).prompt
    common = longest[: workload.shared_tokens(len(longest))]
    if fresh:
        common = tuple(random.Random(_THIS_PROCESS).sample(common, len(common)))

    def other(request: GenerationRequest) -> GenerationRequest:
        size = len(request.prompt)
        shared = workload.shared_tokens(size)
        own = request.prompt[shared:]
        return replace(request, prompt=(*common[:shared], *shuffle.sample(own, len(own))))

    if not fresh and not occasion:
        yield from requests
    while True:
        yield from map(other, requests)
