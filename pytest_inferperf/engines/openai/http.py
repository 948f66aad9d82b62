"""HTTP/1.1 responses, read piece by piece as they arrive, with the time of each piece kept."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_inferperf.hiding import excerpt

__all__ = ["HttpError", "ResponseReader", "timed_chunks", "whole_chunks"]

_MAX_HEAD = 65536
_HEX = frozenset(b"0123456789abcdefABCDEF")
_SIZES: dict[bytes, int] = {}
"""Sizes of chunks that were read before: a server sends few different ones."""

_MAX_SIZES = 4096
_HEADS: dict[bytes, tuple[int, dict[bytes, bytes], bool]] = {}
"""Heads that were read before, to status, headers and whether the connection is kept: most servers send the same one
again and again, or one a second where it holds the date."""

_MAX_HEADS = 64


class HttpError(Exception):
    """Bytes that are no HTTP/1.1 response; `str(error)` says what is wrong with them."""


class ResponseReader:
    """Reads one response: status, headers, and a body that is chunked, of known length, or ends with the connection.

    `feed` is on the path of the clock, so it does only what finds the end of the response: what the body says is read
    later, by `sse`.
    """

    __slots__ = (
        "_buffer",
        "_chunked",
        "_left",
        "_step",
        "headers",
        "keep_alive",
        "pieces",
        "status",
        "surplus",
        "times",
    )

    def __init__(self) -> None:
        self.status = 0
        """0 until the head has come."""

        self.headers: dict[bytes, bytes] = {}
        """Names in lower case. Not to be changed: responses with the same head share them."""

        self.pieces: list[bytes] = []
        """The body."""

        self.times: list[float] = []
        """When each piece of the body arrived; same length as `pieces`."""

        self.keep_alive = True
        self.surplus = b""
        """What came after the end of the response."""

        # A function, not a bound method: that would be a cycle, and the generator runs without garbage collection.
        self._step = ResponseReader._head
        self._buffer = b""
        self._chunked = False
        self._left = 0

    def feed(self, data: bytes, time_s: float) -> bool:
        """Take what arrived at `time_s`; return whether the response is complete. Raises `HttpError`."""
        if self._chunked and not self._buffer and not self._left:
            # The usual case: one whole chunk at a time.
            end = data.find(b"\r\n", 0, 10)
            if end > 0:
                size = _SIZES.get(data[:end], 0)
                if size and len(data) == end + 4 + size:
                    if data[-2:] != b"\r\n":
                        raise HttpError("a chunk does not end where it says")
                    self.pieces.append(data[end + 2 : -2])
                    self.times.append(time_s)
                    return False
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        return self._step(self, data, time_s)

    def eof(self) -> bool:
        """Say whether a connection that ends here has given a complete response."""
        return self._step is ResponseReader._until_close

    @property
    def begun(self) -> bool:
        """Whether any byte has come."""
        return bool(self.status or self._buffer)

    def _head(self, data: bytes, time_s: float) -> bool:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _MAX_HEAD:
                raise HttpError("the head of the response does not end")
            if not b"HTTP/".startswith(data[:5]):
                raise HttpError(f"not HTTP: {excerpt(data, 20)!r}")
            self._buffer = data
            return False
        head, rest = data[:end], data[end + 4 :]
        known = _HEADS.get(head)
        if known is None:
            known = _read_head(head)
            if len(_HEADS) >= _MAX_HEADS:
                _HEADS.clear()
            _HEADS[head] = known
        if known[0] // 100 == 1:
            # 100 Continue and the like come before the response.
            return self._head(rest, time_s)
        self.status, self.headers, self.keep_alive = known
        coding = self.headers.get(b"transfer-encoding")
        length = self.headers.get(b"content-length")
        if coding is not None:
            if coding.lower() != b"chunked":
                raise HttpError(f"transfer encoding {excerpt(coding, 60)!r}")
            self._chunked = True
            self._step = ResponseReader._chunks
            return self._chunks(rest, time_s)
        if length is not None:
            if not length.isdigit():
                raise HttpError(f"content length {excerpt(length, 60)!r}")
            self._left = int(length)
            self._step = ResponseReader._fixed
            return self._fixed(rest, time_s)
        if self.status in (204, 304):
            self.surplus = rest
            return True
        self.keep_alive = False
        self._step = ResponseReader._until_close
        return self._until_close(rest, time_s)

    def _keep(self, data: bytes, time_s: float) -> None:
        if data:
            self.pieces.append(data)
            self.times.append(time_s)

    def _until_close(self, data: bytes, time_s: float) -> bool:
        self._keep(data, time_s)
        return False

    def _fixed(self, data: bytes, time_s: float) -> bool:
        self._keep(data[: self._left], time_s)
        self.surplus = data[self._left :]
        self._left -= min(self._left, len(data))
        return not self._left

    def _chunks(self, data: bytes, time_s: float) -> bool:
        whole = None if self._left else whole_chunks(data)
        if whole is not None:
            self._keep(whole[0], time_s)
            return whole[1]
        position = 0
        found: list[bytes] = []
        if self._left:
            # In the middle of a chunk: its data and the line end after it.
            if len(data) < self._left:
                body = max(0, self._left - 2)
                if len(data) > body:
                    # The line end is torn: wait for its other half.
                    self._keep(data[:body], time_s)
                    self._left, self._buffer = 2, data[body:]
                else:
                    self._keep(data, time_s)
                    self._left -= len(data)
                return False
            position = self._left
            if data[position - 2 : position] != b"\r\n":
                raise HttpError("a chunk does not end where it says")
            found.append(data[: position - 2])
            self._left = 0
        done = False
        while position < len(data):
            end = data.find(b"\r\n", position)
            if end < 0:
                if len(data) - position > 1024:
                    raise HttpError("the size of a chunk does not end")
                self._buffer = data[position:]
                break
            line = data[position:end]
            size = _SIZES.get(line)
            if size is None:
                size = _size(line.partition(b";")[0].strip())
            if size == 0:
                # Trailers, if any, and an empty line.
                if data[end : end + 4] != b"\r\n\r\n":
                    last = data.find(b"\r\n\r\n", end)
                    if last < 0:
                        self._buffer = data[position:]
                        break
                    end = last
                self.surplus = data[end + 4 :]
                done = True
                break
            start, stop = end + 2, end + 2 + size
            if len(data) < stop + 2:
                found.append(data[start:stop])
                self._left = size - len(found[-1]) + 2
                self._buffer = data[stop:]
                break
            if data[stop : stop + 2] != b"\r\n":
                raise HttpError("a chunk does not end where it says")
            found.append(data[start:stop])
            position = stop + 2
        self._keep(b"".join(found) if len(found) != 1 else found[0], time_s)
        return done


def whole_chunks(data: bytes) -> tuple[bytes, bool] | None:
    """Read data that is whole chunks, and may end with the end of the body; None for any other.

    Returns what the chunks hold, and whether the end has come. Many chunks cost little more than one.
    """
    found = _split(data)
    return None if found is None else (b"".join(found[1]), found[2])


def timed_chunks(
    arrivals: Sequence[bytes], times: Sequence[float]
) -> tuple[Sequence[bytes], Sequence[float], bool] | None:
    """Read arrivals that are whole chunks each, however many, and may end with the end of the body; None for any other.

    `times[i]` is when `arrivals[i]` came. Returns what each chunk holds, when it came, and whether the end has come. All
    are read at once: a chunk costs little more than the arrival that it came in.
    """
    found = _split(b"".join(arrivals))
    if found is None:
        return None
    lines, held, done = found
    chunk_times = []
    left, time_s = 0, 0.0
    upcoming = zip(map(len, arrivals), times, strict=True)
    for line, content in zip(lines, held, strict=True):
        if not left:
            left, time_s = next(upcoming)
        left -= len(line) + len(content) + 4
        if left < 0:
            # Torn: its bytes have two times.
            return None
        chunk_times.append(time_s)
    return held, chunk_times, done


def _split(data: bytes) -> tuple[list[bytes], list[bytes], bool] | None:
    """Return the lines with the sizes of whole chunks, what they hold, and whether the end has come; None for any other.

    Lines end within what some chunks hold: those are others too.
    """
    parts = data.split(b"\r\n")
    if len(parts) % 2 == 0 or parts[-1]:
        return None
    done = parts[-3:] == [b"0", b"", b""]
    del parts[-3 if done else -1 :]
    lines, held = parts[::2], parts[1::2]
    # A chunk without content is the end of the body, which has a form of its own.
    if b"" in held:
        return None
    sizes = list(map(len, held))
    if list(map(_SIZES.get, lines)) == sizes:
        return lines, held, done
    try:
        # There may be sizes that have not been read before.
        return (lines, held, done) if list(map(_size, lines)) == sizes else None
    except HttpError:
        return None


def _read_head(head: bytes) -> tuple[int, dict[bytes, bytes], bool]:
    """Return status, headers, and whether the connection is kept. Raises `HttpError`."""
    line, *rows = head.split(b"\r\n")
    version, _, rest = line.partition(b" ")
    status = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not status.isdigit() or len(status) != 3:
        raise HttpError(f"not an HTTP/1.1 response: {excerpt(line, 60)!r}")
    headers = {}
    # What comes before the response is read no further than its status.
    for row in rows if status[:1] != b"1" else ():
        name, colon, value = row.partition(b":")
        if not colon or name != name.strip():
            raise HttpError(f"not a header: {excerpt(row, 60)!r}")
        headers[name.lower()] = value.strip()
    connection = headers.get(b"connection", b"").lower()
    kept = b"close" not in connection if version == b"HTTP/1.1" else b"keep-alive" in connection
    return int(status), headers, kept


def _size(text: bytes) -> int:
    size = _SIZES.get(text)
    if size is None:
        if not text or len(text) > 8 or not _HEX.issuperset(text):
            raise HttpError(f"not the size of a chunk: {excerpt(text, 20)!r}")
        size = int(text, 16)
        if len(_SIZES) < _MAX_SIZES:
            _SIZES[text] = size
    return size
