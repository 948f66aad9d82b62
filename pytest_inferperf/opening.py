"""Opens the engines of a session: who makes them, on which GPUs, and when those are given back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.errors import EngineError, HardwareError, MarkError
from pytest_inferperf.session import state_of

if TYPE_CHECKING:
    from pytest_inferperf.engines.devices import DeviceLease
    from pytest_inferperf.engines.interface import Engine
    from pytest_inferperf.model.case import EngineSpec, GpuRequirement, ReferenceEngine

__all__ = ["make_engine", "make_reference", "release", "wanted_card"]


def wanted_card(session: pytest.Session, spec: EngineSpec) -> GpuRequirement | None:
    """Return what the tests of an engine that can run here ask of its GPUs, by `requires_gpu` and by references."""
    from pytest_inferperf.collection import need_of, spec_of
    from pytest_inferperf.engines.hardware import find_gpus, why_missing
    from pytest_inferperf.engines.needs import joint_need

    gpus = find_gpus()
    needs: list[GpuRequirement | None] = []
    for item in session.items if gpus else ():
        # A wrong mark is the failure of its own test.
        with suppress(MarkError):
            needs += [need_of(item)] if spec_of(item) == spec else []
    return joint_need(need for need in needs if need is not None and not why_missing(need, gpus))


def make_engine(
    config: pytest.Config, spec: EngineSpec, tmp: pytest.TempPathFactory, progress: Callable[[str], None]
) -> Engine:
    """Build the engine of a spec: the one that a hook brings, else a shipped backend's.

    Raises `EngineError` for an answer of the hook that is no engine, and whatever building raises.
    """
    from pytest_inferperf.engines.interface import Engine

    maker = state_of(config).makers.get(spec, config.hook.pytest_inferperf_make_engine)
    engine = maker(config=config, spec=spec)
    if engine is None:
        return _open_engine(config, spec, tmp, progress)
    if not isinstance(engine, Engine):
        raise EngineError(
            f"pytest_inferperf_make_engine returned {engine!r}; return a "
            "pytest_inferperf.engines.interface.Engine, or None to leave the spec to others."
        )
    return engine


def make_reference(
    config: pytest.Config,
    reference: ReferenceEngine,
    candidate: Engine,
    tmp: pytest.TempPathFactory,
    progress: Callable[[str], None],
) -> Engine:
    """Build a reference engine as the candidate was built, or under the interpreter that it names."""
    if not reference.python:
        return make_engine(config, reference.spec, tmp, progress)
    from pytest_inferperf.engines.process import EngineProcess

    if not isinstance(candidate, EngineProcess):
        raise EngineError(
            f"python={reference.python} runs a shipped backend under another interpreter, and the engine of this test "
            "is brought by a hook (pytest_inferperf_make_engine). Leave python out."
        )
    return _open_engine(config, reference.spec, tmp, progress, python=reference.python)


def _open_engine(
    config: pytest.Config,
    spec: EngineSpec,
    tmp: pytest.TempPathFactory,
    progress: Callable[[str], None],
    *,
    python: str = "",
) -> Engine:
    from pytest_inferperf.engines.launch import open_engine

    state = state_of(config)
    settings = state.settings
    elsewhere: dict[str, Any] = {}
    if settings.ray and not spec.url:
        from pytest_inferperf.placement import kind_of_engine

        assert state.session is not None
        elsewhere["kind"] = kind_of_engine(state.session, spec, progress)
    engine = open_engine(
        spec,
        cache_dir=settings.cache_dir,
        shared_cache=settings.shared_cache,
        progress=progress,
        load_timeout_s=settings.load_timeout_s,
        call_timeout_s=settings.call_timeout_s,
        log_dir=tmp.mktemp("inferperf"),
        python=python,
        lease=_leased(config, spec, progress) if not elsewhere else None,
        **elsewhere,
    )
    if settings.ray and spec.url:
        from pytest_inferperf.placement import give_load_hosts

        assert state.session is not None
        give_load_hosts(state.session, engine, progress)
    return engine


def _leased(config: pytest.Config, spec: EngineSpec, progress: Callable[[str], None]) -> DeviceLease | None:
    """Return the GPUs of an engine: those that the engine it is compared with has, else cards that are free.

    Raises `HardwareError` after a wait, and where the other has too few.
    """
    from pytest_inferperf.engines.devices import gpus_to_lease, lease_devices
    from pytest_inferperf.engines.hardware import find_gpus, need_words, why_missing

    state, gpus = state_of(config), find_gpus()
    need = gpus_to_lease(spec, gpus)
    if need is None:
        return None
    if state.lease is None:
        if state.card is not None:
            card = replace(state.card, count=need.count, sm=max(need.sm, state.card.sm))
            # Where no card is all that the tests ask for, each of them runs on one that is enough for the engine.
            need = need if why_missing(card, gpus) else card
        name = f"{spec.precision} {spec.served_model_name}"
        timeout_s = state.settings.gpu_timeout_s
        state.lease = lease_devices(need, gpus, holder=name, timeout_s=timeout_s, progress=progress)
    elif len(state.lease.uuids) < need.count:
        raise HardwareError(
            f"{spec.precision} {spec.served_model_name} needs {need_words(need)}, and the engine that it is compared with "
            f"has {len(state.lease.uuids)}. Give the two the same tp x pp."
        )
    return state.lease


def release(config: pytest.Config) -> None:
    """Give the GPUs of an engine back, once it is closed."""
    state = state_of(config)
    if state.lease is not None:
        state.lease.release()
        state.lease = None
    if state.settings.ray:
        from pytest_inferperf.placement import release_seat

        release_seat(config)
