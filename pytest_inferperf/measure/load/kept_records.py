"""The requests of a round as a result file keeps them: all of them, or a sample that says so."""

from __future__ import annotations

import random
from typing import Any

from pytest_inferperf.measure.load.records import Records

__all__ = ["MOST_RECORDS", "keep_records"]

MOST_RECORDS = 10_000
"""Some 300 KB of a result file, for each round."""


def keep_records(records: Records, *, most: int = MOST_RECORDS) -> dict[str, Any]:
    """Return `of`, the number of requests, and `rows`, as `Records.pack` has them, of no more than `most` of them.

    Which ones is drawn by chance, always the same; `Records.unpack` reads the rows.
    """
    total = len(records)
    kept = records
    if total > most:
        places = sorted(random.Random("records").sample(range(total), most))
        kept = Records()
        for name, column in vars(records).items():
            getattr(kept, name).extend(column[place] for place in places)
    return {"of": total, "rows": kept.pack()}
