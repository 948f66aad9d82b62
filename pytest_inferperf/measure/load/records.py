"""What is kept of each request: a row of numbers in flat arrays, about 80 bytes; and samples of any length."""

from __future__ import annotations

import base64
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from operator import ge
from typing import Any

__all__ = ["FILLER", "MEASURED", "WARMUP", "Records", "Sample", "latencies_ms"]

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

    @classmethod
    def joined(cls, samples: Sequence[Sample]) -> Sample:
        """Return the values of several samples as one; of a single sample, itself."""
        if len(samples) == 1:
            return samples[0]
        found = cls()
        for sample in samples:
            sample._flush()
            found._sum += sample._sum
            found._count += sample._count
            found._dense += sample._dense
            for tick, count in sample._large.items():
                found._large[tick] = found._large.get(tick, 0) + count
        return found

    def state(self) -> tuple[array[int], array[int], float]:
        """Return every value that came, in µs, how often each did, and the sum of all in milliseconds; for `of_state`."""
        import numpy as np

        self._flush()
        present = np.flatnonzero(self._dense)
        large = sorted(self._large)
        ticks = array("q", [*present.tolist(), *large])
        return ticks, array("q", [*self._dense[present].tolist(), *map(self._large.__getitem__, large)]), self._sum

    @classmethod
    def of_state(cls, ticks: array[int], counts: array[int], total_ms: float) -> Sample:
        """Inverse of `state`. Raises `ValueError` for what cannot come from there."""
        if len(ticks) != len(counts) or any(map(ge, ticks, ticks[1:])) or min(ticks, default=0) < 0:
            raise ValueError(f"{len(ticks)} values with {len(counts)} counts are no sample")
        if min(counts, default=1) < 1 or not (total_ms >= 0 or not ticks):
            raise ValueError("no sample has a count below 1, or a sum below 0")
        found = cls()
        for tick, count in zip(ticks, counts, strict=True):
            if tick < _DENSE_US:
                found._dense[tick] = count
            else:
                found._large[tick] = count
        found._sum, found._count = total_ms, sum(counts)
        return found

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
    """One row per request. Times are seconds on the generator's clock.

    One process has them in the order in which they ended, a run in that of its plan.
    """

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

        self.turn = array("h")
        """Which turn of its conversation it was, from 1; 0 for a request that was no part of one."""

        self.number = array("i")
        """Which measured request of the plan it was, from 0; all turns of a conversation have that of the first one. -1 for
        warm-up and fillers."""

        self.asked_prompt = array("q")
        """Tokens of the prompt that was sent; -1 where the caller does not say."""

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
        asked_prompt: int = -1,
        turn: int = 0,
        number: int = -1,
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
        self.turn.append(turn)
        self.number.append(number)
        self.asked_prompt.append(asked_prompt)

    @classmethod
    def joined(cls, records: Sequence[Records], stop: float) -> tuple[Records, list[float]]:
        """Return the rows of several processes as one table, but for those that ended after `stop`: when these were sent.

        First the warm-up, then the measured requests in the order of the plan, of which every nth is that of one process, then
        fillers.
        """
        import numpy as np

        tables = [item.columns() for item in records]
        for place, item in enumerate(tables):
            item["number"] = np.where(item["number"] < 0, -1, item["number"] * len(tables) + place)
        table = {name: np.concatenate([item[name] for item in tables]) for name in tables[0]}
        inside = np.flatnonzero(table["done"] <= stop)
        keys = [table[name][inside] for name in ("done", "turn", "number", "kind")]
        order = inside[np.lexsort(keys)]
        found = cls()
        for name, column in vars(found).items():
            column.frombytes(table[name][order].astype(column.typecode).tobytes())
        return found, table["sent"][table["done"] > stop].tolist()

    def __len__(self) -> int:
        return len(self.kind)

    def columns(self) -> dict[str, Any]:
        """Return the columns as numpy arrays, `ok` as booleans."""
        import numpy as np

        found = {name: np.array(column) for name, column in vars(self).items()}
        found["ok"] = found["ok"].astype(bool)
        return found

    def pack(self) -> dict[str, str | int]:
        """Return all rows as text for a JSON file, some 30 bytes each; `unpack` reads it.

        Each column is base64 of zlib of little-endian numbers: seconds since the first request was due (float64), seconds
        from there to the other moments (float32: within 0.1 µs up to a second), counts (int32), and one byte for flags;
        turns (int16) and which conversation each belongs to (int32) only where there are conversations.
        """
        import numpy as np

        columns = self.columns()
        intended = columns["intended"]
        packed: dict[str, str | int] = {"requests": len(self)}
        for name, kind in _PACKED.items():
            column = columns[name]
            if name in _OF_TALKS and not columns["turn"].any():
                continue
            if name == "intended":
                column = intended - (intended.min() if len(intended) else 0.0)
            elif name in _MOMENTS:
                # A moment that never came is 0 in a row.
                column = np.where(column > 0, column - intended, np.nan)
            packed[name] = base64.b64encode(zlib.compress(column.astype(kind).tobytes())).decode()
        return packed

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Records:
        """Read what `pack` returned. Times count from 1 s before the first request was due, since 0 is no moment.

        Raises `ValueError` for anything else.
        """
        import numpy as np

        count = packed.get("requests")
        if {*packed, *_OF_TALKS} != {"requests", *_PACKED} or not isinstance(count, int) or count < 0:
            raise ValueError(f"not packed records: {sorted(packed)}")
        columns: dict[str, Any] = {}
        for name, kind in _PACKED.items():
            if name not in packed:
                columns[name] = np.full(count, _OF_TALKS[name], dtype=kind)
                continue
            try:
                data = zlib.decompress(base64.b64decode(packed[name], validate=True))
                columns[name] = np.frombuffer(data, dtype=kind)
            except (TypeError, ValueError, zlib.error) as error:
                raise ValueError(f"packed records: {name}: {error}") from None
            if len(columns[name]) != count:
                raise ValueError(f"packed records: {name}: {len(columns[name])} values for {count} requests")
        columns["intended"] = columns["intended"] + 1.0
        for name in _MOMENTS:
            columns[name] = np.nan_to_num(columns["intended"] + columns[name], nan=0.0)
        records = cls()
        for name, column in vars(records).items():
            column.frombytes(columns[name].astype(column.typecode).tobytes())
        return records


def latencies_ms(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the latencies of requests that succeeded, from their columns: TTFT, TPOT and end to end, in milliseconds.

    TTFT and end to end count from when a request was due. TPOT has a value for each request whose tokens came in more
    than one chunk.
    """
    later = rows["tokens"] - rows["first_tokens"]
    many = later > 0
    return {
        "ttft_ms": 1000 * (rows["first"] - rows["intended"]),
        # Tokens of the first chunk all came at once: the rest shares the time after it.
        "tpot_ms": 1000 * (rows["last"] - rows["first"])[many] / later[many],
        "e2e_latency_ms": 1000 * (rows["last"] - rows["intended"]),
    }


_OF_TALKS = {"turn": 0, "number": -1}
"""Columns that are packed only where there are conversations, and what they hold where they are not."""

_MOMENTS = ("sent", "first", "last", "done")
_PACKED = {
    "kind": "<i1",
    "ok": "<i1",
    "intended": "<f8",
    **dict.fromkeys(_MOMENTS, "<f4"),
    "tokens": "<i4",
    "first_tokens": "<i4",
    "prompt_tokens": "<i4",
    "turn": "<i2",
    "number": "<i4",
    "asked_prompt": "<i4",
}
