"""When requests are due under open loop: seeded arrival processes, and the times of a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from pytest_inferperf.errors import SettingsError, choices

__all__ = ["ARRIVALS", "ArrivalKind", "Arrivals", "TraceTimes"]

ArrivalKind = Literal["poisson", "constant", "gamma"]
ARRIVALS: tuple[ArrivalKind, ...] = get_args(ArrivalKind)


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """An open loop: requests are due at these times whether or not earlier ones were answered.

    Raises `SettingsError` for a rate or a burstiness that is not above 0, an unknown kind, and a burstiness that the
    kind does not take.
    """

    rate: float
    """Requests per second, in the mean."""

    kind: ArrivalKind = "poisson"
    burstiness: float = 1.0
    """Shape of the gamma distribution of the gaps, as in vLLM: 1 is Poisson, below 1 comes in bursts, above is evener."""

    seed: int = 0
    has_end: ClassVar[bool] = False
    """Whether every request is measured, and none comes before or after."""

    def __post_init__(self) -> None:
        if self.kind not in ARRIVALS:
            raise SettingsError(f"arrival {self.kind!r} is unknown. {choices(self.kind, ARRIVALS, what='Arrivals')}")
        for name in ("rate", "burstiness"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise SettingsError(f"{name} {value}: must be a number above 0.")
        if self.burstiness != 1.0 and self.kind != "gamma":
            raise SettingsError(f"burstiness {self.burstiness:g} goes with arrival 'gamma', not {self.kind!r}.")

    def times(self) -> Iterator[float]:
        """Yield the times at which requests are due, seconds from the start, without end."""
        generator = random.Random(self.seed)
        time_s, gap = 0.0, 1 / self.rate
        shape = 1.0 if self.kind == "poisson" else self.burstiness
        while True:
            yield time_s
            time_s += gap if self.kind == "constant" else generator.gammavariate(shape, gap / shape)


@dataclass(frozen=True)
class TraceTimes:
    """An open loop: requests are due when they came in a trace, all of them measured."""

    times_s: tuple[float, ...]
    """From the start, none before the one ahead of it; at least one."""

    has_end: ClassVar[bool] = True

    @property
    def rate(self) -> float:
        """Requests per second, in the mean; infinite where all come at once."""
        span = self.times_s[-1] - self.times_s[0]
        return (len(self.times_s) - 1) / span if span > 0 else float("inf")

    def times(self) -> Iterator[float]:
        """Yield the times at which requests are due, seconds from the start."""
        return iter(self.times_s)
