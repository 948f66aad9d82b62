"""The simulated server: one thread, one epoll, one heap of deadlines.

Token i leaves at `request arrival + TTFT + i * ITL`. Arrival is the kernel's time of the request's first bytes; tokens that
are due go before requests that wait to be read, so that a burst of requests delays no stream by more than the
reading of one. The server keeps its own lateness (moment of the send - deadline), so that a reader knows how true the
truth was.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import heapq
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

from pytest_inferperf.errors import EngineError
from pytest_inferperf.polling import READ, WRITE, Poller, keep_times, receive
from pytest_inferperf.simulate.answers import Answer, chunk, error_body, prompt_units
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.prefix_cache import PrefixCache

__all__ = ["SimulatedServer", "serve_in_thread"]

_now = time.perf_counter
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 413: "Content Too Large", 429: "Too Many Requests"}
_MAX_REQUEST = 64 * 2**20
_DEFAULT_MAX_TOKENS = 16
_READS = 8
"""Requests that are read before the sockets are looked at again."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _Connection:
    """A client's socket, what it sent, and what could not yet be sent to it."""

    __slots__ = ("arrival", "closed", "inbox", "outbox", "sock", "streaming")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = b""
        self.arrival = 0.0
        self.streaming = False
        self.closed = False


class _Stream:
    """An answer under way."""

    __slots__ = (
        "answer", "bad_at", "connection", "cut_at", "due", "itl_s", "next", "prefix", "stall_at", "stream", "usage"
    )  # fmt: skip

    def __init__(self, connection: _Connection, answer: Answer, *, stream: bool, usage: bool, due: float) -> None:
        self.connection = connection
        self.answer = answer
        self.stream = stream
        self.usage = usage
        self.due = due
        """When the next chunk leaves by plan, without jitter, stalls included."""

        self.itl_s = 0.0
        """From one token to the next, seconds, before other streams slow it down."""

        self.next = 0
        """Index of the next token."""

        self.prefix = _STREAM_HEAD
        self.stall_at = self.cut_at = self.bad_at = -1


class SimulatedServer:
    """Serves an OpenAI-compatible API with the times and the faults of a `Behaviour`.

    Owns a listening socket from its creation: `serve` runs until `stop` and closes everything. Raises `EngineError`
    when the address cannot be bound.
    """

    def __init__(self, behaviour: Behaviour, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.behaviour = behaviour
        try:
            self._listener = socket.create_server((host, port), backlog=4096, family=_family(host))
        except (OSError, OverflowError) as error:
            raise EngineError(f"cannot listen on {host} port {port}: {error}.") from None
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()[:2]
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._stopping = False
        self._poller = Poller()
        self._connections: dict[int, _Connection] = {}
        self._unread: collections.deque[_Connection] = collections.deque()
        self._heap: list[tuple[float, int, _Stream]] = []
        self._serial = 0
        self._jitter = random.Random(behaviour.seed)
        self._active = 0
        self._late_sum = self._late_max = 0.0
        self._late_count = 0
        self._prefixes = PrefixCache()
        self._answered: set[int] = set()
        """Digests of the prompts that were answered, for a server with a response cache."""

        self._reset_stats(_now())

    @property
    def url(self) -> str:
        """Where the server listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def stop(self) -> None:
        """End `serve` soon; from any thread or a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake_out.send(b"x")

    def serve(self) -> None:
        """Serve until `stop`, then close every socket."""
        poller, heap, unread = self._poller, self._heap, self._unread
        poller.register(self._listener.fileno(), READ)
        poller.register(self._wake_in.fileno(), READ)
        try:
            while not self._stopping:
                timeout = 0.0 if unread else (heap[0][0] - _now() if heap else 1.0)
                ready = poller.wait(min(timeout, 1.0))
                now = _now()
                for descriptor, mask in ready:
                    self._ready(descriptor, mask, now)
                self._send_due()
                for _ in range(min(len(unread), _READS)):
                    self._read(unread.popleft())
                    self._send_due()
        finally:
            self._close()

    def _close(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        for item in (self._listener, self._wake_in, self._wake_out, self._poller):
            item.close()

    # Sockets.

    def _ready(self, descriptor: int, mask: int, now: float) -> None:
        connection = self._connections.get(descriptor)
        if connection is None:
            if descriptor == self._listener.fileno():
                self._accept()
            return
        if mask & WRITE:
            self._write(connection, b"")
        if not mask & ~WRITE or connection.closed:
            return
        try:
            data, came_ns = receive(connection.sock, 262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        if not connection.inbox:
            waited = (time.time_ns() - came_ns) / 1e9 - (_now() - now)
            # Without a kernel time, or after the wall clock was set, the request arrived when epoll said so.
            connection.arrival = now - waited if 0 <= waited < 60 else now
        connection.inbox += data
        if not connection.streaming:
            self._unread.append(connection)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                # No more to accept, or no descriptors left: those who wait stay in the backlog.
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_times(sock)
            self._connections[sock.fileno()] = _Connection(sock)
            self._poller.register(sock.fileno(), READ)

    def _drop(self, connection: _Connection, *, reset: bool = False) -> None:
        if connection.closed:
            return
        connection.closed = True
        if connection.streaming:
            self._end_stream(connection)
        del self._connections[connection.sock.fileno()]
        self._poller.unregister(connection.sock.fileno())
        if reset:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        connection.sock.close()

    def _write(self, connection: _Connection, data: bytes) -> None:
        waiting = bool(connection.outbox)
        if waiting:
            data = connection.outbox + data
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        connection.outbox = data[sent:]
        if bool(connection.outbox) != waiting:
            self._poller.modify(connection.sock.fileno(), READ if waiting else READ | WRITE)

    # Requests.

    def _read(self, connection: _Connection) -> None:
        """Answer one request of a connection, if a whole one has come."""
        if connection.closed or connection.streaming:
            return
        inbox = connection.inbox
        end = inbox.find(b"\r\n\r\n")
        if end < 0:
            if len(inbox) > 65536:
                self._refuse(connection, 400, "the head of the request is too long", close=True)
            return
        method, target, length = _read_head(bytes(inbox[:end]))
        if length is None:
            self._refuse(connection, 413, "requests need a Content-Length of at most 64 MiB", close=True)
            return
        total = end + 4 + length
        if len(inbox) < total:
            return
        body = bytes(inbox[end + 4 : total])
        del inbox[:total]
        self._answer(connection, method, target, body)
        if not connection.closed and not connection.streaming and inbox:
            self._unread.append(connection)

    def _answer(self, connection: _Connection, method: str, target: str, body: bytes) -> None:
        path, _, query = target.partition("?")
        chat = path == "/v1/chat/completions"
        if method == "GET":
            if path == "/health":
                self._respond(connection, b"{}")
            elif path == "/v1/models":
                model = {"id": self.behaviour.model, "object": "model", "created": 1700000000, "owned_by": "simulated"}
                self._respond(connection, json.dumps({"object": "list", "data": [model]}).encode())
            elif path == "/stats":
                self._respond(connection, json.dumps(self.stats()).encode())
                if query == "reset":
                    self._reset_stats(_now())
            else:
                self._refuse(connection, 404, f"no such path: {path}")
        elif method == "POST" and (chat or (path == "/v1/completions" and not self.behaviour.chat_only)):
            self._complete(connection, body, chat=chat)
        else:
            self._refuse(connection, 404, f"no such path: {method} {path}")

    def _complete(self, connection: _Connection, body: bytes, *, chat: bool) -> None:
        behaviour = self.behaviour
        number = self._requests
        self._requests += 1
        if _picked(behaviour.error_rate, number):
            self._refuse(connection, behaviour.error_status, "simulated error")
            return
        try:
            asked = json.loads(body.decode())
            if not isinstance(asked, dict):
                raise ValueError("the body must be an object")
            name = asked.get("model", behaviour.model)
            if name != behaviour.model:
                self._refuse(connection, 404, f"the model {name!r} does not exist; it is {behaviour.model!r}")
                return
            count = asked.get("max_completion_tokens") or asked.get("max_tokens") or _DEFAULT_MAX_TOKENS
            if not isinstance(count, int) or count < 1:
                raise ValueError("max_tokens must be a whole number above 0")
            count = min(count, behaviour.max_output_tokens or count)
            garbled = self._active > 0 and _picked(behaviour.garble_rate, number)
            answer = Answer(
                asked,
                model=behaviour.model,
                count=max(1, round(count * (1 - behaviour.unsent))),
                chat=chat,
                reasoning_tokens=behaviour.reasoning_tokens,
                shift=1 + number % 63 if garbled else 0,
                claimed=count,
            )
        except ValueError as error:
            self._refuse(connection, 400, str(error))
            return
        if behaviour.prefix_cache:
            answer.cached = self._prefixes.look(prompt_units(asked))
        options = asked.get("stream_options") or {}
        streams = asked.get("stream") is True
        usage = streams and behaviour.usage and options.get("include_usage") is True
        count = answer.count
        known = behaviour.response_cache and answer.digest in self._answered
        if behaviour.response_cache:
            self._answered.add(answer.digest)
        due = connection.arrival + (0.0 if known else behaviour.ttft_ms / 1000)
        stream = _Stream(connection, answer, stream=streams, usage=usage, due=due)
        stream.itl_s = 0.0 if known else behaviour.itl_ms / 1000
        if streams:
            half = count // 2
            stream.stall_at = half if _picked(behaviour.stall_rate, number) else -1
            stream.cut_at = half if _picked(behaviour.disconnect_rate, number) else -1
            stream.bad_at = half if _picked(behaviour.malformed_rate, number) else -1
        else:
            stream.due += (count - 1) * stream.itl_s
        self._count_active(1, connection.arrival)
        connection.streaming = True
        if streams and chat and behaviour.role_chunk:
            self._write(connection, stream.prefix + answer.role())
            stream.prefix = b""
        if streams and behaviour.fake_first:
            self._write(connection, stream.prefix + answer.fake())
            stream.prefix, stream.next = b"", 1
            stream.due += stream.itl_s
        self._schedule(stream)

    def _refuse(self, connection: _Connection, status: int, message: str, *, close: bool = False) -> None:
        self._errors += 1
        self._respond(connection, error_body(message, status), status=status, close=close)

    def _respond(self, connection: _Connection, body: bytes, *, status: int = 200, close: bool = False) -> None:
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{'Connection: close' + chr(13) + chr(10) if close else ''}\r\n"
        )
        self._write(connection, head.encode() + body)
        if close:
            self._drop(connection)

    # Tokens.

    def _schedule(self, stream: _Stream) -> None:
        self._serial += 1
        due = stream.due
        if self.behaviour.jitter_ms:
            due += self._jitter.random() * self.behaviour.jitter_ms / 1000
        heapq.heappush(self._heap, (due, self._serial, stream))

    def _send_due(self) -> None:
        """Send every chunk whose moment has come, each stream's with one call."""
        heap = self._heap
        now = _now()
        while heap and heap[0][0] <= now:
            due, _, stream = heapq.heappop(heap)
            if stream.connection.closed:
                continue
            late = now - due
            self._late_sum += late
            self._late_count += 1
            if late > self._late_max:
                self._late_max = late
            self._advance(stream, now)
            now = _now()

    def _advance(self, stream: _Stream, now: float) -> None:
        behaviour, answer, connection = self.behaviour, stream.answer, stream.connection
        if not stream.stream:
            self._tokens += answer.count
            self._end_stream(connection)
            self._respond(connection, answer.whole())
            return
        gap = stream.itl_s * (1 + behaviour.slowdown * (self._active - 1)) * behaviour.tokens_per_chunk
        data = stream.prefix
        stream.prefix = b""
        count, start = answer.count, stream.next
        while start < count:
            stop = min(count, start + behaviour.tokens_per_chunk)
            if start <= stream.stall_at < stop:
                stream.stall_at = -1
                stream.due += behaviour.stall_ms / 1000
                break
            if start <= stream.cut_at < stop:
                self._write(connection, data)
                self._drop(connection, reset=True)
                return
            if start <= stream.bad_at < stop:
                stream.bad_at = -1
                data += chunk(b'data: {"choices": [{"text": \n\n')
            data += answer.event(start, stop)
            self._tokens += stop - start
            start = stop
            stream.due += gap
            if stream.due > now or behaviour.jitter_ms:
                break
        stream.next = start
        if start >= count:
            data += answer.end(usage=stream.usage)
            self._end_stream(connection)
            self._write(connection, data)
            return
        if data:
            self._write(connection, data)
        self._schedule(stream)

    def _end_stream(self, connection: _Connection) -> None:
        connection.streaming = False
        self._count_active(-1, _now())
        if connection.inbox:
            connection.arrival = _now()
            self._unread.append(connection)

    # Statistics.

    def _reset_stats(self, now: float) -> None:
        self._late_sum = self._late_max = 0.0
        self._late_count = self._requests = self._errors = self._tokens = 0
        self._peak = self._active
        self._active_s = 0.0
        self._counted_to = self._since = now
        self._cpu = time.process_time()

    def _count_active(self, change: int, now: float) -> None:
        self._active_s += self._active * (now - self._counted_to)
        self._counted_to = now
        self._active += change
        self._peak = max(self._peak, self._active)

    def stats(self) -> dict[str, Any]:
        """Return what the server knows of itself since its start or the last reset; times in milliseconds."""
        now = _now()
        self._count_active(0, now)
        return {
            "active": self._active,
            "peak_active": self._peak,
            "mean_active": self._active_s / max(now - self._since, 1e-9),
            "requests": self._requests,
            "errors": self._errors,
            "tokens": self._tokens,
            "sends": self._late_count,
            "lateness_mean_ms": 1000 * self._late_sum / max(1, self._late_count),
            "lateness_max_ms": 1000 * self._late_max,
            "cpu_s": time.process_time() - self._cpu,
            "since_s": now - self._since,
        }


@contextlib.contextmanager
def serve_in_thread(behaviour: Behaviour, *, port: int = 0) -> Iterator[SimulatedServer]:
    """Serve from a thread of this process for as long as the block runs, as a test wants it."""
    server = SimulatedServer(behaviour, port=port)
    thread = threading.Thread(target=server.serve, name="simulated server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


@functools.lru_cache(1024)
def _read_head(head: bytes) -> tuple[str, str, int | None]:
    """Return method, target and length of a request, the length None where it is no size of a body."""
    line, *rows = head.split(b"\r\n")
    headers = {}
    for row in rows:
        name, _, value = row.partition(b":")
        headers[name.strip().lower()] = value.strip()
    method, _, rest = line.decode("latin-1").partition(" ")
    target = rest.partition(" ")[0]
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > _MAX_REQUEST or b"transfer-encoding" in headers:
        return method, target, None
    return method, target, int(length)


def _picked(rate: float, number: int) -> bool:
    """Whether request `number`, counted from 0, is among the share `rate`."""
    return int((number + 1) * rate) > int(number * rate)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
