"""What of a node Ray has handed out to others, as our actor there sees it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from pytest_inferperf.model.sharing import CPUS_OF_OTHERS, GPUS_OF_OTHERS

__all__ = ["taken_by_others", "what_others_have"]

_FIGURES = {"CPU": CPUS_OF_OTHERS, "GPU": GPUS_OF_OTHERS}


def taken_by_others() -> dict[str, float]:
    """Return the telemetry of the node that this actor runs on; nothing where Ray does not say."""
    with suppress(Exception):
        import ray
        from ray._private import state

        if not ray.is_initialized():
            # Asked all the same, Ray would start a cluster of this machine.
            return {}
        context = ray.get_runtime_context()
        node_id = context.get_node_id()
        total = state.total_resources_per_node()[node_id]
        free = state.available_resources_per_node()[node_id]
        return what_others_have(total, free, context.get_assigned_resources())
    return {}


def what_others_have(
    total: Mapping[str, float], free: Mapping[str, float], ours: Mapping[str, float]
) -> dict[str, float]:
    """Return what is neither free nor ours, by figure. Ray leaves out what there is nothing of."""
    return {
        figure: round(max(total.get(name, 0.0) - free.get(name, 0.0) - ours.get(name, 0.0), 0.0), 4)
        for name, figure in _FIGURES.items()
    }
