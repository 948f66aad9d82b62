"""A value for the `inferperf` mark: one case that measures the same workload at several loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Sweep", "sweep"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What `sweep` was called with; the mark checks it."""

    axes: tuple[tuple[str, tuple[int | float, ...]], ...]


def sweep(**axes: Sequence[int | float]) -> Sweep:
    """Measure one case at each of several loads: `inferperf(sweep(concurrency=[1, 8, 64]), isl=1024, osl=1024)`.

    A list in the mark itself is a cross product, one test for each value; a sweep is one test, whose points share every
    launch of the engine and are judged each by every gate.

    Args:
        axes: Either `concurrency` or `request_rate`, with its values.

    """
    return Sweep(axes=tuple((name, tuple(values)) for name, values in axes.items()))
