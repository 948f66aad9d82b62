"""Where an engine goes on once its node is lost, and how long anybody waits for that."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_inferperf.cluster import seat as seats
from pytest_inferperf.cluster.connection import Connection
from pytest_inferperf.cluster.engine import ClusterEngine
from pytest_inferperf.cluster.rules import Node, Request
from pytest_inferperf.cluster.seat import Seat
from pytest_inferperf.engines.process import EngineProcess
from pytest_inferperf.errors import HardwareError, NodeLost


def node(name: str) -> Node:
    return Node(node_id=name, name=name, cpus=1, cpu_name="cpu", cores=1, gpus=())


class Place:
    """Stands in for a place, whose node is lost."""

    request = SimpleNamespace(what="engine x", whole_node=False)
    devices = ("GPU-1",)

    def __init__(self, name: str) -> None:
        self.node, self.where = node(name), f"node {name}"

    def ask(self, method: str) -> None:
        raise NodeLost(f"{method}: {self.where} is lost")

    def release(self) -> None:
        pass


class Cluster:
    """Stands in for a cluster, and for `take_place`: another node is there once it is `free`."""

    def __init__(self) -> None:
        self.free = True
        self.names = iter("abc")

    def nodes(self) -> tuple[Node, ...]:
        return node("a"), node("b"), node("c")

    def take_place(
        self, *_: object, given_up: Sequence[threading.Event], among: Sequence[Node] | None, **__: object
    ) -> Place:
        while not self.free:
            if any(event.wait(0.01) for event in given_up):
                raise HardwareError("nobody waits for it any more")
        name = next(self.names)
        assert among is None or name in {item.node_id for item in among}
        return Place(name)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    monkeypatch.setattr(seats, "take_place", found.take_place)
    return found


def seat_of(cluster: Cluster) -> Seat:
    return Seat(cast("Connection", cluster), cast("Request", None), timeout_s=7200)


def test_a_move_that_is_given_up_is_no_move_and_the_next_one_is(cluster: Cluster) -> None:
    seat, over = seat_of(cluster), threading.Event()
    engine: Any = ClusterEngine.__new__(ClusterEngine)
    engine._seat = seat
    cluster.free = False
    threading.Timer(0.2, over.set).start()
    with pytest.raises(NodeLost, match="engine x is lost on node a, and no other node of its kind takes over: nobody"):
        engine.relaunch(over)
    assert not seat.notes
    # The next test.
    cluster.free = True
    assert seat.lost
    seat.move(threading.Event())
    assert seat.notes == ("engine x was lost on node a, and went on on node b, which is of the same kind",)
    with pytest.raises(NodeLost, match="engine x is lost on node b too"):
        seat.move()


def test_an_engine_that_is_lost_twice_while_it_loads_says_both(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = ClusterEngine.__new__(ClusterEngine)
    engine._seat = seat = seat_of(cluster)
    monkeypatch.setattr(EngineProcess, "_launch", lambda _self: seat.place.ask("load"))
    with pytest.raises(NodeLost) as caught:
        engine._launch()
    assert str(caught.value) == (
        "load: node b is lost, after: engine x was lost on node a, and went on on node b, which is of the same kind"
    )


def test_a_seat_that_is_released_waits_no_more(cluster: Cluster) -> None:
    seat = seat_of(cluster)
    cluster.free = False
    threading.Timer(0.2, seat.release).start()
    with pytest.raises(NodeLost, match="nobody waits for it any more"):
        seat.move()
    with pytest.raises(NodeLost, match="engine x is lost on node a, and nobody waits for it any more"):
        seat.move()


def test_a_seat_says_where_it_is_and_how_long_it_waited(cluster: Cluster) -> None:
    cluster.free = False
    timer = threading.Timer(0.3, setattr, (cluster, "free", True))
    timer.start()
    seat = seat_of(cluster)
    timer.join()
    found = seat.placement
    assert (found.engine, found.node, found.gpus, found.shared) == ("engine x", "a", 1, True)
    assert 0.2 <= found.waited_s < 60
    assert found.asked <= found.granted
    # The second place is the one that counts: what ran on the first is lost.
    seat.move()
    assert (seat.placement.node, seat.placement.asked >= found.granted) == ("b", True)
