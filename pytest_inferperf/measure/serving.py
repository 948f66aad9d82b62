"""How the load of a workload reaches an engine."""

from __future__ import annotations

from dataclasses import replace

from pytest_inferperf.engines.interface import Engine, Serving
from pytest_inferperf.errors import MarkError
from pytest_inferperf.model.case import Workload

__all__ = ["serving_of"]


def serving_of(engine: Engine, workload: Workload) -> Serving | None:
    """Return how to reach the endpoint that the workload names; None for an engine that is measured through `generate`.

    Raises `EngineError` where the server has ended, and `MarkError` where the engine has no such endpoint.
    """
    serving = engine.serving
    if serving is not None and serving.hosts is not None:
        hosts, chat = serving.hosts.wanting(workload.hosts), serving.chat
        serving = replace(serving, hosts=hosts, chat=(lambda: replace(chat(), hosts=hosts)) if chat else None)
    if workload.endpoint == "completions":
        return serving
    if serving is None or serving.chat is None:
        raise MarkError(
            f"endpoint={workload.endpoint!r}: {type(engine).__name__} has no such endpoint. Leave endpoint out. (What "
            "--inferperf-inject makes worse is measured through the engine's own methods, too.)"
        )
    return serving.chat()
