"""How long sockets may wait to be looked at, so that chunks which arrive close together cost one wake and not one each.

Where the kernel times arrivals, looking late does no harm to any timestamp. It keeps a stream idle until its next request
goes out, though, and chunks of one stream that come in together get one time. So a rest is a small share of the
shortest request so far, and of its time per token. Before any answer has ended, every request takes at least as long as
the first has been under way. There is no rest without kernel times.
"""

from __future__ import annotations

__all__ = ["Rest"]

_MOST_S = 0.005
_REQUEST_SHARE = 0.002
"""Of a request: at most this share of the concurrency is lost to rests, and half of it in the mean."""

_TOKEN_SHARE = 0.25
"""Of the time from token to token."""


class Rest:
    """Says how long after a look at the sockets the next one has time."""

    def __init__(self) -> None:
        self._shortest = float("inf")
        self._first: tuple[float, int] | None = None
        self._until = 0.0
        self._known = True

    def sent(self, now: float, tokens: int) -> None:
        """Take that a request for `tokens` goes out."""
        if self._first is None:
            self._first = (now, tokens)

    def answered(self, duration_s: float, tokens: int) -> None:
        """Take how long a request took, and how many tokens it asked for."""
        length = _share(duration_s, tokens)
        if length < self._shortest:
            self._shortest = length

    def untimed(self) -> None:
        """Take that the kernel did not time an arrival: a look that is late would make its time wrong."""
        self._known = False

    def looked(self, now: float, *, more: bool) -> None:
        """Take a look that found something at `now`; `more` than it took at once may be left."""
        if more or not self._known or self._first is None:
            self._until = 0.0
        elif self._shortest < float("inf"):
            self._until = now + self._shortest
        else:
            begun, tokens = self._first
            self._until = now + _share(now - begun, tokens)

    def left(self, now: float) -> float:
        """Return how long the sockets may still wait, seconds; 0 or less when they must be looked at."""
        return self._until - now


def _share(duration_s: float, tokens: int) -> float:
    return min(duration_s * _REQUEST_SHARE, duration_s / tokens * _TOKEN_SHARE, _MOST_S)
