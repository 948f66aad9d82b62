"""The requests of a load, written ahead of their time, each with the part of the load that it belongs to."""

from __future__ import annotations

import collections
import heapq
import time
from collections.abc import Callable

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.sse import Decoded
from pytest_inferperf.measure.load.plan import LoadPlan
from pytest_inferperf.measure.load.records import FILLER, MEASURED, WARMUP
from pytest_inferperf.measure.load.slots import Request
from pytest_inferperf.measure.load.talks import Talk

__all__ = ["SizesOf", "Spare", "Supply", "TalkOf"]

SizesOf = Callable[[int], tuple[int, int]]
"""Says how many tokens request i sends and must get."""

Spare = Callable[[int], tuple[bytes, tuple[int, int]]]
"""Writes the body of the ith request that is not measured, with its sizes."""

TalkOf = Callable[[int], Talk]
"""Begins the conversation of measured request i."""

_clock = time.perf_counter
_AHEAD, _MAX_AHEAD = 64, 1024
"""Requests written ahead."""


class Supply:
    """Writes requests and hands them out: warm-up, then the measured ones, then fillers without end.

    With `make_spare` warm-up and fillers are of their own, and `make_body` writes measured requests alone.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        plan: LoadPlan,
        make_body: Callable[[int], bytes],
        sizes_of: SizesOf | None,
        make_spare: Spare | None = None,
        talk_of: TalkOf | None = None,
    ) -> None:
        self._sizes_of: SizesOf = sizes_of or (lambda _: (-1, plan.osl))
        self._head = endpoint.head()
        self._plan, self._make_body = plan, make_body
        self._ahead = max(_AHEAD, min(plan.concurrency, _MAX_AHEAD))
        self._prepared: collections.deque[bytes] = collections.deque()
        self._bodies = 0
        self._make_spare, self._talk_of = make_spare, talk_of
        self._begun = plan.begun
        """Measured requests that are no later turns."""

        self._follow_ups: list[tuple[float, int, Request]] = []
        """Later turns, by when they are due."""

        self._serial = 0
        self._spares: collections.deque[tuple[bytes, tuple[int, int]]] = collections.deque()
        self._spare_bodies = 0
        self.issued = [0, 0, 0]
        """How many of each kind were handed out, later turns of conversations aside."""

        self.warm = plan.arrivals is not None and plan.arrivals.has_end
        """Open loop: an answer has come, or none is waited for, so warm-up is over."""

        self._bodies_end = make_spare is not None or self.warm

    @property
    def behind(self) -> bool:
        """Whether there is something to write."""
        return self._lacks_spares or self._lacks_bodies

    @property
    def _lacks_spares(self) -> bool:
        return self._make_spare is not None and len(self._spares) < self._ahead

    @property
    def _lacks_bodies(self) -> bool:
        ended = self._bodies_end and self._bodies == self._begun
        return len(self._prepared) < self._ahead and not ended

    def fill(self) -> None:
        """Write all that is written ahead."""
        while self.behind:
            self.write_one()

    def write_one(self) -> None:
        """Write one request ahead of its time."""
        if self._lacks_spares:
            self._write_spare()
        else:
            self._write_body()

    def _write_body(self) -> None:
        self._prepared.append(self._request(self._make_body(self._bodies)))
        self._bodies += 1

    def _write_spare(self) -> None:
        assert self._make_spare is not None
        body, sizes = self._make_spare(self._spare_bodies)
        self._spares.append((self._request(body), sizes))
        self._spare_bodies += 1

    def _request(self, body: bytes) -> bytes:
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)

    def take(self, intended: float) -> Request:
        """Return the next request."""
        plan, issued = self._plan, self.issued
        warming = not self.warm if plan.arrivals is not None else issued[WARMUP] < plan.concurrency
        if warming and not issued[MEASURED]:
            kind = WARMUP
        elif plan.arrivals is None and self.next_follow_up <= _clock():
            return self.take_follow_up()
        else:
            kind = MEASURED if issued[MEASURED] < self._begun else FILLER
        issued[kind] += 1
        if kind != MEASURED and self._make_spare is not None:
            if not self._spares:
                self._write_spare()
            payload, (isl, osl) = self._spares.popleft()
            return Request(kind, payload, intended, isl=isl, osl=osl)
        if not self._prepared:
            self._write_body()
        index = self._bodies - len(self._prepared)
        isl, osl = self._sizes_of(index)
        request = Request(kind, self._prepared.popleft(), intended, isl=isl, osl=osl)
        if kind == MEASURED:
            request.number = issued[MEASURED] - 1
            if self._talk_of is not None:
                request.talk = self._talk_of(request.number)
        return request

    @property
    def next_follow_up(self) -> float:
        """When the next turn of a conversation is due; infinite where none is known."""
        return self._follow_ups[0][0] if self._follow_ups else float("inf")

    def follow(self, last: Request, talk: Talk, answer: Decoded, now: float) -> None:
        """Write the next turn of a conversation whose last one was answered at `now`."""
        body, osl = talk.next(answer)
        due = now + talk.think_time_s
        # Nobody but the server knows how long it is: its own answers are part of it.
        request = Request(MEASURED, self._request(body), due, isl=-1, osl=osl)
        request.talk, request.turn, request.number = talk, last.turn + 1, last.number
        self._serial += 1
        heapq.heappush(self._follow_ups, (due, self._serial, request))

    def take_follow_up(self) -> Request:
        """Return the turn of a conversation that is due next."""
        return heapq.heappop(self._follow_ups)[2]
