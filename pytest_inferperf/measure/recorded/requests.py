"""From the records of a file to the requests of a round, and to others like them that no run has sent."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_inferperf.engines.interface import Engine, GenerationRequest, Message
from pytest_inferperf.engines.openai.chat import text_of
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.measure.agreement import common_prefix
from pytest_inferperf.measure.recorded.datasets import Dataset, Turn, read_dataset
from pytest_inferperf.measure.serving import serving_of
from pytest_inferperf.model.case import Workload

__all__ = [
    "dataset_of",
    "dataset_requests",
    "marked",
    "new_from_file",
    "other_words",
    "reworded",
    "shared_part",
    "shared_share",
]

_Encode = Callable[[str], Sequence[int]]


def dataset_of(workload: Workload) -> Dataset:
    """Read the file of a workload that has one. Raises `InvalidRun` where it is no longer the one that was collected."""
    found = read_dataset(Path(workload.dataset_path))
    if found.label != workload.dataset:
        raise InvalidRun(f"{found.path}: the file has changed since the tests were collected: run them again.")
    return found


def dataset_requests(engine: Engine, workload: Workload, *, round_index: int) -> list[GenerationRequest]:
    """Return the requests of one round: the records of its part of a permutation of the file, which the seed decides.

    No two rounds have a record in common, and every session has the same. An output is as long as `osl` says, else as the
    file says, else as its own answer is by the tokenizer. Raises `InvalidRun` where the file has no more records, or a
    request does not fit the engine's context, and `EngineError` where an answer is to be counted without a tokenizer.
    """
    dataset = dataset_of(workload)
    records, order = _permuted(dataset, workload)
    count = workload.requests_per_round
    first, last = round_index * count, (round_index + 1) * count
    if last > len(records):
        raise InvalidRun(
            f"round {round_index + 1}, warm-up rounds counted, needs the records {first + 1} to {last} of "
            f"{workload.dataset}, and it has {len(records)} usable ones: lower num_requests, or give a longer file."
        )
    serving = serving_of(engine, workload)
    encode: _Encode | None = serving.encode if serving is not None else _encode(engine)
    lengths = random.Random(f"{workload.seed}/{round_index}")

    def request(turn: Turn) -> GenerationRequest:
        prompt = tuple(encode(text_of(turn.messages))) if encode is not None else ()
        osl = workload.output_lengths.draw(lengths) if workload.osl else _length(turn, engine)
        return GenerationRequest(prompt=prompt, messages=turn.messages, max_tokens=osl, ignore_eos=True)

    return [_conversation([request(turn) for turn in records[at]], engine, workload) for at in order[first:last]]


def _permuted(dataset: Dataset, workload: Workload) -> tuple[list[tuple[Turn, ...]], list[int]]:
    """Return the records to send, and the order in which rounds take them."""
    records = dataset.usable(needs_length=not workload.osl, turns=workload.turns)
    return records, random.Random(f"{workload.seed}/dataset").sample(range(len(records)), len(records))


def _conversation(turns: Sequence[GenerationRequest], engine: Engine, workload: Workload) -> GenerationRequest:
    """Return the first turn with the others as what follows. Raises `InvalidRun` where the last one would not fit."""
    first, *others = turns
    said, asked = (sum(map(size, turns)) for size in (lambda one: len(one.prompt), lambda one: one.max_tokens))
    if said + asked > engine.info.max_model_len:
        what = f"{len(turns)} turns" if others else "a prompt"
        raise InvalidRun(
            f"{workload.dataset}: {what} of {said} tokens and an output of {asked} do not fit the engine's context of "
            f"{engine.info.max_model_len} tokens: leave such records out of the file."
        )
    return replace(first, follow_ups=tuple(others))


def new_from_file(engine: Engine, workload: Workload, *, count: int) -> list[GenerationRequest]:
    """Return prompts of the file's words that no run has sent before. Raises like `dataset_requests`."""
    known = itertools.cycle(dataset_requests(engine, workload, round_index=0))
    generator = random.SystemRandom()
    new = [reworded(request, generator) for request in itertools.islice(known, count)]
    if serving_of(engine, workload) is not None:
        return new
    encode = _encode(engine)
    return [replace(request, prompt=tuple(encode(text_of(request.messages)))) for request in new]


def _encode(engine: Engine) -> _Encode:
    return lambda text: engine.encode([text])[0]


def _length(turn: Turn, engine: Engine) -> int:
    return turn.output_tokens or max(1, len(engine.encode([turn.answer])[0]))


def marked(request: GenerationRequest, mark: str) -> GenerationRequest:
    """Return a request whose prompt begins with a mark, so that no cache knows it from a run with another one."""
    (role, content), *rest = request.messages
    return replace(request, messages=((role, f"{mark} {content}"), *rest))


def reworded(request: GenerationRequest, generator: random.Random) -> GenerationRequest:
    """Return a request for the same words of the user in another order, with a mark before them: nobody has sent it.

    System messages stay, so that what prompts share remains shared. `prompt` has the tokens in another order, too.
    """
    prompt = tuple(generator.sample(request.prompt, len(request.prompt)))
    return replace(request, prompt=prompt, messages=other_words(request.messages, generator), follow_ups=())


def other_words(messages: Sequence[Message], generator: random.Random) -> tuple[Message, ...]:
    """Return messages in which a user says the same words in another order, with a mark before them; see `reworded`."""

    def other(message: Message) -> Message:
        role, content = message
        if role != "user":
            return message
        words = content.split()
        return role, " ".join([f"{generator.getrandbits(32):08x}", *generator.sample(words, len(words))])

    return tuple(map(other, messages))


def shared_share(workload: Workload, requests: Sequence[GenerationRequest], *, round_index: int, mark: str) -> float:
    """Return the share of the characters of a round's first turns that a prefix cache may know.

    That is what a first turn has in common with another one that the session has sent by then, and what fillers keep of
    it: all but what its user says. `mark` stands before each of them.
    """
    records, order = _permuted(dataset_of(workload), workload)
    count = workload.requests_per_round
    sent = sorted(text_of(records[at][0].messages) for at in order[: (round_index + 1) * count])
    known = total = 0
    for request in requests:
        text = text_of(request.messages)
        kept = text_of([*itertools.takewhile(lambda message: message[0] != "user", request.messages)])
        known += max(shared_part(text, sent), common_prefix(text, kept)) + len(mark)
        total += len(text) + len(mark)
    return known / total


def shared_part(text: str, texts: Sequence[str]) -> int:
    """Return with how many characters of a text another one of `texts` begins, too: they are sorted, and it is one of them."""
    at = bisect.bisect_left(texts, text)
    # The text itself is one of them, once.
    others = [*texts[max(at - 1, 0) : at], *texts[at + 1 : at + 2]]
    return max((common_prefix(text, other) for other in others), default=0)
