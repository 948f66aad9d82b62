"""The GPUs that an engine needs, before it is built: implied by its backend, precision and parallelism."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterable
from dataclasses import replace

from pytest_inferperf.engines.backends import resolve_backend
from pytest_inferperf.engines.hardware import GpuMachine
from pytest_inferperf.engines.mpi_launch import find_launch
from pytest_inferperf.engines.servers.presets import server_name
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec, GpuRequirement
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, QUANTIZATIONS

__all__ = [
    "driver_problem",
    "implied_need",
    "installed_cuda",
    "joint_need",
    "native_sm",
    "needs_gpu",
    "of_this_node",
    "on_ray",
]

_RUNTIMES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
"""Distributions that hold the CUDA runtime, newest first."""

_LEAST_DRIVER = {12: "525", 13: "580"}
"""The first driver branch of each major version of CUDA."""

_GPU_SERVERS = ("trtllm-serve",)
"""Servers of `serve=` that run on nothing but NVIDIA GPUs."""


def native_sm(spec: EngineSpec) -> int:
    """Return the SM version from which an engine's format is native; 0 where nobody knows (a ModelOpt configuration)."""
    quant = QUANTIZATIONS.get(spec.quant)
    return max(quant.min_sm if quant is not None else 0, KV_CACHE_DTYPES[spec.kv_cache_dtype].min_sm)


def needs_gpu(spec: EngineSpec) -> bool:
    """Whether the engine runs on NVIDIA GPUs of this machine, and on nothing else."""
    if spec.url:
        return False
    try:
        if spec.serve:
            return server_name(spec.serve) in _GPU_SERVERS
        return resolve_backend(spec.backend, installed=False).needs_gpu
    except EngineError:
        # A backend that a hook brings, or no command line at all, which is refused elsewhere.
        return False


def implied_need(spec: EngineSpec) -> GpuRequirement | None:
    """Return the GPUs of this machine without which the engine cannot run; None where it runs without any.

    A simulated backend needs none, whatever the precision: it computes in a wide type.
    """
    return of_this_node(GpuRequirement(sm=native_sm(spec), count=spec.world_size), spec) if needs_gpu(spec) else None


def of_this_node(need: GpuRequirement | None, spec: EngineSpec) -> GpuRequirement | None:
    """Return the part of a need that is asked of this machine, where the engine spans several.

    Of a launch, each node has its share. What Ray orchestrates asks this one for a GPU, and Ray for the rest.
    """
    if need is None or not needs_gpu(spec):
        return need
    if on_ray(spec):
        return replace(need, count=1)
    launch = find_launch()
    return need if launch is None else replace(need, count=-(-need.count // max(1, launch.nodes)))


def on_ray(spec: EngineSpec) -> bool:
    """Whether Ray starts the ranks of an engine, on GPUs that it chooses itself."""
    return dict(spec.engine_options).get("orchestrator") == "ray"


def joint_need(needs: Iterable[GpuRequirement | None]) -> GpuRequirement | None:
    """Return what meets every need at once, on the same GPUs; None for none."""
    found = [need for need in needs if need is not None]
    if not found:
        return None
    return GpuRequirement(
        sm=max(need.sm for need in found),
        count=max(need.count for need in found),
        memory_gib=max(need.memory_gib for need in found),
    )


def installed_cuda() -> str:
    """Return the version of the CUDA runtime that engines load, `13.0`: the installed package's, else the container's.

    "" where neither is there.
    """
    for name in _RUNTIMES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return ".".join(version.split(".")[:2])
    # NVIDIA's containers say so.
    found = re.match(r"\d+\.\d+", os.environ.get("CUDA_VERSION", ""))
    return found.group() if found else ""


def driver_problem(machine: GpuMachine, *, cuda: str) -> str:
    """Say that the driver is too old for the CUDA runtime `cuda`; "" where it is not, and where either is unknown.

    Within a major version of CUDA every driver runs every runtime.
    """
    if not cuda or not machine.cuda:
        return ""
    wanted, found = int(cuda.split(".")[0]), int(machine.cuda.split(".")[0])
    if found >= wanted:
        return ""
    least = _LEAST_DRIVER.get(wanted)
    return (
        f"the NVIDIA driver {machine.driver or 'of this machine'} runs CUDA up to {machine.cuda}, and the installed CUDA "
        f"runtime is {cuda}. Update the driver{f' ({least} or later)' if least else ''}, or install a TensorRT-LLM built "
        f"for CUDA {found}."
    )
