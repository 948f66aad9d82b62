"""`--inferperf-ray` in pytest: one connection for a run, a seat for the engine that is open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.engines.needs import on_ray
from pytest_inferperf.errors import EngineError, HardwareError, MarkError
from pytest_inferperf.model.gates import SpeedupFloor
from pytest_inferperf.panel import tell
from pytest_inferperf.selection import bound_of
from pytest_inferperf.session import state_of

if TYPE_CHECKING:
    from pytest_inferperf.cluster.connection import Connection
    from pytest_inferperf.cluster.load_hosts import ClusterLoadHosts
    from pytest_inferperf.cluster.rules import Request
    from pytest_inferperf.cluster.seat import Seat as ClusterSeat
    from pytest_inferperf.engines.interface import Engine
    from pytest_inferperf.engines.process import EngineProcess
    from pytest_inferperf.model.case import EngineSpec, GpuRequirement

__all__ = [
    "give_load_hosts",
    "kind_of_engine",
    "lacking_on_cluster",
    "on_cluster",
    "release_seat",
    "why_not_on_cluster",
]

_CONNECTION = pytest.StashKey["Connection"]()
_NO_CLUSTER = pytest.StashKey[str]()
"""Why there is none: found out once, since that may take half a minute, and said by every test that needs one."""

_SEAT = pytest.StashKey["ClusterSeat"]()
_LOAD_HOSTS = pytest.StashKey["ClusterLoadHosts"]()


def on_cluster(item: pytest.Item) -> bool:
    """Whether the engine of a test runs on a Ray cluster: not an endpoint, and not what a hook brings."""
    from pytest_inferperf.collection import brought_by_hook, spec_of

    spec = spec_of(item)
    return spec is not None and not spec.url and bool(state_of(item.config).settings.ray) and not brought_by_hook(item)


def lacking_on_cluster(session: pytest.Session, need: GpuRequirement | None) -> str:
    """Say that no node of the cluster has ever had the GPUs of a test; "" where one has.

    Raises `HardwareError` where those that had them are lost: a gate that is skipped for it would let the run pass.
    """
    from pytest_inferperf.cluster.rules import Request, why_lost, why_unplaceable

    if need is None:
        return ""
    request, connection = Request(what="the test", need=need), _connection(session)
    nodes = connection.nodes()
    if lost := why_lost(request, nodes, connection.known):
        raise HardwareError(lost)
    return why_unplaceable(request, nodes)


def why_not_on_cluster(spec: EngineSpec) -> str:
    """Say why an engine cannot be an actor on a node; "" where it can."""
    if spec.serve:
        return (
            f"--inferperf-ray: serve={spec.serve!r} is a server that is started on this machine, beside its load. Run "
            "its tests without --inferperf-ray, or give the server's url=."
        )
    if on_ray(spec):
        return (
            "--inferperf-ray: engine_options={'orchestrator': 'ray'} lets TensorRT-LLM ask Ray for GPUs itself, beside "
            "those that we ask for. Run its tests without --inferperf-ray, on a node of the cluster, or leave the option out."
        )
    return ""


def kind_of_engine(
    session: pytest.Session, spec: EngineSpec, progress: Callable[[str], None]
) -> Callable[..., EngineProcess]:
    """Return what makes an engine of the shipped backends: on a seat of the cluster, which references share.

    The seat is taken once the engine is made, so that no node is held while a checkpoint is built here.
    Raises `EngineError` for what `why_not_on_cluster` says, `HardwareError` where no node will ever do; what is returned
    raises `HardwareError` where there is no seat.
    """
    from pytest_inferperf.cluster.engine import ClusterEngine
    from pytest_inferperf.cluster.rules import why_lost, why_unplaceable
    from pytest_inferperf.cluster.seat import Seat

    config = session.config
    if problem := why_not_on_cluster(spec):
        raise EngineError(problem)
    connection = _connection(session)
    request = _request(session, spec)
    nodes = connection.nodes()
    lacking = why_lost(request, nodes, connection.known) or why_unplaceable(request, nodes)
    if lacking and _SEAT not in config.stash:
        raise HardwareError(lacking)

    def make(spec: EngineSpec, **keywords: Any) -> ClusterEngine:
        if _SEAT not in config.stash:
            timeout_s = state_of(config).settings.gpu_timeout_s
            tell(config, request.what)
            config.stash[_SEAT] = seat = Seat(connection, request, timeout_s=timeout_s, progress=progress)
            state_of(config).placement = lambda: seat.placement
            tell(config, request.what, seat.place.where)
        return ClusterEngine(spec, seat=config.stash[_SEAT], **keywords)

    return make


def give_load_hosts(session: pytest.Session, engine: Engine, progress: Callable[[str], None]) -> None:
    """Let nodes of the cluster send load to an endpoint, once they are needed: nothing is connected to before."""
    from pytest_inferperf.cluster.load_hosts import ClusterLoadHosts
    from pytest_inferperf.engines.openai.engine import OpenAIEngine

    if not isinstance(engine, OpenAIEngine):
        return
    timeout_s = state_of(session.config).settings.gpu_timeout_s
    hosts = ClusterLoadHosts(lambda: _connection(session), timeout_s=timeout_s, progress=progress)
    engine.load_hosts = session.config.stash[_LOAD_HOSTS] = hosts


def release_seat(config: pytest.Config) -> None:
    """Give the seat of an engine back, or the hosts of its load, once it is closed."""
    hosts: ClusterLoadHosts | None = config.stash.get(_LOAD_HOSTS, None)
    if hosts is not None:
        del config.stash[_LOAD_HOSTS]
        hosts.close()
    seat: ClusterSeat | None = config.stash.get(_SEAT, None)
    if seat is not None:
        del config.stash[_SEAT]
        state_of(config).placement = None
        tell(config, "")
        seat.release()


def _connection(session: pytest.Session) -> Connection:
    config = session.config
    if _CONNECTION not in config.stash:
        from pytest_inferperf.cluster.connection import connect

        if _NO_CLUSTER in config.stash:
            raise HardwareError(config.stash[_NO_CLUSTER])
        try:
            found = connect(state_of(config).settings.ray, engines=_replicas(session))
        except HardwareError as error:
            config.stash[_NO_CLUSTER] = str(error)
            raise
        config.stash[_CONNECTION] = found
        config.add_cleanup(found.close)
    return config.stash[_CONNECTION]


def _replicas(session: pytest.Session) -> int:
    """Return the most engines that any test lets answer its task."""
    found = (bound_of(item) for item in session.items)
    tasks = [bound.case.task for bound in found if bound is not None]
    return max([task.replicas for task in tasks if task is not None], default=1)


def _request(session: pytest.Session, spec: EngineSpec) -> Request:
    """Ask for what the engine needs, and for a whole node where one of its tests measures speed and may not share it."""
    from pytest_inferperf.cluster.rules import Request, one_anyway, why_unplaceable
    from pytest_inferperf.collection import need_of, spec_of
    from pytest_inferperf.engines.needs import implied_need, joint_need

    connection = _connection(session)
    connection.nodes()
    # With those that were lost: without them the engine would go on elsewhere, without its GPUs.
    nodes = connection.known
    records = state_of(session.config).settings.update is not None
    needs, timed = [implied_need(spec)], False
    for item in session.items:
        if spec_of(item) != spec:
            continue
        bound = bound_of(item)
        if bound is not None and bound.case.workload is not None:
            # What is recorded holds for whoever has the node alone, too; and a neighbour of a reference engine would make
            # the candidate look better.
            compared = bound.against is not None or any(isinstance(gate, SpeedupFloor) for gate in bound.gates)
            timed = timed or records or compared or not bound.case.workload.share_node
        with suppress(MarkError):
            # A wrong mark is the failure of its own test, and so is what no node has.
            need = need_of(item)
            if need is not None and not why_unplaceable(Request(what="the test", need=need), nodes):
                needs.append(need)
    need = joint_need(needs) or one_anyway(spec, nodes)
    return Request(what=f"{spec.precision} {spec.served_model_name}", need=need, whole_node=timed)
