"""What is kept of each request: a row of numbers in flat arrays, about 70 bytes; and samples of any length."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

__all__ = ["FILLER", "MEASURED", "WARMUP", "Records", "Sample"]

WARMUP, MEASURED, FILLER = range(3)
"""Which part of the load a request belongs to: before, in, and after the measured requests."""

_DENSE_US = 1 << 20
_BUFFER = 4096


class Sample:
    """Every value of a sample, in milliseconds at a resolution of 1 µs, in memory that does not grow with their number.

    Percentiles interpolate linearly between order statistics, as numpy's do.
    """

    def __init__(self) -> None:
        import numpy as np

        self._buffer = array("d")
        self._dense = np.zeros(_DENSE_US, dtype=np.int64)
        self._large: dict[int, int] = {}
        self._sum = 0.0
        self._count = 0

    def add(self, value_ms: float) -> None:
        """Add one value, at least 0."""
        self._buffer.append(value_ms)
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def extend(self, values_ms: Iterable[float]) -> None:
        """Add values, each at least 0."""
        self._buffer.extend(values_ms)
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        import numpy as np

        values = np.frombuffer(self._buffer, dtype=np.float64)
        self._sum += float(values.sum())
        self._count += len(values)
        ticks = np.rint(values * 1000).astype(np.int64)
        small = ticks[ticks < _DENSE_US]
        np.add.at(self._dense, small, 1)
        for tick in ticks[ticks >= _DENSE_US].tolist():
            self._large[tick] = self._large.get(tick, 0) + 1
        del values
        self._buffer = array("d")

    def __len__(self) -> int:
        return self._count + len(self._buffer)

    @property
    def mean(self) -> float:
        """The mean, from the values as they came. The sample must not be empty."""
        return (self._sum + sum(self._buffer)) / len(self)

    def percentiles(self, *shares: float) -> list[float]:
        """Return percentiles, each from 0 to 100. The sample must not be empty."""
        import numpy as np

        if self._buffer:
            self._flush()
        present = np.flatnonzero(self._dense)
        large = sorted(self._large)
        ticks = np.concatenate([present, np.array(large, dtype=np.int64)])
        counts = np.concatenate([self._dense[present], np.array([self._large[tick] for tick in large], dtype=np.int64)])
        upto = np.cumsum(counts)

        def at(rank: int) -> float:
            return float(ticks[int(np.searchsorted(upto, rank, side="right"))]) / 1000

        found = []
        for share in shares:
            rank = share / 100 * (self._count - 1)
            low = int(rank)
            left = at(low)
            right = at(min(low + 1, self._count - 1))
            found.append(left + (rank - low) * (right - left))
        return found


class Records:
    """One row per request, in the order in which they ended. Times are seconds on the generator's clock."""

    def __init__(self) -> None:
        self.kind = array("b")
        self.ok = array("b")
        self.intended = array("d")
        """When the request was due: the planned time under open loop, the send under closed loop."""

        self.sent = array("d")
        self.first = array("d")
        """First token; 0 for a request without success, as `last`."""

        self.last = array("d")
        self.done = array("d")
        """End of the response."""

        self.tokens = array("q")
        self.first_tokens = array("q")
        """Tokens of the first chunk."""

        self.prompt_tokens = array("q")
        """As usage says; -1 without usage."""

    def add(
        self,
        *,
        kind: int,
        ok: bool,
        intended: float,
        sent: float,
        done: float,
        first: float = 0.0,
        last: float = 0.0,
        tokens: int = 0,
        first_tokens: int = 0,
        prompt_tokens: int = -1,
    ) -> None:
        """Add the row of one request."""
        self.kind.append(kind)
        self.ok.append(ok)
        self.intended.append(intended)
        self.sent.append(sent)
        self.first.append(first)
        self.last.append(last)
        self.done.append(done)
        self.tokens.append(tokens)
        self.first_tokens.append(first_tokens)
        self.prompt_tokens.append(prompt_tokens)

    def __len__(self) -> int:
        return len(self.kind)

    def columns(self) -> dict[str, Any]:
        """Return the columns as numpy arrays, `ok` as booleans."""
        import numpy as np

        found = {name: np.array(column) for name, column in vars(self).items()}
        found["ok"] = found["ok"].astype(bool)
        return found
