"""A placement: resources of one node, and the actor that holds them for us until `release`."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pytest_inferperf.cluster.driver import LateAnswer, NoAnswer
from pytest_inferperf.cluster.rules import Node, Request, bundle, cluster_words, fitting, why_unplaceable
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import ClusterLost, EngineError, HardwareError, NodeLost
from pytest_inferperf.hiding import hider

if TYPE_CHECKING:
    from pytest_inferperf.cluster.connection import Connection

__all__ = ["Place", "lines_of", "take_place", "take_places"]

_WAIT_S = 1.0
_PROGRESS_S = 10.0
START_S = 120.0
"""Time a node has to start our actor once its resources are ours."""

SILENCE_S = 120.0
"""Time after which a node that answers nothing at all, and that Ray has not declared dead yet, counts as lost."""


class Place:
    """What one engine, and those it is compared with, have of a node. `release` is idempotent."""

    def __init__(self, connection: Connection, request: Request, node: Node, group: int, actor: int) -> None:
        self.request = request
        self.node = node
        self.devices: tuple[str, ...] = ()
        """UUIDs of its GPUs."""

        self.context: Mapping[str, str] = {}
        """What is recorded of the node beside results: its driver, its power cap."""

        self._connection = connection
        self._driver = connection.driver
        self._group = group
        self._actor = actor
        self._numbers = itertools.count(1)
        self._released = False
        self._lost = ""

    def next_number(self) -> int:
        """Return a number for another engine process."""
        return next(self._numbers)

    def ask(self, method: str, *args: object, timeout_s: float = SILENCE_S) -> Any:
        """Call the actor. Raises `NodeLost` where it is gone, `ClusterLost`, `EngineError` once the place is released."""
        if self._lost:
            raise NodeLost(self._lost)
        if self._released:
            raise EngineError(f"the place of {self.request.what} on node {self.node.name} is released")
        try:
            return self._driver.ask(self._actor, method, *args, wait_s=timeout_s)
        except ClusterLost as error:
            raise ClusterLost(f"{self.request.what} is lost on {self.where}: {error}") from None
        except EngineError as error:
            raise EngineError(f"node {self.node.name} failed at {method!r}: {error}") from None
        except LateAnswer:
            self._lost = f"{self.request.what} is lost: {self.where} has answered nothing for {timeout_s:g} s"
        except NoAnswer as error:
            self._lost = f"{self.request.what} is lost on {self.where} ({str(error).partition(':')[0]})"
        raise NodeLost(self._lost)

    def tell(self, method: str, *args: object) -> None:
        """Call the actor without waiting for anything."""
        self._driver.tell(self._actor, method, *args)

    @property
    def where(self) -> str:
        """Its node in words: `node gpu-07 (3f2a9c01)`."""
        return self.node.where

    def release(self) -> None:
        """End everything that runs here and give the resources back."""
        if self._released:
            return
        self._released = True
        self._driver.kill(self._actor)
        self._driver.remove_group(self._group)
        self._connection.forget(self)


def take_place(
    connection: Connection,
    request: Request,
    *,
    timeout_s: float,
    progress: Progress | None = None,
    among: Sequence[Node] | None = None,
    given_up: Sequence[threading.Event] = (),
) -> Place:
    """Wait for the resources of a request, on a node of `among` (None: of the kind that suits it best), and take them.

    Raises `HardwareError` at once for what no node has, after `timeout_s` with what was asked and what exists, and once
    one of `given_up` is set; `NodeLost` where the node is lost as soon as it is ours; `ClusterLost`.
    """
    nodes = connection.nodes()
    lacking = why_unplaceable(request, nodes)
    if lacking:
        raise HardwareError(lacking)
    fit = fitting(request, nodes if among is None else among)
    if not fit:
        raise HardwareError(f"the cluster has {cluster_words(nodes)}")
    resources = dict(bundle(request, fit[0]))
    group = _wait(connection, request, fit, resources, timeout_s=timeout_s, progress=progress, given_up=given_up)
    try:
        return _occupy(connection, request, fit, resources, group)
    except BaseException:
        connection.driver.remove_group(group)
        raise


def take_places(
    connection: Connection,
    request: Request,
    count: int,
    *,
    resources: Mapping[str, float],
    among: Sequence[Node],
    timeout_s: float,
    progress: Progress | None = None,
) -> list[Place]:
    """Wait for the same resources on `count` nodes of `among`, all at once, and take them.

    At once, so that two who want two nodes each never wait for each other. Raises like `take_place`.
    """
    group = _wait(
        connection, request, among, resources, timeout_s=timeout_s, progress=progress, given_up=(), count=count
    )
    try:
        with ThreadPoolExecutor(max_workers=count) as pool:
            starting = [
                pool.submit(_occupy, connection, request, among, resources, group, index=index)
                for index in range(count)
            ]
        return [place.result() for place in starting]
    except BaseException:
        # With the group goes whatever runs in it.
        connection.driver.remove_group(group)
        raise


def _wait(
    connection: Connection,
    request: Request,
    fit: Sequence[Node],
    resources: Mapping[str, float],
    *,
    timeout_s: float,
    progress: Progress | None,
    given_up: Sequence[threading.Event],
    count: int = 1,
) -> int:
    driver = connection.driver
    group = driver.new_group([resources] * count, [node.node_id for node in fit])
    start = shown = time.monotonic()
    try:
        while not driver.is_granted(group, wait_s=_WAIT_S):
            now = time.monotonic()
            if any(event.is_set() for event in given_up):
                raise HardwareError(f"nobody waits for {request.words} any more")
            if now - start >= timeout_s:
                raise HardwareError(
                    f"{request.what} waited {timeout_s:g} s for {request.words} (inferperf_gpu_timeout), and was never "
                    f"placed. The cluster has {cluster_words(connection.nodes())}; free now: {connection.free_words()}. "
                    "Wait for whoever has the rest, or raise inferperf_gpu_timeout in the ini file."
                )
            if progress is not None and (shown == start or now - shown >= _PROGRESS_S):
                shown = now
                progress(f"wait for {request.words}, {now - start:.0f} s: free are {connection.free_words()}")
    except BaseException:
        connection.driver.remove_group(group)
        raise
    return group


def _occupy(
    connection: Connection,
    request: Request,
    fit: Sequence[Node],
    resources: Mapping[str, float],
    group: int,
    *,
    index: int = 0,
) -> Place:
    driver = connection.driver
    actor = driver.new_actor(group, index, resources)
    try:
        where = driver.ask(actor, "where", wait_s=START_S)
    except LateAnswer:
        raise NodeLost(f"the node that {request.what} was given did not start it within {START_S:g} s") from None
    except NoAnswer as error:
        raise NodeLost(f"the node that {request.what} was given did not start it ({lines_of(error)[0]})") from None
    (node,) = [item for item in fit if item.node_id == where]
    place = Place(connection, request, node, group, actor)
    connection.remember(place)
    try:
        found = json.loads(place.ask("lease", request.what, START_S, timeout_s=2 * START_S))
    except BaseException:
        place.release()
        raise
    if "error" in found:
        place.release()
        raise HardwareError(f"node {node.name}: {found['error']}")
    place.devices, place.context = tuple(found["devices"]), found["context"]
    return place


def lines_of(error: BaseException) -> list[str]:
    """Return what an error says, line by line and without secrets: the name of its type where it says nothing."""
    return hider()(str(error)).strip().splitlines() or [type(error).__name__]
