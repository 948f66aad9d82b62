"""A reader of responses that does next to nothing while chunks arrive, and reads them after the end."""

from __future__ import annotations

from pytest_inferperf.engines.openai.http import HttpError, ResponseReader, timed_chunks, whole_chunks

__all__ = ["LateReader"]

_END = b"\r\n\r\n"
_ARRIVAL_BYTES = 100


class LateReader(ResponseReader):
    """A `ResponseReader` for the path of the clock: in a chunked body it looks for the end alone.

    A body that does not end in an empty line has not ended. Where the last bytes to arrive are whole chunks up to the end, the
    response is complete, and `finish` reads what came before; in any other case all is read at once, as
    `ResponseReader` does. Bytes that are no chunked body may so be found late, but are found.
    """

    __slots__ = ("_late", "_late_times")

    def __init__(self) -> None:
        super().__init__()
        self._late: list[bytes] = []
        self._late_times: list[float] = []

    def feed(self, data: bytes, time_s: float) -> bool:
        """See `ResponseReader.feed`."""
        if not self._chunked:
            return super().feed(data, time_s)
        self._late.append(data)
        self._late_times.append(time_s)
        if data[-4:] != _END:
            # The end may be torn.
            return len(data) < len(_END) and self._read()
        found = whole_chunks(data)
        between = len(self._late) > 1 or not (self._buffer or self._left)
        if between and found is not None and found[1]:
            return True
        return self._read()

    @property
    def held(self) -> int:
        """Bytes that the response takes in memory, some 100 for each arrival included."""
        arrivals = len(self.pieces) + len(self._late)
        return sum(map(len, self.pieces)) + sum(map(len, self._late)) + arrivals * _ARRIVAL_BYTES

    def eof(self) -> bool:
        """See `ResponseReader.eof`. Raises `HttpError`."""
        return self._read() or super().eof()

    def finish(self) -> None:
        """Read what a complete response holds. Raises `HttpError`."""
        if self._late and not self._read():
            raise HttpError("a chunk does not end where it says")

    def catch_up(self) -> None:
        """Read what has come so far of a response that is not complete. Raises `HttpError`."""
        self._read()

    def _read(self) -> bool:
        late, times = self._late, self._late_times
        self._late, self._late_times = [], []
        if late and self._chunked and not self._buffer and not self._left:
            found = timed_chunks(late, times)
            if found is not None:
                pieces, piece_times, done = found
                self.pieces += pieces
                self.times += piece_times
                return done
        done = False
        for data, time_s in zip(late, times, strict=True):
            if done:
                raise HttpError("more came after the end of the response")
            done = super().feed(data, time_s)
        return done
