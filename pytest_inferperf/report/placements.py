"""Where engines had their places on a cluster, and how long they waited for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_inferperf.report.lines import plural
from pytest_inferperf.report.plan import duration

if TYPE_CHECKING:
    from pytest_inferperf.baselines.result_file import ResultRecord
    from pytest_inferperf.model.results import Placement

__all__ = ["PlacementRow", "placement_rows", "waiting_line"]

_WORTH_A_LINE_S = 10.0
"""Time that actors take to start: nobody waited for anybody."""


@dataclass(frozen=True, kw_only=True)
class PlacementRow:
    """One engine on one node, and the tests that it ran there."""

    placement: Placement
    tests: tuple[str, ...]

    @property
    def waited(self) -> str:
        """How long it waited, in words."""
        return duration(self.placement.waited_s)


def placement_rows(records: Sequence[ResultRecord], *, hide: Callable[[str], str]) -> tuple[PlacementRow, ...]:
    """Return a row for each place, in the order in which they were granted; nothing for a run without a cluster."""
    tests: dict[Placement, list[str]] = {}
    for record in records:
        if record.result.placement is not None:
            tests.setdefault(record.result.placement, []).append(hide(record.nodeid))
    return tuple(
        PlacementRow(
            placement=replace(place, engine=hide(place.engine), node=hide(place.node)),
            tests=tuple(tests[place]),
        )
        for place in sorted(tests, key=lambda place: (place.granted, place.node, place.engine))
    )


def waiting_line(placements: Iterable[Placement | None]) -> list[str]:
    """Say in one line how long engines waited for their places; nothing where they hardly did."""
    found = {place for place in placements if place is not None}
    total_s = sum(place.waited_s for place in found)
    if total_s < _WORTH_A_LINE_S:
        return []
    longest = max(found, key=lambda place: (place.waited_s, place.engine, place.node))
    return [
        f"{plural(len(found), 'engine')} waited {duration(total_s)} for nodes; longest {duration(longest.waited_s)}: "
        f"{longest.engine}, on {longest.node}"
    ]
