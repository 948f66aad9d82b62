"""How the ranks of an engine are placed by Ray: bundles of tp GPUs, or of a node's where tp is more, packed."""

from __future__ import annotations

import importlib
from typing import Any


def place_on_ray(tp: int, world: int) -> None:
    ray: Any = importlib.import_module("ray")

    ray.init(address="auto", namespace="trtllm", ignore_reinit_error=True)
    gpus = min(tp, int(ray.nodes()[0]["Resources"].get("GPU", 0)))
    ray.util.placement_group([{"GPU": gpus, "CPU": gpus} for _ in range(world // gpus)], strategy="PACK")
