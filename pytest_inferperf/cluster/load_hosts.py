"""Nodes of a cluster that send load to a server which stands elsewhere."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_inferperf.cluster.place import Place, take_places
from pytest_inferperf.cluster.rules import Node, Request
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.engines.load_hosts import LoadHost, LoadHosts
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError, HardwareError, NodeLost

if TYPE_CHECKING:
    from pytest_inferperf.cluster.connection import Connection

__all__ = ["ClusterLoadHosts", "LoadRequest", "senders"]

_ANSWER_S = 60.0
"""Time after which a node that answers nothing counts as lost."""


@dataclass(frozen=True, kw_only=True)
class LoadRequest(Request):
    """What the hosts of a load ask of the cluster."""

    what: str = "the load"
    hosts: int
    cpus: int

    @property
    def words(self) -> str:
        """See `Request.words`."""
        cpus = f"{self.cpus} CPU{'' if self.cpus == 1 else 's'}"
        return f"{cpus} on one node" if self.hosts == 1 else f"{cpus} on each of {self.hosts} nodes"


def senders(nodes: Sequence[Node], *, server: frozenset[str]) -> tuple[Node, ...]:
    """Return the nodes that may send to a server, which runs on the nodes `server`, by id: the best ones first.

    Not beside the server, which they would disturb, unless there is nothing else; those without GPUs first.
    """
    apart = [node for node in nodes if node.node_id not in server]
    return tuple(sorted(apart or nodes, key=lambda node: (len(node.gpus), -node.cpus)))


@dataclass(kw_only=True)
class _Held:
    """What of a cluster is ours."""

    places: list[Place] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)
    """Hosts, and processes on each."""

    notes: list[str] = field(default_factory=list)


class ClusterLoadHosts(LoadHosts):
    """Nodes of the cluster that `connect` gives, which is asked for when the first of them is needed."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        wanted: int = 0,
        timeout_s: float,
        progress: Progress | None = None,
    ) -> None:
        self.wanted = wanted
        self._connect = connect
        self._timeout_s, self._progress = timeout_s, progress
        self._held = _Held()
        self._senders: dict[str, tuple[Node, ...]] = {}

    def wanting(self, count: int) -> ClusterLoadHosts:
        """See `LoadHosts.wanting`: what is held is held by both."""
        found = copy(self)
        found.wanted = count
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """See `LoadHosts.notes`."""
        return tuple(self._held.notes)

    def room(self, endpoint: Endpoint) -> tuple[int, int]:
        """See `LoadHosts.room`."""
        nodes = self._nodes(endpoint)[: self.wanted or None]
        return len(nodes), int(min((node.cpus for node in nodes), default=0))

    @contextmanager
    def taken(self, endpoint: Endpoint, hosts: int, processes: int) -> Iterator[Sequence[LoadHost]]:
        """See `LoadHosts.taken`."""
        nodes = self._nodes(endpoint)
        if hosts > len(nodes):
            raise HardwareError(
                f"the load needs {hosts} hosts, and the cluster has {len(nodes)} that may send to {endpoint.shown}."
            )
        held = self._held
        if held.shape != (hosts, processes):
            self.close()
            # Those that are short of cores are no help.
            among = [node for node in nodes if node.cpus >= processes]
            try:
                held.places = take_places(
                    self._connect(),
                    LoadRequest(hosts=hosts, cpus=processes),
                    hosts,
                    resources={"CPU": float(processes)},
                    among=_first(among, hosts),
                    timeout_s=self._timeout_s,
                    progress=self._progress,
                )
            except NodeLost as error:
                # An engine would be moved, and a server that stands elsewhere cannot be.
                raise EngineError(f"{error}: nothing was sent. Run it again.") from None
            held.shape = (hosts, processes)
        try:
            yield [_NodeHost(place) for place in held.places]
        except BaseException:
            self.close()
            raise
        names = ", ".join(place.where for place in held.places)
        each = f"{processes} process{'' if processes == 1 else 'es'} on each"
        held.notes.append(f"the load was sent by {names}, with {each}")

    def close(self) -> None:
        """See `LoadHosts.close`."""
        places, self._held.places, self._held.shape = self._held.places, [], (0, 0)
        for place in places:
            place.release()

    def _nodes(self, endpoint: Endpoint) -> tuple[Node, ...]:
        key = endpoint.shown
        if key not in self._senders:
            address = str(endpoint.resolve().sockaddr[0])
            connection = self._connect()
            nodes = connection.nodes()
            found = _have_address(connection, nodes, address)
            if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
                here = _of_this_machine(connection, nodes)
                if not here:
                    raise HardwareError(
                        f"{endpoint.shown} is this machine alone: on each node of the cluster that address is the node itself. "
                        "Name the server by its address in the network."
                    )
                nodes = tuple(node for node in nodes if node.node_id in here)
            self._senders[key] = senders(nodes, server=found)
        return self._senders[key]


def _first(nodes: Sequence[Node], count: int) -> list[Node]:
    """Return the nodes without GPUs where they are enough, else all."""
    plain = [node for node in nodes if not node.gpus]
    return plain if len(plain) >= count else list(nodes)


def _of_this_machine(connection: Connection, nodes: Sequence[Node]) -> frozenset[str]:
    ids = {node.node_id for node in nodes}
    return frozenset(
        item["node_id"] for item in connection.driver.nodes() if item["node_id"] in ids and has_address(item["address"])
    )


def _have_address(connection: Connection, nodes: Sequence[Node], address: str) -> frozenset[str]:
    """Ask all nodes whether an address is theirs; return the ids of those that say so."""
    function = f"{__name__}:{has_address.__name__}"
    asked = connection.driver.on_nodes([node.node_id for node in nodes], function, address, wait_s=_ANSWER_S)
    for answered, text in asked.values():
        if not answered:
            raise HardwareError(f"a node of the cluster does not answer ({text.partition(':')[0]}). Run it again.")
    return frozenset(node_id for node_id, (_, found) in asked.items() if found)


def has_address(address: str) -> bool:
    """Whether an address is one of this machine: only such a one can be bound to."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.bind((address, 0))
        return True
    return False


class _NodeHost(LoadHost):
    """A node on which a place is ours."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.name = place.where

    def _ask(self, method: str, *args: object) -> Any:
        return self._place.ask("load", method, *args, timeout_s=_ANSWER_S)

    def start(self, letters: Sequence[bytes]) -> None:
        """See `LoadHost.start`."""
        self._ask("start", list(letters))

    def clock(self) -> float:
        """See `LoadHost.clock`."""
        return float(self._ask("clock"))

    def tell(self, message: bytes) -> float:
        """See `LoadHost.tell`."""
        return float(self._ask("tell", message))

    def hear(self) -> list[tuple[int, bytes | int]]:
        """See `LoadHost.hear`."""
        return [(place, said) for place, said in self._ask("hear")]

    def end(self) -> None:
        """See `LoadHost.end`."""
        with suppress(EngineError):
            self._ask("end")
