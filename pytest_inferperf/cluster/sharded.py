"""One engine made of replicas: the questions of a task are dealt to them in order, and their answers put back in order.

What is dealt is cut the same way however many replicas there are, and each part is one call of one engine: so a replica
batches what any other would have batched, and the answers are those of one replica.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    Progress,
    TokenChunk,
)
from pytest_inferperf.errors import HardwareError, InferperfError, NodeLost

if TYPE_CHECKING:
    from pytest_inferperf.cluster.engine import ClusterEngine
    from pytest_inferperf.cluster.seat import Seat

__all__ = ["ShardedEngine", "part_size", "parts_of"]

T = TypeVar("T")

PART = 4
"""Most requests of a part, as a multiple of the concurrency: enough to fill the engine several times over."""

_PARTS = 12
"""Parts that a few questions are cut into all the same, as long as each fills the engine once: else nobody could help."""

_LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Requests that one replica answers in one call: `start` to `end` of those asked."""

    start: int
    end: int
    ask: Callable[[Engine, int, int], list[Any]]
    counts: bool
    """Whether it is work: to encode a text takes an engine no time."""


def parts_of(keys: Sequence[object], size: int) -> Iterator[tuple[int, int]]:
    """Cut requests into runs of about `size`; never between two of equal keys, which are of one document."""
    start = 0
    for end in range(1, len(keys) + 1):
        if end == len(keys) or (end - start >= size and keys[end] != keys[end - 1]):
            yield start, end
            start = end


def part_size(count: int, concurrency: int) -> int:
    """Return the requests of a part of `count`: whole fillings of the engine, however many replicas there are."""
    fillings = math.ceil(count / _PARTS / concurrency)
    return concurrency * min(PART, max(1, fillings))


class ShardedEngine(Engine):
    """Answers like `first`, with the help of replicas of it that join as the cluster has room for them.

    Nobody waits for a replica: two runs that each wait for the other's nodes would wait for ever. `close` ends them.
    """

    def __init__(self, first: ClusterEngine, *, replicas: int, progress: Progress | None = None) -> None:
        self.spec = first.spec
        self.info = first.info
        self._first = first
        self._say = progress or (lambda _line: None)
        self._state = threading.Condition()
        self._waiting: deque[_Part] = deque()
        self._answers: list[Any] = []
        self._open = 0
        self._working = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._replicas = replicas
        self._answered: Counter[tuple[ClusterEngine, str]] = Counter()
        """Requests that each has answered, and where."""

        self._parts: Counter[tuple[ClusterEngine, str]] = Counter()
        self._notes: list[str] = []
        self._joining = replicas - 1
        self._loss: NodeLost | None = None
        self._over = threading.Event()
        self._seats: list[Seat] = []
        """Seats on which replicas are starting: nobody waits for them at the end."""

        self._busy: set[ClusterEngine] = set()
        """Those that answer a part, or go on elsewhere with it."""

        self._threads = [threading.Thread(target=self._serve, args=(first,), name="inferperf-replica-1", daemon=True)]
        self._threads += [
            threading.Thread(target=self._join, name=f"inferperf-replica-{number}", daemon=True)
            for number in range(2, replicas + 1)
        ]
        self._working = 1
        for thread in self._threads:
            thread.start()

    # Dealing.

    def _deal(
        self, keys: Sequence[object], size: int, ask: Callable[[Engine, int, int], list[T]], *, counts: bool = True
    ) -> list[T]:
        """Deal parts of about `size`, and wait for all answers. What `counts` is told in the notes."""
        with self._state:
            if self._failure is not None:
                raise self._failure
            parts = [_Part(start=low, end=high, ask=ask, counts=counts) for low, high in parts_of(keys, size)]
            self._answers = [None] * len(keys)
            self._waiting.extend(parts)
            self._open = len(parts)
            self._state.notify_all()
            while self._open and self._failure is None:
                # In short waits, so that Ctrl-C is seen.
                self._state.wait(_LOOK_S)
            self._waiting.clear()
            if self._failure is not None:
                raise self._failure
            return self._answers

    def _join(self) -> None:
        """Open a replica, and let it work."""
        replica = None
        try:
            replica = self._open_replica()
        except (HardwareError, NodeLost):
            # The cluster has no room for it: the others do its part.
            pass
        except BaseException as error:
            self._fail(error)
        with self._state:
            self._joining -= 1
            self._working += replica is not None
            self._give_up_if_alone()
        if replica is not None:
            try:
                self._serve(replica)
            finally:
                replica.leave()

    def _open_replica(self) -> ClusterEngine | None:
        """Wait for a seat and start a replica there; None where all is answered meanwhile."""
        seat = self._first.another_seat(self._over)
        with self._state:
            if self._closed:
                seat.release()
                return None
            self._seats.append(seat)
        try:
            return self._first.replica(seat)
        except InferperfError:
            if self._over.is_set():
                return None
            raise
        finally:
            with self._state:
                self._seats.remove(seat)

    def _serve(self, engine: ClusterEngine) -> None:
        """Answer part after part, until nothing is left for ever."""
        while (part := self._next(engine)) is not None:
            try:
                answers = part.ask(engine, part.start, part.end)
            except NodeLost as error:
                if not self._moved(engine, part, error):
                    return
                continue
            except BaseException as error:
                self._fail(error, engine)
                return
            with self._state:
                self._busy.discard(engine)
                self._answers[part.start : part.end] = answers
                self._open -= 1
                if part.counts:
                    self._answered[engine, engine.where] += part.end - part.start
                    self._parts[engine, engine.where] += 1
                    done = len(self._answers) - sum(item.end - item.start for item in self._waiting)
                    self._say(f"{done} of {len(self._answers)} requests answered, {self._working} replicas")
                self._state.notify_all()

    def _next(self, engine: ClusterEngine) -> _Part | None:
        with self._state:
            self._busy.discard(engine)
            while not self._waiting:
                if self._closed:
                    return None
                self._state.wait(_LOOK_S)
            if self._closed:
                return None
            self._busy.add(engine)
            return self._waiting.popleft()

    def _moved(self, engine: ClusterEngine, part: _Part, error: NodeLost) -> bool:
        """Give a part back, and say whether the replica goes on elsewhere."""
        note = f"{error}; its questions went to the other replicas"
        with self._state:
            if self._closed:
                self._busy.discard(engine)
                return False
            self._waiting.appendleft(part)
            self._notes.append(note)
            self._state.notify_all()
        try:
            engine.relaunch(self._over)
        except NodeLost as second:
            with self._state:
                self._busy.discard(engine)
                self._working -= 1
                self._loss = second
                self._give_up_if_alone()
            return False
        except BaseException as second:
            self._fail(second, engine)
            return False
        with self._state:
            self._notes.remove(note)
            self._notes += engine.notes
        return True

    def _give_up_if_alone(self) -> None:
        """End it where a node was lost, and nobody is left who could answer. Called with the lock."""
        if not self._closed and self._loss is not None and not self._working and not self._joining:
            self._failure = self._failure or self._loss
        self._state.notify_all()

    def _fail(self, error: BaseException, engine: ClusterEngine | None = None) -> None:
        with self._state:
            if engine is not None:
                self._busy.discard(engine)
            if self._open or not self._closed:
                # Else all is answered, and nobody waits for it.
                self._failure = self._failure or error
            self._state.notify_all()

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Engine.notes`: who answered how much, where several were to, and what was lost."""
        with self._state:
            shares = [
                f"{where} {count} in {_parts_words(self._parts[engine, where])}"
                for (engine, where), count in self._answered.items()
            ]
            took_part = len({engine for engine, _ in self._answered})
            of = f"requests answered by {took_part} of {self._replicas} replicas: {', '.join(sorted(shares))}"
            return (*self._notes, *([of] if shares and self._replicas > 1 else []))

    def close(self) -> None:
        """End the replicas; the engine that they are replicas of stays. May be called again.

        Where not all is answered, after Ctrl-C or a failure, all that are in the middle of a part are ended.
        """
        with self._state:
            self._closed = True
            self._over.set()
            self._waiting.clear()
            starting = list(self._seats)
            early = self._open > 0 or self._failure is not None
            self._state.notify_all()
        for seat in starting:
            seat.release()
        try:
            for thread in self._threads:
                while thread.is_alive():
                    # Each time: one that goes on elsewhere may have started a process meanwhile.
                    self._call_off(first=early)
                    thread.join(_LOOK_S)
        except BaseException:
            self._call_off(first=True)
            raise

    def _call_off(self, *, first: bool) -> None:
        """End those in the middle of something, the `first` too: where all is answered, it goes on for the next test."""
        with self._state:
            busy = [engine for engine in self._busy if first or engine is not self._first]
        for engine in busy:
            engine.call_off()

    # What is dealt.

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        """See `Engine.generate`."""

        def ask(engine: Engine, start: int, end: int) -> list[Generation]:
            return engine.generate(requests[start:end], concurrency=concurrency)

        return self._deal(range(len(requests)), part_size(len(requests), concurrency), ask)

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        """See `Engine.loglikelihood`."""

        def ask(engine: Engine, start: int, end: int) -> list[LogLikelihood]:
            return engine.loglikelihood(requests[start:end], concurrency=concurrency)

        # Texts that are scored as a whole share the token that they begin after, and no document.
        keys = [item.context if len(item.context) > 1 else number for number, item in enumerate(requests)]
        return self._deal(keys, part_size(len(requests), concurrency), ask)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        """See `Engine.encode`. One of them does it, and another where its node is lost."""

        def ask(engine: Engine, start: int, end: int) -> list[tuple[int, ...]]:
            return engine.encode(texts[start:end], add_special_tokens=add_special_tokens)

        return self._deal(range(len(texts)), len(texts), ask, counts=False)

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """See `Engine.decode`. One of them does it, and another where its node is lost."""

        def ask(engine: Engine, start: int, end: int) -> list[str]:
            return engine.decode(sequences[start:end], skip_special_tokens=skip_special_tokens)

        return self._deal(range(len(sequences)), len(sequences), ask, counts=False)

    # What the first answers alone.

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        """See `Engine.stream`."""
        return self._first.stream(request)

    @property
    def prefix_token_id(self) -> int:
        """See `Engine.prefix_token_id`."""
        return self._first.prefix_token_id

    @property
    def eos_token_id(self) -> int:
        """See `Engine.eos_token_id`."""
        return self._first.eos_token_id

    @property
    def vocab_size(self) -> int:
        """See `Engine.vocab_size`."""
        return self._first.vocab_size

    @property
    def special_token_ids(self) -> frozenset[int]:
        """See `Engine.special_token_ids`."""
        return self._first.special_token_ids

    def peak_memory_bytes(self) -> int:
        """See `Engine.peak_memory_bytes`."""
        return self._first.peak_memory_bytes()


def _parts_words(count: int) -> str:
    return f"{count} part{'' if count == 1 else 's'}"
