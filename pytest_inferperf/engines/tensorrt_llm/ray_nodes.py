"""An engine whose ranks Ray starts (`orchestrator="ray"`): what its cluster has, asked before, and where they are, after.

TensorRT-LLM asks Ray for the GPUs and waits for them without an end, puts rank 0 on the node it is loaded on, and takes
all nodes for alike.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_inferperf.engines.hardware import Gpu, gpu_words
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import Hardware

__all__ = ["RayNodes"]

_TYPE = "accelerator_type:"
"""How Ray names the kind of a node's GPUs among its resources."""


class RayNodes:
    """The nodes of the Ray cluster that this machine is in; none where TensorRT-LLM will start one on this machine alone."""

    def __init__(self, spec: EngineSpec, gpus: Sequence[Gpu]) -> None:
        """Look at the cluster. Raises `EngineError` where it cannot hold the engine, or would mix GPUs."""
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise EngineError(
                "orchestrator='ray': Ray is not installed beside TensorRT-LLM. pip install ray, or leave the option out."
            ) from None
        self._spec = spec
        self._gpus = tuple(gpus)
        self._before: frozenset[str] = frozenset()
        nodes = self._look()
        problem = _problem(spec, self._gpus, nodes)
        if problem:
            raise EngineError(problem)

    def _look(self) -> list[Mapping[str, Any]]:
        try:
            # Ray takes RAY_ADDRESS, else the cluster that this machine belongs to.
            self._ray.init(address="auto", log_to_driver=False)
        except ConnectionError:
            return []
        try:
            self._before = frozenset(self._ray.util.placement_group_table())
            return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        finally:
            # TensorRT-LLM connects by itself, with settings of its own.
            self._ray.shutdown()

    def hardware(self) -> Hardware:
        """Return what the loaded engine runs on. Raises `EngineError` where Ray's placement does not say."""
        table = self._ray.util.placement_group_table()
        found = [
            set(group["bundles_to_node_id"].values())
            for name, group in table.items()
            if name not in self._before and group["state"] == "CREATED" and _gpus_in(group) == self._spec.world_size
        ]
        if len(found) != 1:
            raise EngineError(
                f"Ray has {len(found)} new placement groups of {self._spec.world_size} GPUs, so nobody can say on which "
                "nodes the engine runs. Start one engine after the other on this cluster."
            )
        return Hardware(name=self._gpus[0].name, count=self._spec.world_size, kind="gpu", nodes=len(found[0]))


def _gpus_in(group: Mapping[str, Any]) -> int:
    return int(sum(bundle.get("GPU", 0) for bundle in group["bundles"].values()))


def _problem(spec: EngineSpec, gpus: tuple[Gpu, ...], nodes: Sequence[Mapping[str, Any]]) -> str:
    size, ranks = f"tp={spec.tp} x pp={spec.pp}", spec.world_size
    if not gpus:
        return (
            f"orchestrator='ray' puts rank 0 of an engine on the node that pytest runs on; found {gpu_words(gpus)} here. "
            "Run pytest on a node of the Ray cluster that has GPUs."
        )
    if not nodes:
        if len(gpus) >= ranks:
            return ""
        return (
            f"orchestrator='ray': {size} need {ranks} GPUs, this machine has {len(gpus)}, and no Ray cluster runs on it. "
            "Start one over all nodes (ray start --head; ray start --address=HOST:6379), and pytest on one of them."
        )
    with_gpus = [node for node in nodes if node.get("GPU")]
    found = sum(int(node["GPU"]) for node in with_gpus)
    if found < ranks:
        return (
            f"orchestrator='ray': {size} need {ranks} GPUs, and the Ray cluster has {found} on {len(with_gpus)} node"
            f"{'' if len(with_gpus) == 1 else 's'}. "
            "TensorRT-LLM would wait for more without an end: add nodes, or take a smaller tp x pp."
        )
    kinds = sorted({name.removeprefix(_TYPE) for node in with_gpus for name in node if name.startswith(_TYPE)})
    if len(kinds) > 1:
        return (
            f"orchestrator='ray': the Ray cluster has GPUs of several kinds ({', '.join(kinds)}), and TensorRT-LLM cannot "
            "be told which to take. Measure on a cluster of one kind."
        )
    return ""
