"""Which nodes may run an engine, and how much of one it takes: values in, values out, no Ray.

The same rules place engines on a cluster and in the simulation of `benchmarks/scale.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_inferperf.engines.hardware import Gpu, gpu_words, need_words, why_missing
from pytest_inferperf.model.case import EngineSpec, GpuRequirement

__all__ = [
    "Node",
    "Request",
    "bundle",
    "cluster_words",
    "fitting",
    "one_anyway",
    "same_kind",
    "why_lost",
    "why_unplaceable",
]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of the cluster, as it describes itself."""

    node_id: str
    """Ray's name of it."""

    name: str
    """Host name or address: what a person looks for."""

    cpus: float
    """CPUs that Ray hands out, in all."""

    cpu_name: str
    cores: int
    """Cores that an engine on it may use."""

    gpus: tuple[Gpu, ...] = ()
    """GPUs that Ray hands out."""

    @property
    def where(self) -> str:
        """It in words: `node gpu-07 (3f2a9c01)`."""
        return f"node {self.name} ({self.node_id[:8]})"

    @property
    def kind(self) -> tuple[object, ...]:
        """What two nodes have in common on which the same case has the same baseline."""
        cards = Counter((gpu.name, gpu.sm, round(gpu.memory_gib)) for gpu in self.gpus)
        return (self.cpu_name, self.cores, self.cpus, tuple(sorted(cards.items())))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one engine asks of the cluster."""

    what: str
    """The engine in words: `NVFP4 llama-3.1-8b`."""

    need: GpuRequirement | None = None
    """Its GPUs, all on one node; None for an engine that needs none."""

    whole_node: bool = False
    """Whether it has the node to itself, since its speed is measured."""

    @property
    def words(self) -> str:
        """What is asked for: `a whole node with 8 GPUs of SM 100 or later`."""
        wanted = need_words(self.need) if self.need is not None else "1 CPU"
        return f"a whole node with {wanted}" if self.whole_node else f"{wanted} on one node"


def fitting(request: Request, nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Return the nodes of one kind that the request is placed on: the smallest kind that has what it asks for.

    One kind, so that the sessions of a case, and its replicas, never mix hardware.
    """
    fit = [node for node in nodes if not _lacks(request, node)]
    if not fit:
        return ()
    smallest = min(fit, key=lambda node: (len(node.gpus), node.cpus, repr(node.kind)))
    return same_kind(smallest, fit)


def one_anyway(spec: EngineSpec, nodes: Sequence[Node]) -> GpuRequirement | None:
    """Return the GPUs of an engine that would run without: it takes them where a node has them, as on one machine."""
    need = GpuRequirement(count=spec.world_size)
    return need if any(not why_missing(need, node.gpus) for node in nodes) else None


def same_kind(node: Node, nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Return the nodes on which the baselines of `node` hold."""
    return tuple(other for other in nodes if other.kind == node.kind)


def bundle(request: Request, node: Node) -> Mapping[str, float]:
    """Return the resources that the request takes of a node it fits: a CPU for each GPU, or all that the node has."""
    count = request.need.count if request.need is not None else 0
    if request.whole_node:
        return _plain({"CPU": node.cpus, "GPU": float(len(node.gpus))})
    return _plain({"CPU": float(min(max(1, count), node.cpus)), "GPU": float(count)})


def why_unplaceable(request: Request, nodes: Sequence[Node]) -> str:
    """Say that no node will ever have what the request asks for; "" where one has."""
    if fitting(request, nodes):
        return ""
    return f"{request.what} needs {request.words}; the cluster has {cluster_words(nodes)}"


def why_lost(request: Request, nodes: Sequence[Node], known: Sequence[Node]) -> str:
    """Say which nodes are lost of all `known` that had what the request asks for; "" where one is left, or none had it."""
    gone = [node.where for node in known if node not in nodes and not _lacks(request, node)]
    lacking = why_unplaceable(request, nodes)
    return f"{lacking}; lost since the run began: {', '.join(gone)}" if lacking and gone else ""


def cluster_words(nodes: Sequence[Node]) -> str:
    """Say what a cluster has: `2 nodes of 8 x NVIDIA B200 (SM 100, 178 GiB), 1 node of 4 CPUs and no NVIDIA GPU`."""
    counts = Counter(
        f"{node.cpus:g} CPU{'' if node.cpus == 1 else 's'} and {gpu_words(node.gpus)}"
        for node in sorted(nodes, key=lambda item: -len(item.gpus))
    )
    return ", ".join(f"{n} node{'s' if n > 1 else ''} of {text}" for text, n in counts.items()) or "no node"


def _lacks(request: Request, node: Node) -> bool:
    if node.cpus < 1:
        return True
    return request.need is not None and bool(why_missing(request.need, node.gpus))


def _plain(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in resources.items() if value > 0}
