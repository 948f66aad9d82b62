"""Which nodes an engine may run on, and how much of one it takes."""

from __future__ import annotations

import pytest

from pytest_inferperf.cluster.rules import Node, Request, bundle, cluster_words, fitting, one_anyway, why_unplaceable
from pytest_inferperf.engines.hardware import Gpu
from pytest_inferperf.model.case import EngineSpec, GpuRequirement

B200 = Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0)
H100 = Gpu(name="NVIDIA H100", sm=90, memory_gib=80.0)


def node(name: str, *, cpus: float = 64, gpus: tuple[Gpu, ...] = (), cores: int = 64) -> Node:
    return Node(node_id=name, name=name, cpus=cpus, cpu_name="CPU", cores=cores, gpus=gpus)


CLUSTER = (node("a", gpus=(B200,) * 8), node("b", gpus=(B200,) * 8), node("c", gpus=(H100,) * 4), node("d"))


def names(request: Request, nodes: tuple[Node, ...] = CLUSTER) -> str:
    return "".join(item.name for item in fitting(request, nodes))


@pytest.mark.parametrize(
    ("need", "where"),
    [
        (None, "d"),
        (GpuRequirement(count=1), "c"),
        (GpuRequirement(count=4), "c"),
        (GpuRequirement(count=5), "ab"),
        (GpuRequirement(count=1, sm=100), "ab"),
        (GpuRequirement(count=1, memory_gib=100), "ab"),
        (GpuRequirement(count=9), ""),
    ],
)
def test_the_smallest_kind_of_node_that_suffices(need: GpuRequirement | None, where: str) -> None:
    assert names(Request(what="it", need=need)) == where


def test_one_kind_only_so_that_a_case_never_mixes_hardware() -> None:
    other = node("e", gpus=(B200,) * 8, cores=32)
    assert names(Request(what="it", need=GpuRequirement(count=8)), (*CLUSTER, other)) in ("ab", "e")


def test_a_node_without_cpus_runs_nothing() -> None:
    assert names(Request(what="it"), (node("head", cpus=0),)) == ""


def test_what_is_taken() -> None:
    need = GpuRequirement(count=4, sm=100)
    assert bundle(Request(what="it", need=need), CLUSTER[0]) == {"CPU": 4, "GPU": 4}
    assert bundle(Request(what="it", need=need, whole_node=True), CLUSTER[0]) == {"CPU": 64, "GPU": 8}
    assert bundle(Request(what="it"), CLUSTER[3]) == {"CPU": 1}


def test_an_impossible_request_says_what_was_asked_and_what_exists() -> None:
    request = Request(what="NVFP4 big", need=GpuRequirement(count=16, sm=100), whole_node=True)
    assert why_unplaceable(request, CLUSTER) == (
        "NVFP4 big needs a whole node with 16 GPUs of SM 100 or later; the cluster has 2 nodes of 64 CPUs and 8 x NVIDIA "
        "B200 (SM 100, 178 GiB), 1 node of 64 CPUs and 4 x NVIDIA H100 (SM 90, 80 GiB), 1 node of 64 CPUs and no NVIDIA GPU"
    )
    assert why_unplaceable(Request(what="it"), CLUSTER) == ""
    assert cluster_words(()) == "no node"


def test_an_engine_that_would_run_without_a_gpu_takes_one_where_there_is_one() -> None:
    spec = EngineSpec(model="m", served_model_name="m", tp=4)
    assert one_anyway(spec, CLUSTER) == GpuRequirement(count=4)
    assert one_anyway(spec, CLUSTER[3:]) is None
