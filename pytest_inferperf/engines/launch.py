"""The one call that turns a spec into a running engine: backend, checkpoint, conformance, process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pytest_inferperf.engines.backends import resolve_backend
from pytest_inferperf.engines.checkpoint.cache import ensure_checkpoint
from pytest_inferperf.engines.devices import DeviceLease
from pytest_inferperf.engines.interface import Engine, Progress
from pytest_inferperf.engines.process import EngineProcess, build_in_process
from pytest_inferperf.engines.servers.presets import loads_model
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec

__all__ = ["open_engine"]


def open_engine(
    spec: EngineSpec,
    *,
    cache_dir: Path | None = None,
    shared_cache: str = "",
    progress: Progress | None = None,
    load_timeout_s: float = 600.0,
    call_timeout_s: float = 600.0,
    build_timeout_s: float = 6 * 3600.0,
    log_dir: Path | None = None,
    python: str = "",
    lease: DeviceLease | None = None,
    kind: Callable[..., EngineProcess] = EngineProcess,
) -> Engine:
    """Build what `spec` needs, check it, and start the engine in a process of its own.

    Args:
        spec: The engine to run.
        cache_dir: Where built checkpoints live; None takes INFERPERF_CACHE_DIR, else the user's cache folder.
        shared_cache: Address of a storage where machines share their checkpoints; "" for none.
        progress: Receives lines about builds and loads.
        load_timeout_s: Time the engine has to load.
        call_timeout_s: Time it has for any one call, and for each token of a stream.
        build_timeout_s: Time a checkpoint build has.
        log_dir: Where logs of engine processes are kept; None keeps only those of engines that failed.
        python: The interpreter the engine runs under, with the packages of its own environment; "" for this one.
            The checkpoint is built by this one all the same: two versions of a backend get the same weights.
        lease: The GPUs that the engine is shown; None for all that this process sees. Releasing it is the caller's.
        kind: Makes the engine of a shipped backend, given the keywords of `EngineProcess`: where else it may run.

    Raises `EngineError`, `CheckpointError` or `MissingExtra`.

    """
    report = progress or (lambda _line: None)
    if spec.server:
        if python:
            raise EngineError(
                f"python={python}: an engine in a server has the interpreter that its command line names. Leave python out."
            )
        if spec.url:
            from pytest_inferperf.engines.openai.connecting import open_url

            return open_url(spec, timeout_s=call_timeout_s)
    backend = resolve_backend(spec.backend, installed=not python)
    build = partial(build_in_process, timeout_s=build_timeout_s, log_dir=log_dir)
    checkpoint = (
        ensure_checkpoint(spec, cache_dir=cache_dir, shared=shared_cache, build=build, progress=report)
        if loads_model(spec)
        else None
    )
    if spec.serve:
        from pytest_inferperf.engines.openai.served import ServedEngine

        return ServedEngine(
            spec,
            checkpoint=checkpoint,
            load_timeout_s=load_timeout_s,
            call_timeout_s=call_timeout_s,
            log_dir=log_dir,
            progress=report,
            lease=lease,
        )
    assert checkpoint is not None
    return kind(
        spec,
        class_path=backend.class_path,
        checkpoint=checkpoint,
        load_timeout_s=load_timeout_s,
        call_timeout_s=call_timeout_s,
        log_dir=log_dir,
        progress=report,
        python=python,
        lease=lease,
    )
