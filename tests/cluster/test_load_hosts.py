"""Which nodes send load, without Ray."""

from __future__ import annotations

import pytest

from pytest_inferperf.cluster import load_hosts
from pytest_inferperf.cluster.load_hosts import ClusterLoadHosts, LoadRequest, has_address, senders
from pytest_inferperf.cluster.rules import Node
from pytest_inferperf.engines.hardware import Gpu
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError, HardwareError, NodeLost

B200 = Gpu(name="NVIDIA B200", memory_gib=178, sm=100)


def node(name: str, *, cpus: float = 8, gpus: int = 0) -> Node:
    return Node(node_id=name, name=name, cpus=cpus, cpu_name="cpu", cores=int(cpus), gpus=(B200,) * gpus)


class Cluster:
    """Stands in for a connection."""

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes

    def nodes(self) -> tuple[Node, ...]:
        return self._nodes


def hosts_of(
    monkeypatch: pytest.MonkeyPatch, *nodes: Node, server: str = "", here: str = "", wanted: int = 0
) -> ClusterLoadHosts:
    """Return the hosts of a cluster, in which a server has one node, and this machine another."""
    monkeypatch.setattr(load_hosts, "_have_address", lambda *_: frozenset([server]))
    monkeypatch.setattr(load_hosts, "_of_this_machine", lambda *_: frozenset(filter(None, [here])))
    return ClusterLoadHosts(lambda: Cluster(*nodes), wanted=wanted, timeout_s=1)  # type: ignore[arg-type, return-value]


FAR = Endpoint.parse("http://192.0.2.7:8000", model="m")


def test_the_node_of_the_server_sends_only_where_there_is_no_other() -> None:
    nodes = [node("a"), node("b"), node("c")]
    assert [item.name for item in senders(nodes, server=frozenset(["b"]))] == ["a", "c"]
    assert [item.name for item in senders(nodes[:1], server=frozenset(["a"]))] == ["a"]


def test_gpus_are_left_to_those_who_compute() -> None:
    nodes = [node("gpu", cpus=96, gpus=8), node("small", cpus=8), node("large", cpus=64)]
    assert [item.name for item in senders(nodes, server=frozenset())] == ["large", "small", "gpu"]
    assert [item.name for item in load_hosts._first(nodes, 2)] == ["small", "large"]
    assert len(load_hosts._first(nodes, 3)) == 3


def test_room_is_what_each_of_them_has(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("a", cpus=4), node("b", cpus=16), node("server", cpus=64)]
    assert hosts_of(monkeypatch, *nodes, server="server").room(FAR) == (2, 4)
    assert hosts_of(monkeypatch, *nodes, server="server", wanted=1).room(FAR) == (1, 16)
    assert hosts_of(monkeypatch).room(FAR) == (0, 0)


def test_more_hosts_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = hosts_of(monkeypatch, node("a"), node("server"), server="server")
    with (
        pytest.raises(
            HardwareError,
            match=r"^the load needs 2 hosts, and the cluster has 1 that may send to http://192\.0\.2\.7:8000/v1/completions\.$",
        ),
        hosts.taken(FAR, 2, 1),
    ):
        pass


def test_an_address_of_this_machine_alone_means_another_server_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Endpoint.parse("http://localhost:8000", model="m")
    nodes = [node("a"), node("b"), node("here")]
    assert hosts_of(monkeypatch, *nodes, here="here").room(target) == (1, 8)
    with pytest.raises(
        HardwareError, match=r"^http://localhost:8000/v1/completions is this machine alone: on each node"
    ):
        hosts_of(monkeypatch, *nodes).room(target)


@pytest.mark.parametrize(
    ("hosts", "cpus", "words"),
    [(1, 1, "1 CPU on one node"), (1, 4, "4 CPUs on one node"), (3, 2, "2 CPUs on each of 3 nodes")],
)
def test_what_is_asked_for_in_words(hosts: int, cpus: int, words: str) -> None:
    assert LoadRequest(hosts=hosts, cpus=cpus).words == words


@pytest.mark.parametrize(("address", "ours"), [("127.0.0.1", True), ("192.0.2.7", False), ("2001:db8::7", False)])
def test_addresses_of_this_machine(address: str, ours: bool) -> None:
    assert has_address(address) is ours


def test_a_node_that_is_lost_when_it_is_to_send_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a `NodeLost`: whoever measures would launch the engine again, which here is somebody else's server."""

    def take_places(*_: object, **__: object) -> None:
        raise NodeLost("the node that the load was given did not start it within 120 s")

    monkeypatch.setattr(load_hosts, "take_places", take_places)
    hosts = hosts_of(monkeypatch, node("a"), node("server"), server="server")
    with pytest.raises(
        EngineError, match=r"did not start it within 120 s: nothing was sent\. Run it again\.$"
    ) as caught:
        hosts.taken(FAR, 1, 1).__enter__()
    assert not isinstance(caught.value, NodeLost)
