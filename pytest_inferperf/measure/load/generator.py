"""The load generator: one thread that polls sockets, takes one time per poll, and reads what it got when it is idle.

One turn: wait for sockets; receive from every one that is ready, each with the kernel's time of its arrival; find which
responses ended and send the next request on each at once. When nothing is ready, read one ended response (its events,
tokens, usage) and write one request ahead. So no timestamp waits for other sockets, for parsing, or for the process to be scheduled.

The load has three parts. Closed loop: the first `concurrency` requests are warm-up (they start all at once, which no
later ones do), then come the measured ones, and fillers keep the concurrency until the last measured request has ended.
Open loop: warm-up lasts until the first answer. Latencies are of measured requests; rates and the concurrency held are of
the window from the end of the warm-up to the end of the last measured request. Fillers under way are cut off then.
"""

from __future__ import annotations

import collections
import gc
import heapq
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

from pytest_inferperf.engines.openai.connection import Connection, ConnectionFailed
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.http import HttpError, ResponseReader
from pytest_inferperf.engines.openai.sse import CountTokens, StreamError, decode_stream
from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.measure.load.arrivals import Arrivals
from pytest_inferperf.measure.load.clock import ClockMeter, ClockReport
from pytest_inferperf.measure.load.records import FILLER, MEASURED, WARMUP, Records, Sample
from pytest_inferperf.polling import READ, WRITE, Poller, raise_file_limit

__all__ = ["Failure", "LoadPlan", "LoadRun", "run_load"]

_clock = time.perf_counter
_CONNECT_AT_ONCE = 64
_CONNECT_TIMEOUT_S = 10.0
_SCAN_S = 0.2
_MIN_SPARE = 16
_RESERVED_DESCRIPTORS = 64
_AHEAD, _MAX_AHEAD = 64, 1024
"""Requests written ahead."""

_UNREAD = 256
"""Responses that may wait to be read, besides two per stream."""

_RETRIED = (429, 503)


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What is sent. Raises `SettingsError` for a value out of range, and unless exactly one kind of loop is given."""

    num_requests: int
    """Requests that are measured; warm-up and fillers come on top."""

    osl: int
    """Output tokens every request asks for, and must get."""

    concurrency: int = 0
    """Closed loop: requests in flight."""

    arrivals: Arrivals | None = None
    """Open loop: when requests are due."""

    timeout_s: float = 600.0
    """From the send of a request to the end of its answer."""

    retries: int = 0
    """How often a request that is answered with 429 or 503 is sent again."""

    def __post_init__(self) -> None:
        if (self.concurrency > 0) == (self.arrivals is not None):
            raise SettingsError("give either a concurrency (closed loop) or a request rate (open loop).")
        for name, low in (("num_requests", 1), ("osl", 1), ("concurrency", 0), ("retries", 0)):
            if getattr(self, name) < low:
                raise SettingsError(f"{name} {getattr(self, name)}: must be at least {low}.")
        if not self.timeout_s > 0:
            raise SettingsError(f"timeout {self.timeout_s:g} s: must be above 0.")


@dataclass(kw_only=True)
class Failure:
    """Measured requests that failed for one cause."""

    count: int = 0
    example: str = ""
    """The detail of the first."""


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    """What happened, before anything is made of it. Times are seconds on one clock."""

    plan: LoadPlan
    records: Records
    itl_ms: Sample
    """Over tokens of measured requests: a chunk of k tokens counts as k gaps of its gap / k."""

    chunk_gap_ms: Sample
    """Between successive chunks of measured requests."""

    start: float
    """Of the window."""

    stop: float
    held: float
    """Requests in flight, mean over the window."""

    window_tokens: float
    """Output tokens of the requests of the window, counted as they are."""

    window_requests: float
    """Requests with success, warm-up and fillers included: each counts with the share of its time that lies in the window.

    At the start of the window many requests have just begun, at its end they are anywhere; counting those that end in it
    would lose half a request per stream.
    """

    failures: dict[str, Failure]
    """Of measured requests, by cause."""

    warmup: int
    """Warm-up requests, not measured."""

    fillers: int
    """Requests sent after the measured ones, not measured."""

    cut: int
    """Requests that were cut off at the end."""

    retries: int
    reconnects: int
    """Connections that the server closed and that were opened again."""

    cached_tokens: int
    """Prompt tokens of measured requests that the server says came from a cache."""

    count_sources: dict[str, int]
    """How the tokens of measured requests were counted: `usage`, `token_ids`, `tokenizer`, `chunks`."""

    interrupted: bool
    clock: ClockReport


class _Request:
    __slots__ = ("attempts", "fresh", "intended", "kind", "payload", "sent")

    def __init__(self, kind: int, payload: bytes, intended: float) -> None:
        self.kind = kind
        self.payload = payload
        self.intended = intended
        self.sent = 0.0
        self.attempts = 0
        self.fresh = False
        """Whether it was sent again on a new connection, after a kept one had turned out closed."""


class _Slot:
    """A place for one request in flight, with its connection."""

    __slots__ = ("connection", "descriptor", "reader", "request", "since", "used")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.descriptor = -1
        self.reader = ResponseReader()
        self.request: _Request | None = None
        self.since = 0.0
        """When the connection was begun."""

        self.used = False
        """Whether the connection has carried a response."""


@dataclass
class _Tally:
    failures: dict[str, Failure] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    cached_tokens: int = 0
    retries: int = 0
    reconnects: int = 0


def run_load(
    endpoint: Endpoint,
    plan: LoadPlan,
    make_body: Callable[[int], bytes],
    *,
    count_tokens: CountTokens | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LoadRun:
    """Send the load that `plan` describes and return what happened; `LoadRun` is judged by `summary`.

    `make_body(i)` returns the body of request i, counted over warm-up, measured and fillers. `progress(done, of)` is
    called now and then with the number of measured requests that have ended. Ctrl-C ends the run and keeps what was
    measured. Raises `EngineError` where no connection can be opened, or the limit of open files is too low.
    """
    generator = _Generator(endpoint, plan, make_body, count_tokens, progress)
    collecting = gc.isenabled()
    # A collection in a process that holds a large heap stops the clock for tens of milliseconds.
    gc.disable()
    try:
        with _Interrupt() as interrupt:
            return generator.run(interrupt)
    finally:
        generator.close()
        if collecting:
            gc.enable()


class _Interrupt:
    """Turns the first Ctrl-C into a flag; the second one is Python's own."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> _Interrupt:
        self._mine = threading.current_thread() is threading.main_thread()
        if self._mine:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *_: object) -> None:
        if self._mine:
            signal.signal(signal.SIGINT, self._before)


class _Generator:
    def __init__(
        self,
        endpoint: Endpoint,
        plan: LoadPlan,
        make_body: Callable[[int], bytes],
        count_tokens: CountTokens | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._endpoint, self._plan = endpoint, plan
        self._make_body, self._count_tokens, self._progress = make_body, count_tokens, progress
        self._head, self._tls = endpoint.head(), endpoint.tls()
        self._max_slots = _descriptors(plan.concurrency or 256)
        self._address = endpoint.resolve()
        self._poller = Poller()
        self._meter = ClockMeter()
        self._slots: dict[int, _Slot] = {}
        """Slots with a connection, by descriptor."""

        self._all: list[_Slot] = []
        self._idle: list[_Slot] = []
        """Open loop: slots without a request."""

        self._free: collections.deque[_Slot] = collections.deque()
        """Closed loop: slots that need their next request."""

        self._waiting: collections.deque[_Request] = collections.deque()
        """Open loop: requests that are due and found no slot."""

        self._timers: list[tuple[float, int, _Slot, _Request]] = []
        """Requests to be sent again, by time."""

        self._ended: collections.deque[tuple[_Request, ResponseReader, float, ConnectionFailed | None]] = (
            collections.deque()
        )
        self._max_unread = _UNREAD + 2 * plan.concurrency
        self._prepared: collections.deque[bytes] = collections.deque()
        self._ahead = max(_AHEAD, min(plan.concurrency, _MAX_AHEAD))
        self._bodies = 0
        self._serial = 0
        self._issued = [0, 0, 0]
        self._warm = False
        """Open loop: an answer has come."""

        self._left = plan.num_requests
        self._warming = plan.concurrency
        self._warmed = self._last = 0.0
        """When the last warm-up request and the last measured one ended, so far."""

        self._start: float | None = None
        self._first_measured: float | None = None
        self._stop = False
        self._records = Records()
        self._itl, self._gaps = Sample(), Sample()
        self._tally = _Tally()
        self._looked = 0.0

    def close(self) -> None:
        for slot in self._all:
            if slot.connection is not None:
                slot.connection.close()
        self._poller.close()

    # The run.

    def run(self, interrupt: _Interrupt) -> LoadRun:
        plan = self._plan
        self._open(plan.concurrency or _MIN_SPARE)
        self._prepare(self._ahead)
        planned: Iterator[float] = plan.arrivals.times() if plan.arrivals is not None else iter(())
        self._meter.start()
        begin = self._looked = _clock()
        self._idle, self._free = (list(self._all), self._free) if plan.arrivals else ([], collections.deque(self._all))
        due = next(planned, float("inf")) + begin
        next_scan = begin + _SCAN_S
        poller, meter = self._poller, self._meter
        now = begin
        while not self._stop and not interrupt.seen:
            while due <= now:
                self._arrive(due)
                due = next(planned) + begin
            while self._waiting and self._idle:
                self._launch(self._idle.pop(), self._waiting.popleft())
            for _ in range(len(self._free)):
                slot = self._free.popleft()
                self._launch(slot, self._new_request(0.0))
            while self._timers and self._timers[0][0] <= now:
                _, _, slot, request = heapq.heappop(self._timers)
                self._launch(slot, request)
            behind = bool(self._ended) or len(self._prepared) < self._ahead
            if behind or self._free:
                timeout = 0.0
            else:
                upcoming = min(due, meter.next_beat, self._timers[0][0] if self._timers else due)
                timeout = upcoming - _clock()
            ready = poller.wait(timeout)
            now, wall_ns = _clock(), time.time_ns()
            meter.beat(now)
            if ready:
                self._receive(ready, now, wall_ns)
            elif behind:
                self._read_one()
                if len(self._prepared) < self._ahead:
                    self._prepare(1)
            self._looked = now
            if now >= next_scan:
                self._scan(now)
                next_scan = now + _SCAN_S
        return self._result(interrupt.seen)

    def _receive(self, ready: list[tuple[int, int]], now: float, wall_ns: int) -> None:
        """Receive from every ready socket, then look at what came. `now` and `wall_ns` are one moment on two clocks."""
        slots, meter, since = self._slots, self._meter, self._looked
        came: list[tuple[_Slot, bytes, float]] = []
        failed: list[tuple[_Slot, ConnectionFailed]] = []
        others: list[_Slot] = []
        waits: list[float] = []
        for descriptor, mask in ready:
            slot = slots[descriptor]
            connection = slot.connection
            assert connection is not None
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
            waited = (wall_ns - came_ns) / 1e9
            # Data may come after the poll returned; a wall clock that was set meanwhile says nothing.
            if -1 < waited < 60:
                waits.append(waited)
                came.append((slot, data, now - waited))
            else:
                meter.bound(now - since)
                came.append((slot, data, now))
        if waits:
            meter.waited(waits)
        for slot, data, time_s in came:
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
                self._broken(slot, _cut_off(slot.reader), now)
        for slot, problem in failed:
            if slot.request is None:
                self._lost(slot)
            else:
                self._broken(slot, problem, now)
        for slot in others:
            self._advance(slot, now)
        # Where there is never an idle moment, what has ended must be read all the same.
        while len(self._ended) > self._max_unread:
            self._read_one()

    # Connections.

    def _open(self, count: int) -> None:
        """Open connections before the clock starts. Raises `EngineError` when one fails."""
        self._all = [_Slot() for _ in range(count)]
        todo = list(self._all)
        deadline = _clock() + _CONNECT_TIMEOUT_S
        opening: set[int] = set()
        try:
            while todo or opening:
                while todo and len(opening) < _CONNECT_AT_ONCE:
                    slot = todo.pop()
                    self._connect(slot)
                    opening.add(slot.descriptor)
                    deadline = _clock() + _CONNECT_TIMEOUT_S
                for descriptor, _ in self._poller.wait(0.1):
                    slot = self._slots[descriptor]
                    if slot.connection is None or descriptor not in opening:
                        continue
                    slot.connection.advance()
                    self._poll(slot)
                    if slot.connection.state == "ready":
                        opening.discard(descriptor)
                if _clock() > deadline:
                    raise ConnectionFailed("timeout", f"no connection within {_CONNECT_TIMEOUT_S:g} s")
        except ConnectionFailed as error:
            hint = " Is the server running?" if error.cause == "refused" else ""
            raise EngineError(f"{self._endpoint.shown}: cannot connect: {error}.{hint}") from None

    def _connect(self, slot: _Slot) -> None:
        connection = Connection(self._address, tls=self._tls, host=self._endpoint.host)
        slot.connection = connection
        slot.descriptor = connection.sock.fileno()
        slot.since = _clock()
        slot.used = False
        self._slots[slot.descriptor] = slot
        self._poller.register(slot.descriptor, READ | WRITE)

    def _disconnect(self, slot: _Slot) -> None:
        if slot.connection is not None:
            del self._slots[slot.descriptor]
            self._poller.unregister(slot.descriptor)
            slot.connection.close()
            slot.connection = None

    def _lost(self, slot: _Slot) -> None:
        """A connection without a request was closed; open loop keeps its slots connected."""
        used = slot.used
        self._disconnect(slot)
        if used:
            self._tally.reconnects += 1
            if self._plan.arrivals is not None:
                self._try_connect(slot)

    def _poll(self, slot: _Slot) -> None:
        assert slot.connection is not None
        self._poller.modify(slot.descriptor, READ | WRITE if slot.connection.wants_write else READ)

    def _advance(self, slot: _Slot, now: float) -> None:
        """Go on with a connection that is being opened, or takes more of a request."""
        connection = slot.connection
        if connection is None:
            return
        opening = connection.state != "ready"
        try:
            connection.advance()
            self._poll(slot)
        except ConnectionFailed as error:
            self._broken(slot, error, now)
            return
        if opening and connection.state == "ready" and slot.request is not None:
            self._send(slot)

    # Requests.

    def _prepare(self, count: int) -> None:
        """Write requests ahead of their time."""
        for _ in range(count):
            body = self._make_body(self._bodies)
            self._prepared.append(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
            self._bodies += 1

    def _new_request(self, intended: float) -> _Request:
        """Take the next request and say which part of the load it is."""
        plan, issued = self._plan, self._issued
        warming = not self._warm if plan.arrivals is not None else issued[WARMUP] < plan.concurrency
        if warming and not issued[MEASURED]:
            kind = WARMUP
        else:
            kind = MEASURED if issued[MEASURED] < plan.num_requests else FILLER
        issued[kind] += 1
        if kind == MEASURED and self._first_measured is None:
            self._first_measured = intended or _clock()
            if plan.arrivals is not None:
                self._start = intended
        if not self._prepared:
            self._prepare(1)
        return _Request(kind, self._prepared.popleft(), intended)

    def _arrive(self, due: float) -> None:
        """Open loop: a request is due."""
        request = self._new_request(due)
        if self._idle:
            self._launch(self._idle.pop(), request)
        else:
            self._waiting.append(request)
        spare = max(_MIN_SPARE, len(self._all) // 4)
        if len(self._idle) < spare:
            self._grow(spare - len(self._idle))

    def _grow(self, count: int) -> None:
        for _ in range(min(count, self._max_slots - len(self._all))):
            slot = _Slot()
            self._all.append(slot)
            self._give_back(slot)

    def _give_back(self, slot: _Slot) -> None:
        """Let a slot that has no request take the next one, or keep it connected for one."""
        if self._plan.arrivals is None:
            self._free.append(slot)
        elif self._waiting:
            self._launch(slot, self._waiting.popleft())
        else:
            self._idle.append(slot)
            if slot.connection is None:
                self._try_connect(slot)

    def _try_connect(self, slot: _Slot) -> None:
        try:
            self._connect(slot)
        except ConnectionFailed as error:
            if slot.request is not None:
                self._broken(slot, error, _clock())

    def _launch(self, slot: _Slot, request: _Request) -> None:
        slot.request = request
        if slot.connection is None:
            self._try_connect(slot)
        elif slot.connection.state == "ready":
            self._send(slot)

    def _send(self, slot: _Slot) -> None:
        request, connection = slot.request, slot.connection
        assert request is not None
        assert connection is not None
        slot.reader = ResponseReader()
        now = _clock()
        if not request.sent:
            # Sent again, it still counts from the first time.
            request.sent = now
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
            self._poll(slot)

    def _finished(self, slot: _Slot, now: float, *, alive: bool) -> None:
        """A response was complete at `now`: send the next request first, and keep this one for reading."""
        request, reader = slot.request, slot.reader
        assert request is not None
        slot.request = None
        slot.used = True
        if not alive or not reader.keep_alive or reader.surplus:
            self._disconnect(slot)
            self._tally.reconnects += 1
        if reader.status in _RETRIED and request.attempts < self._plan.retries:
            self._retry(slot, request, reader, now)
            return
        self._close_request(request, reader, now, None)
        if self._stop:
            return
        if self._plan.arrivals is None and slot.connection is not None:
            self._launch(slot, self._new_request(0.0))
        else:
            self._give_back(slot)

    def _retry(self, slot: _Slot, request: _Request, reader: ResponseReader, now: float) -> None:
        """Send a request again later, on the same slot, after the time that the server names or a growing one."""
        asked = reader.headers.get(b"retry-after", b"")
        delay = float(asked) if asked.isdigit() else 0.1 * 2**request.attempts
        request.attempts += 1
        self._tally.retries += 1
        self._serial += 1
        heapq.heappush(self._timers, (now + min(delay, 60.0), self._serial, slot, request))

    def _broken(self, slot: _Slot, error: ConnectionFailed, now: float) -> None:
        """A connection failed: so did its request, unless it only met a kept connection that was closed already."""
        request, reader = slot.request, slot.reader
        stale = slot.used and not reader.begun and error.cause in ("reset", "closed")
        self._disconnect(slot)
        if request is None:
            return
        if stale and not request.fresh:
            request.fresh = True
            self._tally.reconnects += 1
            self._launch(slot, request)
            return
        slot.request = None
        self._close_request(request, reader, now, error)
        if not self._stop:
            # Not at once: a server that refuses every connection must not recurse.
            if self._plan.arrivals is None:
                self._free.append(slot)
            else:
                self._idle.append(slot)

    def _scan(self, now: float) -> None:
        """Give up on requests and connections that take too long, and say how far the run is."""
        for slot in self._all:
            connection, request = slot.connection, slot.request
            if connection is None:
                continue
            if connection.state != "ready":
                if now - slot.since > _CONNECT_TIMEOUT_S:
                    self._broken(slot, ConnectionFailed("timeout", "no connection in time"), now)
            elif request is not None and now - request.sent > self._plan.timeout_s and request.sent:
                size = sum(map(len, slot.reader.pieces))
                what = f"{size} bytes of the body had come" if slot.reader.status else "no status had come"
                detail = f"no complete answer within {self._plan.timeout_s:g} s; {what}"
                self._broken(slot, ConnectionFailed("timeout", detail), now)
        if self._progress is not None:
            self._progress(self._plan.num_requests - self._left, self._plan.num_requests)

    def _close_request(
        self, request: _Request, reader: ResponseReader, now: float, error: ConnectionFailed | None
    ) -> None:
        """Count a request that has ended, and keep it for reading."""
        self._ended.append((request, reader, now, error))
        self._warm = True
        if request.kind == MEASURED:
            self._left -= 1
            self._stop = not self._left
            self._last = max(self._last, now)
        elif request.kind == WARMUP and self._plan.arrivals is None:
            self._warming -= 1
            self._warmed = max(self._warmed, now)
            if not self._warming:
                self._start = self._warmed

    # Reading.

    def _read_one(self) -> None:
        """Read the oldest response that has ended."""
        if not self._ended:
            return
        request, reader, done, error = self._ended.popleft()
        kind = request.kind
        try:
            if error is not None:
                raise StreamError(error.cause, str(error))
            if reader.status != 200:
                body = b"".join(reader.pieces)[:200].decode(errors="replace").strip()
                raise StreamError(f"http_{reader.status}", f"HTTP {reader.status}: {body}")
            kind_of = reader.headers.get(b"content-type", b"")
            if kind_of and not kind_of.lower().startswith(b"text/event-stream"):
                raise StreamError(
                    "not_openai", f"the answer is {kind_of.decode(errors='replace')}, not an event stream"
                )
            found = decode_stream(reader.pieces, reader.times, count_tokens=self._count_tokens)
            if found.num_tokens != self._plan.osl:
                how = "" if found.source == "usage" else f" (counted by {found.source}: the server sent no usage)"
                raise StreamError("osl", f"{found.num_tokens} tokens came where {self._plan.osl} were asked for{how}")
        except StreamError as problem:
            if kind == MEASURED:
                failure = self._tally.failures.setdefault(problem.cause, Failure())
                failure.count += 1
                failure.example = failure.example or str(problem)
            self._records.add(kind=kind, ok=False, intended=request.intended, sent=request.sent, done=done)
            return
        times, tokens = found.times, found.tokens
        if kind == MEASURED:
            gaps = [1000 * (after - before) for before, after in itertools.pairwise(times)]
            self._gaps.extend(gaps)
            if found.num_tokens == len(times):
                self._itl.extend(gaps)
            else:
                self._itl.extend(gap / count for gap, count in zip(gaps, tokens[1:], strict=True) for _ in range(count))
            self._tally.cached_tokens += found.cached_tokens
            self._tally.sources[found.source] = self._tally.sources.get(found.source, 0) + 1
        self._records.add(
            kind=kind,
            ok=True,
            intended=request.intended,
            sent=request.sent,
            first=times[0],
            last=times[-1],
            done=done,
            tokens=found.num_tokens,
            first_tokens=tokens[0],
            prompt_tokens=-1 if found.prompt_tokens is None else found.prompt_tokens,
        )

    def _result(self, interrupted: bool) -> LoadRun:
        stop = self._last if self._stop else self._looked
        clock = self._meter.report()
        while self._ended:
            self._read_one()
        if self._start is None or self._start >= stop:
            # The measured requests were faster than the slowest of the warm-up.
            self._start = min(stop, self._first_measured if self._first_measured is not None else stop)
        start = self._start
        records, tally = self._records, self._tally
        flying = [slot.request.sent for slot in self._all if slot.request is not None and slot.request.sent]
        held, requests, tokens = _window(records, flying, start, stop)
        return LoadRun(
            plan=self._plan,
            records=records,
            itl_ms=self._itl,
            chunk_gap_ms=self._gaps,
            start=start,
            stop=stop,
            held=held,
            window_tokens=tokens,
            window_requests=requests,
            failures=tally.failures,
            warmup=self._issued[WARMUP],
            fillers=self._issued[FILLER],
            cut=len(flying),
            retries=tally.retries,
            reconnects=tally.reconnects,
            cached_tokens=tally.cached_tokens,
            count_sources=tally.sources,
            interrupted=interrupted,
            clock=clock,
        )


def _window(records: Records, flying: Sequence[float], start: float, stop: float) -> tuple[float, float, float]:
    """Return for a window the requests in flight, in the mean, the requests with success, and their tokens.

    `flying` holds when the requests that were cut off at `stop` had been sent; each counts for as much of a request as
    it had time, next to the mean request, and for one at most.
    """
    import numpy as np

    duration = stop - start
    if duration <= 0:
        return 0.0, 0.0, 0.0
    columns = records.columns()
    sent, done, good = columns["sent"], columns["done"], columns["ok"]
    # A request that never got a connection was not sent.
    sent = np.where(sent > 0, sent, done)
    inside = np.clip(np.minimum(done, stop) - np.maximum(sent, start), 0.0, None)
    cut = np.array([stop - max(start, began) for began in flying])
    held = (float(inside.sum()) + float(cut.sum())) / duration
    spans = (done - sent)[good]
    shares = inside[good] / np.maximum(spans, 1e-9)
    # A request that hangs is no more than one.
    rest = float(np.minimum(cut / spans.mean(), 1.0).sum()) if len(spans) and spans.mean() > 0 else 0.0
    tokens = columns["tokens"][good]
    requests = float(shares.sum()) + rest
    return held, requests, float((shares * tokens).sum()) + (rest * float(tokens.mean()) if len(tokens) else 0.0)


def _cut_off(reader: ResponseReader) -> ConnectionFailed:
    size = sum(map(len, reader.pieces))
    when = f"after {size} bytes of the body" if reader.begun else "before it answered"
    return ConnectionFailed("closed", f"the server closed the connection {when}")


def _descriptors(sockets: int) -> int:
    """Raise the limit of open files as far as it goes; return how many sockets it leaves room for.

    Raises `EngineError` where that is fewer than asked for.
    """
    top = raise_file_limit()
    room = top - _RESERVED_DESCRIPTORS
    if room < sockets:
        raise EngineError(
            f"{sockets} connections need {sockets + _RESERVED_DESCRIPTORS} open files, and the limit of this process is "
            f"{top}. Raise the hard limit (`ulimit -Hn`, or LimitNOFILE= of the service), or lower the concurrency."
        )
    return room
