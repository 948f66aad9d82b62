"""The thread that sends a load: it polls sockets, takes one time per poll, and reads what it got when it is idle.

One turn: wait for sockets; receive from every one that is ready, each with the kernel's time of its arrival; find which
responses ended and send the next request on each at once. When nothing is ready, read one ended response (its events,
tokens, usage) and write one request ahead. So no timestamp waits for other sockets, for parsing, or for the process to be scheduled.
"""

from __future__ import annotations

import collections
import heapq
import time
from collections.abc import Iterator

from pytest_inferperf.engines.openai.connection import ConnectionFailed
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.http import HttpError
from pytest_inferperf.engines.openai.late import LateReader
from pytest_inferperf.engines.openai.sse import CountTokens
from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.conductor import Conductor
from pytest_inferperf.measure.load.interrupt import Interrupt
from pytest_inferperf.measure.load.ledger import Ledger
from pytest_inferperf.measure.load.parts import Part
from pytest_inferperf.measure.load.patience import cut_off, overdue
from pytest_inferperf.measure.load.plan import LoadPlan
from pytest_inferperf.measure.load.pool import MIN_SPARE, Pool
from pytest_inferperf.measure.load.rest import Rest
from pytest_inferperf.measure.load.slots import Request, Slot, Slots
from pytest_inferperf.measure.load.state import LoadState
from pytest_inferperf.measure.load.supply import Supply
from pytest_inferperf.polling import READ, WRITE

__all__ = ["Sender"]

_clock = time.perf_counter
_SCAN_S = 0.2
_AT_ONCE = 64
"""Sockets that are received from before the next requests go out on those that are done: after a burst of a thousand, the
first would else wait for the last."""

_RETRIED = (429, 503)


class Sender:
    """Sends what a supply hands out, until its conductor says that the load has ended. Owns its connections: close it."""

    def __init__(
        self,
        endpoint: Endpoint,
        plan: LoadPlan,
        supply: Supply,
        conductor: Conductor,
        count_tokens: CountTokens | None,
    ) -> None:
        self._plan, self._supply, self._conductor = plan, supply, conductor
        self._slots = Slots(endpoint, concurrency=plan.concurrency)
        self._ledger = Ledger(plan, conductor, count_tokens=count_tokens)
        self._meter = ClockMeter()
        self._rest = Rest()
        self._pool = Pool(self._slots)
        """Open loop: slots without a request."""

        self._free: collections.deque[Slot] = collections.deque()
        """Closed loop: slots that need their next request."""

        self._timers: list[tuple[float, int, Slot, Request]] = []
        """Requests to be sent again, by time."""

        self._serial = 0
        self._looked = self._begin = 0.0

    def state(self) -> LoadState:
        """Say how far the run is; from any thread."""
        return self._ledger.state(self._slots.all, self._begin)

    def close(self) -> None:
        """Close every connection."""
        self._slots.close()

    # The run.

    def run(self, interrupt: Interrupt) -> Part:
        """Send the load, or as much of it as there is time for before Ctrl-C. Raises `EngineError` where nothing connects."""
        plan, conductor = self._plan, self._conductor
        self._slots.open(plan.concurrency or MIN_SPARE)
        self._supply.fill()
        planned: Iterator[float] = conductor.due(plan.arrivals.times()) if plan.arrivals is not None else iter(())
        begin = self._begin = conductor.begin()
        self._meter.start()
        self._looked = _clock()
        for slot in self._slots.all:
            self._give_back(slot)
        due = next(planned, float("inf")) + begin
        next_scan = begin + _SCAN_S
        poller, meter, supply, rest, ledger = self._slots.poller, self._meter, self._supply, self._rest, self._ledger
        now = begin
        while not ledger.stop and not interrupt.seen:
            while due <= now:
                self._arrive(due)
                due = next(planned, float("inf")) + begin
            while plan.arrivals is not None and supply.next_follow_up <= now:
                self._place(supply.take_follow_up())
            if self._pool.stuck:
                self._grow()
            for _ in range(len(self._free)):
                slot = self._free.popleft()
                self._launch(slot, self._new_request(0.0))
            while self._timers and self._timers[0][0] <= now:
                _, _, slot, request = heapq.heappop(self._timers)
                self._launch(slot, request)
            behind = ledger.behind or supply.behind
            if behind or self._free:
                timeout = 0.0
            else:
                upcoming = min(due, meter.next_beat, self._timers[0][0] if self._timers else due)
                if plan.arrivals is not None:
                    upcoming = min(upcoming, supply.next_follow_up)
                timeout = upcoming - _clock()
            resting = rest.left(_clock())
            if resting > 0 and not behind and timeout > 0:
                time.sleep(min(resting, timeout))
                timeout -= resting
                resting = 0.0
            # While sockets may rest, there is time to read what has ended.
            ready = [] if resting > 0 else poller.wait(timeout, _AT_ONCE)
            now, wall_ns = _clock(), time.time_ns()
            meter.beat(now)
            if ready:
                rest.looked(now, more=len(ready) == _AT_ONCE)
                self._receive(ready, now, wall_ns)
            elif behind:
                if ledger.behind:
                    ledger.read_one()
                    meter.idle(_clock() - now)
                if supply.behind:
                    supply.write_one()
            self._looked = now
            if now >= next_scan:
                self._scan(now)
                next_scan = now + _SCAN_S
        meter.stop()
        return ledger.part(self._slots.all, supply.issued, meter, looked=self._looked)

    def _receive(self, ready: list[tuple[int, int]], now: float, wall_ns: int) -> None:
        """Receive from every ready socket. `now` and `wall_ns` are one moment on two clocks."""
        slots, meter, since = self._slots.connected, self._meter, self._looked
        failed: list[tuple[Slot, ConnectionFailed]] = []
        others: list[Slot] = []
        waits: list[float] = []
        for descriptor, mask in ready:
            slot = slots[descriptor]
            connection = slot.connection
            assert connection is not None
            if mask != READ or connection.state != "ready":
                if mask & WRITE or connection.state != "ready":
                    others.append(slot)
                if connection.state != "ready" or not mask & ~WRITE:
                    continue
            try:
                data, came_ns = connection.receive()
            except BlockingIOError:
                continue
            except OSError as error:
                failed.append((slot, ConnectionFailed("reset", f"the connection broke ({error.strerror})")))
                continue
            except ConnectionFailed as error:
                failed.append((slot, error))
                continue
            waited_ms = (wall_ns - came_ns) * 1e-6
            if 0 <= waited_ms < 60_000:
                waits.append(waited_ms)
                time_s = now - waited_ms * 1e-3
            elif -1000 < waited_ms < 0:
                # It came after the poll returned.
                waits.append(0.0)
                time_s = now - waited_ms * 1e-3
            else:
                # No time, or a wall clock that was set meanwhile: that says nothing.
                meter.bound(now - since)
                self._rest.untimed()
                time_s = now
            if slot.request is None:
                # Nothing was asked: the server closes the connection, or says what nobody wants to hear.
                self._lost(slot)
                continue
            try:
                done = slot.reader.feed(data, time_s) if data else slot.reader.eof()
            except HttpError as error:
                self._broken(slot, ConnectionFailed("malformed", str(error)), now)
                continue
            if done:
                self._finished(slot, time_s, alive=bool(data))
            elif not data:
                self._broken(slot, cut_off(slot.reader), now)
        if waits:
            meter.waited(waits)
        for slot, problem in failed:
            if slot.request is None:
                self._lost(slot)
            else:
                self._broken(slot, problem, now)
        for slot in others:
            self._advance(slot, now)
        # Where there is never an idle moment, what has ended must be read all the same.
        while self._ledger.full:
            self._ledger.read_one()

    # Connections.

    def _lost(self, slot: Slot) -> None:
        """A connection without a request was closed; open loop keeps its slots connected."""
        used = slot.used
        self._slots.disconnect(slot)
        self._ledger.reconnects += used
        if self._pool.lost(slot) and used:
            # One that never served is not replaced at once: a server that closes them all would be asked without end.
            self._grow()

    def _advance(self, slot: Slot, now: float) -> None:
        """Go on with a connection that is being opened, or takes more of a request."""
        connection = slot.connection
        if connection is None:
            return
        opening = connection.state != "ready"
        try:
            connection.advance()
            self._slots.poll(slot)
        except ConnectionFailed as error:
            self._broken(slot, error, now)
            return
        if opening and connection.state == "ready":
            if slot.request is not None:
                self._send(slot)
            else:
                self._give_back(slot)

    # Requests.

    def _new_request(self, intended: float) -> Request:
        request = self._supply.take(intended)
        self._ledger.open(request)
        return request

    def _arrive(self, due: float) -> None:
        """Open loop: a request is due."""
        self._place(self._new_request(due))

    def _place(self, request: Request) -> None:
        """Open loop: let a request be sent by the first slot that can."""
        slot = self._pool.put(request)
        if slot is not None:
            self._launch(slot, request)
        self._grow()

    def _grow(self) -> None:
        """Open loop: open connections for what waits, and for what comes."""
        error = self._pool.grow()
        if error is not None:
            self._refused(error, _clock())

    def _refused(self, error: ConnectionFailed, now: float) -> None:
        """Open loop: no connection came of an attempt, so one request that waits for one has failed."""
        request = self._pool.refused()
        if request is not None:
            self._close_request(request, LateReader(), now, error)
            if request.talk is not None:
                self._ledger.end(request, request.talk, now)

    def _give_back(self, slot: Slot) -> None:
        """Let a slot that has no request take the next one, or keep it connected for one."""
        if self._plan.arrivals is None:
            self._free.append(slot)
        elif slot.connection is None:
            self._pool.take_back(slot)
            self._grow()
        else:
            request = self._pool.give(slot)
            if request is not None:
                self._launch(slot, request)

    def _try_connect(self, slot: Slot) -> None:
        try:
            self._slots.connect(slot)
        except ConnectionFailed as error:
            if slot.request is not None:
                self._broken(slot, error, _clock())

    def _launch(self, slot: Slot, request: Request) -> None:
        slot.request = request
        if slot.connection is None:
            self._try_connect(slot)
        elif slot.connection.state == "ready":
            self._send(slot)

    def _send(self, slot: Slot) -> None:
        request, connection = slot.request, slot.connection
        assert request is not None
        assert connection is not None
        slot.reader = LateReader()
        now = _clock()
        if not request.sent:
            # Sent again, it still counts from the first time.
            request.sent = now
            self._rest.sent(now, request.osl)
            if self._plan.arrivals is None:
                request.intended = now
            else:
                self._meter.late(now - request.intended)
        try:
            connection.send(request.payload)
        except ConnectionFailed as error:
            self._broken(slot, error, now)
            return
        if connection.wants_write:
            self._slots.poll(slot)

    def _finished(self, slot: Slot, now: float, *, alive: bool) -> None:
        """A response was complete at `now`: send the next request first, and keep this one for reading."""
        request, reader = slot.request, slot.reader
        assert request is not None
        slot.request = None
        slot.used = True
        if not alive or not reader.keep_alive or reader.surplus:
            self._slots.disconnect(slot)
            self._ledger.reconnects += 1
        if reader.status in _RETRIED and request.attempts < self._plan.retries:
            self._retry(slot, request, reader, now)
            return
        self._close_request(request, reader, now, None)
        if request.talk is not None:
            answer = self._ledger.follow(request, request.talk, reader, now)
            if answer is not None:
                self._supply.follow(request, request.talk, answer, now)
        if self._ledger.stop:
            return
        if self._plan.arrivals is None and slot.connection is not None:
            self._launch(slot, self._new_request(0.0))
        else:
            self._give_back(slot)

    def _retry(self, slot: Slot, request: Request, reader: LateReader, now: float) -> None:
        """Send a request again later, on the same slot, after the time that the server names or a growing one."""
        asked = reader.headers.get(b"retry-after", b"")
        delay = float(asked) if asked.isdigit() else 0.1 * 2**request.attempts
        request.attempts += 1
        self._ledger.retries += 1
        self._serial += 1
        heapq.heappush(self._timers, (now + min(delay, 60.0), self._serial, slot, request))

    def _broken(self, slot: Slot, error: ConnectionFailed, now: float) -> None:
        """A connection failed: so did its request, unless it only met a kept connection that was closed already."""
        request, reader = slot.request, slot.reader
        stale = slot.used and not reader.begun and error.cause in ("reset", "closed")
        self._slots.disconnect(slot)
        if request is None:
            if self._pool.lost(slot):
                self._refused(error, now)
            return
        if stale and not request.fresh:
            request.fresh = True
            self._ledger.reconnects += 1
            self._launch(slot, request)
            return
        slot.request = None
        self._close_request(request, reader, now, error)
        if request.talk is not None:
            self._ledger.end(request, request.talk, now)
        if not self._ledger.stop:
            # Not at once: a server that refuses every connection must not recurse.
            if self._plan.arrivals is None:
                self._free.append(slot)
            else:
                self._pool.take_back(slot)

    def _scan(self, now: float) -> None:
        """Give up on requests and connections that take too long, and say how far the run is."""
        for slot, error in overdue(self._slots.all, now, timeout_s=self._plan.timeout_s):
            self._broken(slot, error, now)
        if self._conductor.look(self._meter, self.state):
            self._ledger.stop = True

    def _close_request(self, request: Request, reader: LateReader, now: float, error: ConnectionFailed | None) -> None:
        """Count a request that has ended."""
        self._supply.warm = True
        if error is None:
            self._rest.answered(now - request.sent, request.osl)
        self._ledger.close(request, reader, now, error)
