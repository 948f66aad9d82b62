"""Whether pytest was started the way that the engines of a test need: asked before a test begins."""

from __future__ import annotations

import pytest

from pytest_inferperf.collection import brought_by_hook, spec_of
from pytest_inferperf.engines.mpi_launch import LAUNCHER, find_launch, launch_problem, outer_environment
from pytest_inferperf.engines.needs import needs_gpu
from pytest_inferperf.model.gates import SpeedupFloor
from pytest_inferperf.selection import bound_of

__all__ = ["badly_launched"]


def badly_launched(item: pytest.Item) -> str:
    """Say that MPI's launcher was used wrongly for the engines of a test, and what to type; "" where it was not."""
    spec, bound = spec_of(item), bound_of(item)
    if spec is None or brought_by_hook(item) or not needs_gpu(spec):
        return ""
    launch = find_launch()
    problem = launch_problem(spec, launch, outer=outer_environment())
    if problem or launch is None or bound is None:
        return problem
    gates = [gate.reference for gate in bound.gates if isinstance(gate, SpeedupFloor)]
    beside = [*gates, *([bound.against] if bound.against is not None else [])]
    if not beside:
        return ""
    return (
        f"{beside[0].label} would be held beside this engine, and the ranks of {LAUNCHER} serve one at a time. "
        "Measure it in a run of its own, and compare with its results: --inferperf-against=RESULTS.json"
    )
