"""What of a load has ended: its answers, kept until there is time to read them, and when its window begins and ends."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence

from pytest_inferperf.engines.openai.connection import ConnectionFailed
from pytest_inferperf.engines.openai.late import LateReader
from pytest_inferperf.engines.openai.sse import CountTokens, Decoded
from pytest_inferperf.measure.load.accounts import Accounts
from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.conductor import Conductor
from pytest_inferperf.measure.load.parts import Part
from pytest_inferperf.measure.load.plan import LoadPlan
from pytest_inferperf.measure.load.records import MEASURED, WARMUP
from pytest_inferperf.measure.load.slots import Request, Slot
from pytest_inferperf.measure.load.state import LoadState, load_state
from pytest_inferperf.measure.load.talks import Talk

__all__ = ["Ledger"]

_UNREAD_BYTES = 32 * 2**20
"""What responses that wait to be read may hold: those that find no idle moment are read after the window."""


class Ledger:
    """Counts down what is left of a load, and reads what has come of it when the generator has a moment."""

    def __init__(self, plan: LoadPlan, conductor: Conductor, *, count_tokens: CountTokens | None) -> None:
        self._plan, self._conductor = plan, conductor
        self._accounts = Accounts(count_tokens=count_tokens, kept=plan.kept)
        self._ended: collections.deque[tuple[Request, LateReader, int, float, ConnectionFailed | None]] = (
            collections.deque()
        )
        self._unread_bytes = 0
        self._left = plan.num_requests
        self._warming = plan.concurrency
        self._warmed = self._last = 0.0
        """When the last warm-up request and the last measured one ended, so far."""

        self._start: float | None = None
        self._first_measured: float | None = None
        self.stop = False
        """Whether the load has ended."""

        self.retries = self.reconnects = 0

    @property
    def behind(self) -> bool:
        """Whether there is something to read."""
        return bool(self._ended)

    @property
    def full(self) -> bool:
        """Whether what waits to be read must be read now, idle moment or not."""
        return self._unread_bytes > _UNREAD_BYTES

    def state(self, slots: Sequence[Slot], begin: float) -> LoadState:
        """Say how far the load is; from any thread."""
        return load_state(
            self._accounts,
            slots,
            done=self._plan.num_requests - self._left,
            requests=self._plan.num_requests,
            begin=begin,
            first_measured=self._first_measured,
            now=time.perf_counter(),
        )

    def open(self, request: Request) -> None:
        """Take a request that is now due."""
        if request.kind == MEASURED and self._first_measured is None:
            self._first_measured = request.intended or time.perf_counter()
            if self._plan.arrivals is not None:
                self._start = request.intended

    def close(self, request: Request, reader: LateReader, now: float, error: ConnectionFailed | None) -> None:
        """Count a request that has ended, and keep it for reading."""
        held = reader.held
        self._ended.append((request, reader, held, now, error))
        self._unread_bytes += held
        if request.kind == MEASURED:
            self._last = max(self._last, now)
            self._count_down(1)
        elif request.kind == WARMUP and self._plan.arrivals is None:
            self._warming -= 1
            self._warmed = max(self._warmed, now)
            if not self._warming:
                self._start = self._warmed

    def end(self, request: Request, talk: Talk, now: float) -> None:
        """End a conversation whose last request failed: none that was to follow can be asked, and all of them have failed."""
        missing = talk.end()
        self._accounts.unasked(missing, now, after=request.turn + 1, number=request.number)
        if missing:
            self._count_down(missing)

    def _count_down(self, count: int) -> None:
        self._left -= count
        if not self._left:
            self.stop = self._conductor.ended()

    def follow(self, request: Request, talk: Talk, reader: LateReader, now: float) -> Decoded | None:
        """Return the answer that a conversation goes on with, read at once; None where it ends, or has no more turns."""
        if not talk.left:
            return None
        answer = self._accounts.answer(reader, request.osl)
        if answer is None:
            self.end(request, talk, now)
        return answer

    def read_one(self) -> None:
        """Read the response that has waited longest."""
        request, reader, held, done, error = self._ended.popleft()
        self._unread_bytes -= held
        self._accounts.read(request, reader, done, error)

    def part(self, slots: Sequence[Slot], issued: Sequence[int], meter: ClockMeter, *, looked: float) -> Part:
        """Read all that is left, and return what was sent and got. `looked` is when sockets were looked at for the last time."""
        while self._ended:
            self.read_one()
        accounts = self._accounts
        flying = [slot.request.sent for slot in slots if slot.request is not None and slot.request.sent]
        return Part(
            records=accounts.records,
            itl_ms=accounts.itl_ms,
            chunk_gap_ms=accounts.chunk_gap_ms,
            failures=accounts.failures,
            count_sources=accounts.sources,
            cached_tokens=accounts.cached_tokens,
            outputs=accounts.outputs.kept,
            meter=meter,
            issued=tuple(issued),
            flying=tuple(flying),
            warmed=self._start,
            first_measured=self._first_measured,
            last=self._last if not self._left else looked,
            retries=self.retries,
            reconnects=self.reconnects,
        )
