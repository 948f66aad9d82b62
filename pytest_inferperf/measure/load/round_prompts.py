"""What the requests of one round say, written before the clock starts: drawn prompts, or those of a file."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from pytest_inferperf.engines.interface import GenerationRequest, Serving
from pytest_inferperf.measure.load.hands import Hand, Played
from pytest_inferperf.measure.load.processes import Bodies
from pytest_inferperf.measure.load.talks import WrittenTurn, said_before
from pytest_inferperf.measure.recorded.requests import marked, shared_share
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

    def known_share(self, answered: Mapping[str, Any]) -> float:
        """Return the share of the prompt tokens that a prefix cache may know, given the rows of all answered requests."""

    def slice(self, index: int, of: int) -> Bodies:
        """See `Texts.slice`."""


def prompts_of(
    serving: Serving,
    workload: Workload,
    requests: Sequence[GenerationRequest],
    *,
    round_index: int = 0,
    attempt: int = 0,
) -> RoundPrompts:
    """Return the prompts of a round, those that are known to be needed already written.

    From the second `attempt` at a load on they are others, which no cache knows from those that were given up.
    """
    if attempt:
        serving = replace(serving, fresh_prompts=True)
    if workload.dataset:
        return _RecordedPrompts(serving, workload, requests, round_index, attempt)
    if workload.trace:
        return _TracePrompts(serving, workload, requests)
    return _SyntheticPrompts(serving, workload, requests)


class _SyntheticPrompts:
    """The prompts of a round and ever more like them: warm-up and fillers come from the same stream."""

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

    def known_share(self, answered: Mapping[str, Any]) -> float:
        """See `RoundPrompts.known_share`."""
        return self._shared_share

    def slice(self, index: int, of: int) -> Bodies:
        """See `RoundPrompts.slice`: every nth for each process."""
        return Bodies(
            make_body=lambda number: self._body(of * number + index),
            sizes_of=lambda number: self._sizes(of * number + index),
        )

    def _body(self, index: int) -> bytes:
        while index >= len(self._bodies):
            self._write()
        return self._bodies[index]

    def _sizes(self, index: int) -> tuple[int, int]:
        """Return the tokens of a request. What the template of a chat adds to a prompt is the server's."""
        request = self._sent[index]
        return -1 if self._serving.endpoint.chat else len(request.prompt), request.max_tokens


class _DealtPrompts:
    """Requests of a file: each goes out once, however many send them."""

    def __init__(self, hand: Hand) -> None:
        self._hand = hand
        # Writing is not part of the load.
        self._alone = Played(hand)

    def slice(self, index: int, of: int) -> Bodies:
        """See `RoundPrompts.slice`: whole conversations."""
        return (self._alone if of == 1 else Played(self._hand.part(index, of))).bodies()


class _RecordedPrompts(_DealtPrompts):
    """Every record of a round is measured, with all its turns; warm-up and fillers are the first turns in other words.

    Tests at other loads send the same records to the same server, and one that outlives the run may have seen them before:
    every prompt begins with a mark of the workload, the occasion and the attempt, and there of this process too.
    """

    def __init__(
        self,
        serving: Serving,
        workload: Workload,
        requests: Sequence[GenerationRequest],
        round_index: int,
        attempt: int,
    ) -> None:
        seed = f"{_THIS_PROCESS if serving.fresh_prompts else ''}/{sorted(workload.identity().items())}"
        if serving.occasion:
            seed += f"/{serving.occasion}"
        if attempt:
            seed += f"/attempt {attempt}"
        mark = f"{random.Random(seed).getrandbits(32):08x}"
        self._shared_share = shared_share(workload, requests, round_index=round_index, mark=mark)
        self._has_talks = any(request.follow_ups for request in requests)

        def written(request: GenerationRequest) -> WrittenTurn:
            # The server reads text with a tokenizer and a template of its own.
            return WrittenTurn(
                body=serving.body(request), isl=-1, osl=request.max_tokens, messages=tuple(request.messages)
            )

        super().__init__(
            Hand(
                conversations=tuple(
                    (written(marked(request, mark)), *map(written, request.follow_ups)) for request in requests
                ),
                has_talks=self._has_talks,
                think_time_s=workload.think_time,
                spares=_spare_count(workload),
                spare_seed=f"{mark}/{requests[0].messages}",
            )
        )

    def known_share(self, answered: Mapping[str, Any]) -> float:
        """See `RoundPrompts.known_share`: what first turns have in common, and what earlier turns of a conversation had."""
        if not self._has_talks:
            return self._shared_share
        import numpy as np

        prompts = np.maximum(answered["prompt_tokens"], 0)
        known = said_before(answered) + self._shared_share * prompts[answered["turn"] == 1].sum()
        return float(known / max(prompts.sum(), 1))


class _TracePrompts(_DealtPrompts):
    """The requests of a trace. For a server that may know them every token is another one, the same for all."""

    def __init__(self, serving: Serving, workload: Workload, requests: Sequence[GenerationRequest]) -> None:
        if serving.fresh_prompts:
            requests = _renamed(requests, random.Random())
        elif serving.occasion:
            requests = _renamed(requests, random.Random(f"{serving.occasion}/{requests[0].prompt}"))
        self._shared_share = trace_of(workload).shared_share(len(requests))

        def written(request: GenerationRequest) -> WrittenTurn:
            # What the template of a chat adds to a prompt is the server's.
            isl = -1 if serving.endpoint.chat else len(request.prompt)
            return WrittenTurn(body=serving.body(request), isl=isl, osl=request.max_tokens)

        super().__init__(Hand(conversations=tuple((written(request),) for request in requests)))

    def known_share(self, answered: Mapping[str, Any]) -> float:
        """See `RoundPrompts.known_share`."""
        return self._shared_share


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
