"""What a test's run is given: its engine with what is injected, its context, and what stands in for it in a replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_inferperf.attempts import RUN, not_a_regression
from pytest_inferperf.session import state_of

if TYPE_CHECKING:
    from pytest_inferperf.engines.interface import Engine
    from pytest_inferperf.fixture import Inferperf
    from pytest_inferperf.marks.cases import BoundCase

__all__ = ["context_of", "injected", "replayed"]


def injected(item: pytest.Item, bound: BoundCase, engine: Engine) -> Engine:
    """Put what --inferperf-inject asks for around the engine."""
    settings = state_of(item.config).settings
    if not settings.injections:
        return engine
    from pytest_inferperf.baselines.store import stored_score
    from pytest_inferperf.engines.injected import InjectedEngine
    from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling

    metrics = [gate.metric for gate in bound.gates if isinstance(gate, AccuracyLossCeiling | AccuracyFloor)]
    score = stored_score(settings.baselines, bound.case, metric=next(iter(metrics), None))
    return InjectedEngine(engine, settings.injections, score=score, seed=item.nodeid)


def replayed(request: pytest.FixtureRequest, bound: BoundCase, engine: Engine) -> Inferperf:
    """Find what stands in for measuring a case; a case without a result fails."""
    from pytest_inferperf.engines.replayed import ReplayedEngine
    from pytest_inferperf.errors import ResultFileError
    from pytest_inferperf.replay import ReplayedRun

    settings = state_of(request.config).settings
    assert settings.replay is not None
    assert isinstance(engine, ReplayedEngine)
    message = ""
    try:
        run = ReplayedRun(bound, engine, settings, replay=settings.replay, nodeid=request.node.nodeid)
    except ResultFileError as error:
        message = str(error)
    if message:
        raise not_a_regression(message)
    request.node.stash[RUN] = run
    return run


def context_of(config: pytest.Config, engine: Engine) -> dict[str, str]:
    """Return what is recorded beside the figures of an engine: the machine, versions, options, what is injected."""
    state = state_of(config)
    if state.context is None:
        from pytest_inferperf.measure.environment import collect_context

        extra: dict[str, str] = {}
        for answer in config.hook.pytest_inferperf_environment(config=config):
            extra |= {str(name): str(value) for name, value in answer.items()}
        state.context = collect_context(state.settings.root, extra)
    spec = engine.spec
    recipe = {"recipe": spec.recipe} if spec.recipe else {}
    options = {f"engine_options.{name}": str(value) for name, value in spec.engine_options}
    checkpoint = {"checkpoint_hash": engine.info.checkpoint_hash}
    machine: dict[str, str] = {}
    if engine.info.hardware.kind == "gpu" and engine.machine is None:
        from pytest_inferperf.engines.hardware import look_at_gpus

        machine = look_at_gpus().context()
    from pytest_inferperf.model.injection import CONTEXT_KEY, shown

    price = state.settings.gpu_hour_price
    if price:
        # Another price is another cost, and no other engine.
        machine["gpu_hour_price"] = f"{price:g}"
    injected = {CONTEXT_KEY: shown(state.settings.injections)} if state.settings.injections else {}
    # An engine on another machine says itself what is there; what else was collected is of this one.
    there = {**(engine.machine or {}), **engine.info.versions}
    return {**machine, **state.context, **there, **checkpoint, **recipe, **options, **injected}
