"""Placement groups: packed onto the first nodes with room."""

from __future__ import annotations

import os
from typing import Any

_groups: dict[str, dict[str, Any]] = {}


def placement_group_table() -> dict[str, dict[str, Any]]:
    other = {"bundles": {0: {"GPU": 8.0}}, "bundles_to_node_id": {0: "node0"}, "state": "CREATED"}
    return {"of-somebody-else": other, **_groups}


def placement_group(bundles: list[dict[str, int]], *, strategy: str) -> None:
    from . import nodes

    assert strategy == "PACK"
    busy = int(os.environ.get("RAY_STAND_IN_BUSY", "0"))
    free = [int(node["Resources"].get("GPU", 0)) - busy for node in nodes()]
    where = {}
    for index, bundle in enumerate(bundles):
        node = next(number for number, count in enumerate(free) if count >= bundle["GPU"])
        free[node] -= bundle["GPU"]
        where[index] = f"node{node}"
    _groups["ours"] = {"bundles": dict(enumerate(bundles)), "bundles_to_node_id": where, "state": "CREATED"}
