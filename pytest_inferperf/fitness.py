"""Says whether a test can run here and now: its marks, the machine's GPUs and driver, and who measures beside it."""

from __future__ import annotations

import pytest

from pytest_inferperf.errors import ClusterLost, HardwareError, MarkError, MissingExtra, SettingsError
from pytest_inferperf.selection import bound_of
from pytest_inferperf.session import STATE, state_of

__all__ = ["unfit"]


def unfit(item: pytest.Item) -> tuple[str, str]:
    """Say why a test must fail before it begins, and why it cannot run on this machine; "" for neither."""
    from pytest_inferperf.collection import need_of, unread_mark
    from pytest_inferperf.engines.hardware import find_gpus, why_missing
    from pytest_inferperf.launching import badly_launched
    from pytest_inferperf.placement import lacking_on_cluster, on_cluster

    try:
        wrong = unread_mark(item)
        if STATE in item.config.stash and state_of(item.config).settings.replay is not None:
            return wrong, _not_replayed(item)
        need = need_of(item)
        elsewhere = on_cluster(item)
        if elsewhere:
            lacking = lacking_on_cluster(item.session, need)
        else:
            wrong = wrong or badly_launched(item)
            lacking = why_missing(need, find_gpus()) if need is not None else ""
        if lacking and state_of(item.config).settings.require_gpu:
            wrong = wrong or f"{lacking} (--inferperf-require-gpu forbids to skip)"
    except (ClusterLost, HardwareError, MarkError, MissingExtra, SettingsError) as error:
        return str(error), ""
    if not wrong and not lacking and not elsewhere:
        wrong = _old_driver(item) or _beside_neighbours(item)
    return wrong, lacking


def _not_replayed(item: pytest.Item) -> str:
    """Say why a test cannot be replayed; "" where it can."""
    from pytest_inferperf.collection import spec_of

    if spec_of(item) is None or "inferperf" in getattr(item, "fixturenames", ()):
        return ""
    return "asks the engine itself, and --inferperf-replay builds none"


def _old_driver(item: pytest.Item) -> str:
    """Say that the driver cannot run the engine of a test; "" where it can, and where none is needed."""
    from pytest_inferperf.collection import brought_by_hook, spec_of
    from pytest_inferperf.engines.hardware import look_at_gpus
    from pytest_inferperf.engines.needs import driver_problem, installed_cuda, needs_gpu

    spec = spec_of(item)
    if spec is None or brought_by_hook(item) or not needs_gpu(spec):
        return ""
    return driver_problem(look_at_gpus(), cuda=installed_cuda())


def _beside_neighbours(item: pytest.Item) -> str:
    """Say that a test would measure performance beside other workers; "" where it does not."""
    bound = bound_of(item)
    if bound is None or bound.case.workload is None or not hasattr(item.config, "workerinput"):
        return ""
    from pytest_inferperf.collection import brought_by_hook
    from pytest_inferperf.engines.devices import gpus_to_lease
    from pytest_inferperf.engines.hardware import find_gpus

    if not brought_by_hook(item) and gpus_to_lease(bound.case.engine, find_gpus()) is not None:
        return ""  # Cards of its own: no neighbour computes on them.
    return (
        "performance is not measured under xdist: neighbours on the same machine make the figures wrong. "
        f"Run without -n: pytest {item.nodeid}"
    )
