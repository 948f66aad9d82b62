"""The environment of the processes that engines run in."""

from __future__ import annotations

import os

__all__ = ["quiet_environment", "without_task"]

_TASK = ("SLURM_", "PMIX_", "PMI_")
"""Beginnings of the variables by which MPI knows that it is a task of Slurm's."""


def without_task(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment in which MPI takes itself for a program that nobody launched, where Slurm launched pytest.

    As a task of Slurm's, MPI starts no processes of its own, and TensorRT-LLM on several GPUs wants its ranks. What mpirun
    started can start more, and keeps its variables.
    """
    if "OMPI_COMM_WORLD_RANK" in environment:
        return environment
    return {name: value for name, value in environment.items() if not name.startswith(_TASK)}


def quiet_environment() -> dict[str, str]:
    """Return pytest's environment for a child: output at once, no telemetry, no warnings about forks."""
    found = dict(os.environ)
    found["PYTHONUNBUFFERED"] = "1"
    found.setdefault("TOKENIZERS_PARALLELISM", "false")
    found.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Measured by coverage or not, the child is not the test process.
    found.pop("COV_CORE_SOURCE", None)
    return found
