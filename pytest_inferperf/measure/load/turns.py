"""First tokens by turn: a conversation's later turns carry all that was said before, and a prefix cache may know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_inferperf.model.results import TurnFigures

__all__ = ["turn_figures"]


def turn_figures(measured: Mapping[str, Any], input_tokens: Any) -> tuple[TurnFigures, ...]:
    """Return the figures of each turn; none where no conversation had more than one.

    `measured` holds the columns of measured requests, failed ones too, and `input_tokens` the length of the prompt of
    each, NaN where nobody knows it. Percentiles interpolate linearly, as those of all requests do.
    """
    import numpy as np

    turns = measured["turn"]
    if not len(turns) or turns.max() < 2:
        return ()
    ttft_ms = 1000 * (measured["first"] - measured["intended"])
    found = []
    for turn in np.unique(turns[turns > 0]).tolist():
        asked = turns == turn
        good = asked & measured["ok"]
        known = input_tokens[good & ~np.isnan(input_tokens)]
        times = ttft_ms[good]
        p50, p99 = np.percentile(times, (50, 99)).tolist() if len(times) else (None, None)
        found.append(
            TurnFigures(
                turn=turn,
                requests=int(asked.sum()),
                failed=int(asked.sum() - good.sum()),
                input_tokens=float(known.mean()) if len(known) else None,
                ttft_ms_p50=p50,
                ttft_ms_p99=p99,
            )
        )
    return tuple(found)
