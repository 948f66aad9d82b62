"""Replicas answer as one engine would: the same parts, the same order, whoever answers them, and whoever is lost."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest

from pytest_inferperf.cluster.engine import ClusterEngine
from pytest_inferperf.cluster.sharded import ShardedEngine, part_size, parts_of
from pytest_inferperf.engines.interface import LogLikelihood, LogLikelihoodRequest
from pytest_inferperf.errors import EngineError, HardwareError, NodeLost

REQUESTS = [
    LogLikelihoodRequest(context=(1, document), continuation=(choice,)) for document in range(50) for choice in range(3)
]
ANSWERS = [-float(10 * item.context[-1] + item.continuation[0]) for item in REQUESTS]


class Seat:
    """Stands in for a place on a node."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.released = threading.Event()

    def release(self) -> None:
        self.released.set()


class Replica:
    """Stands in for an engine on a node. `dies_after` parts its node is lost."""

    spec: Any = None
    info: Any = None

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.where = name
        self.notes: tuple[str, ...] = ()
        self.called_off = threading.Event()

    def loglikelihood(self, requests: list[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        cluster = self.cluster
        with cluster.lock:
            cluster.calls.append((self.where, tuple(requests)))
            mine = sum(name == self.where for name, _ in cluster.calls)
        if cluster.breaks == self.where:
            assert not cluster.hangs or cluster.hanging.wait(60)
            raise EngineError("the engine broke")
        if cluster.dies.get(self.where) == mine:
            raise NodeLost(f"node {self.where} is gone")
        if self.where in cluster.hangs:
            cluster.hanging.set()
            # As long as a call may take.
            assert self.called_off.wait(60)
            raise EngineError("a call was called off")
        # The others have time to take part.
        time.sleep(0.01)
        return [
            LogLikelihood(logprob=-float(10 * item.context[-1] + item.continuation[0]), is_greedy=True)
            for item in requests
        ]

    def encode(self, texts: list[str], *, add_special_tokens: bool) -> list[tuple[int, ...]]:
        self.loglikelihood([], concurrency=1)
        return [tuple(text.encode()) for text in texts]

    def another_seat(self, given_up: threading.Event) -> Seat:
        if self.cluster.full:
            # As long as anybody would wait for it.
            assert given_up.wait(60)
            raise HardwareError("nobody waits for it any more")
        with self.cluster.lock:
            if not self.cluster.free:
                raise HardwareError("no room")
            return Seat(self.cluster.free.pop())

    def replica(self, seat: Seat) -> Replica:
        if self.cluster.loads:
            # It loads until its seat is taken from it.
            assert seat.released.wait(60)
            raise EngineError("the place is released")
        return Replica(self.cluster, seat.name)

    def relaunch(self, given_up: threading.Event) -> None:
        if self.cluster.waits:
            # As long as anybody would wait for another node.
            assert given_up.wait(60)
            raise NodeLost("nobody waits for it any more")
        with self.cluster.lock:
            if self.notes or not self.cluster.spare:
                raise NodeLost(f"node {self.where} is lost, and no other of its kind takes over")
            self.notes = (f"node {self.where} was lost",)
            self.where = self.cluster.spare.pop()

    def call_off(self) -> None:
        self.cluster.called_off.append(self.where)
        self.called_off.set()

    def leave(self) -> None:
        self.cluster.left.append(self.where)


class Cluster:
    full = loads = waits = False

    def __init__(self, *free: str, spare: tuple[str, ...] = (), breaks: str = "", hangs: str = "", **dies: int) -> None:
        self.lock = threading.Lock()
        self.free, self.spare, self.dies, self.breaks = list(free), list(spare), dies, breaks
        self.calls: list[tuple[str, tuple[LogLikelihoodRequest, ...]]] = []
        self.left: list[str] = []
        self.hangs, self.hanging = hangs, threading.Event()
        self.called_off: list[str] = []

    def ask(self, replicas: int) -> tuple[list[float], tuple[str, ...]]:
        engine = ShardedEngine(cast("ClusterEngine", Replica(self, "a")), replicas=replicas)
        try:
            found = engine.loglikelihood(REQUESTS, concurrency=1)
            return [item.logprob for item in found], engine.notes
        finally:
            engine.close()


def test_parts_never_cut_a_document() -> None:
    assert list(parts_of("aabbbcd", 2)) == [(0, 2), (2, 5), (5, 7)]
    assert list(parts_of("aaaa", 2)) == [(0, 4)]
    assert list(parts_of("", 2)) == []


def test_parts_fill_the_engine_and_are_enough_for_several() -> None:
    # 375 documents are a look of 1,500; they are cut alike however many replicas there are.
    assert [part_size(count, 64) for count in (0, 10, 375, 1500, 100_000)] == [64, 64, 64, 128, 256]


def test_texts_that_share_the_token_before_them_are_of_as_many_documents() -> None:
    cluster = Cluster()
    texts = [LogLikelihoodRequest(context=(1,), continuation=(n,)) for n in range(40)]
    engine = ShardedEngine(cast("ClusterEngine", Replica(cluster, "a")), replicas=1)
    engine.loglikelihood(texts, concurrency=1)
    engine.close()
    assert [len(asked) for _, asked in cluster.calls] == [4] * 10


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_answers_and_batches_are_those_of_one_replica(replicas: int) -> None:
    cluster = Cluster("b", "c")
    answers, notes = cluster.ask(replicas)
    assert answers == ANSWERS
    one = Cluster()
    one.ask(1)
    assert {part for _, part in cluster.calls} == {part for _, part in one.calls}
    assert len({where for where, _ in cluster.calls}) == replicas
    assert bool(notes) is (replicas > 1)
    assert len(cluster.left) == replicas - 1
    assert not cluster.called_off


def test_a_replica_that_the_cluster_has_no_room_for_is_done_without() -> None:
    cluster = Cluster()
    answers, notes = cluster.ask(3)
    assert answers == ANSWERS
    assert {where for where, _ in cluster.calls} == {"a"}
    # Who asked for three has to know. A document has three choices, and is in one part.
    assert notes == ("requests answered by 1 of 3 replicas: a 150 in 25 parts",)


def test_what_a_lost_node_had_answered_is_kept_and_the_rest_moves_once() -> None:
    cluster = Cluster(spare=("z",), a=4)
    answers, notes = cluster.ask(1)
    assert answers == ANSWERS
    assert notes[0] == "node a was lost"
    # One part was asked twice: the one that was lost.
    assert len(cluster.calls) == len({part for _, part in cluster.calls}) + 1


def test_the_other_replicas_take_over_where_no_node_is_left() -> None:
    cluster = Cluster("b", b=2)
    answers, notes = cluster.ask(2)
    assert answers == ANSWERS
    assert notes[0] == "node b is gone; its questions went to the other replicas"


def test_where_nothing_is_left_the_error_names_the_cause() -> None:
    cluster = Cluster(a=2)
    with pytest.raises(NodeLost, match="node a is lost, and no other of its kind takes over"):
        cluster.ask(1)
    # The next test looks for a place again: its engine was not ended.
    assert not cluster.called_off


def test_a_second_loss_in_a_row_ends_it() -> None:
    with pytest.raises(NodeLost, match="node z is lost"):
        Cluster(spare=("y", "z"), a=1, z=1).ask(1)


def test_an_engine_that_breaks_is_not_asked_elsewhere() -> None:
    cluster = Cluster("b", breaks="a")
    with pytest.raises(EngineError, match="the engine broke"):
        cluster.ask(1)
    assert len(cluster.calls) == 1


@pytest.mark.parametrize("what", ["full", "loads"])
def test_nobody_waits_at_the_end_for_a_replica_that_waits_or_loads(what: str) -> None:
    cluster = Cluster("b")
    setattr(cluster, what, True)
    begun = time.monotonic()
    assert cluster.ask(2)[0] == ANSWERS
    assert time.monotonic() - begun < 30


def test_texts_are_encoded_elsewhere_where_the_first_node_is_lost() -> None:
    cluster = Cluster(spare=("z",), a=1)
    engine = ShardedEngine(cast("ClusterEngine", Replica(cluster, "a")), replicas=1)
    assert engine.encode(["ab", "c"]) == [(97, 98), (99,)]
    assert engine.encode([]) == []
    assert engine.notes == ("node a was lost",)
    engine.close()


def test_a_loss_while_a_replica_joins_waits_for_it() -> None:
    cluster = Cluster("b", a=1)
    answers, notes = cluster.ask(2)
    assert answers == ANSWERS
    assert notes[0] == "node a is gone; its questions went to the other replicas"


def test_a_loss_where_the_replica_that_joins_finds_no_room_ends_it() -> None:
    cluster = Cluster(a=1)
    with pytest.raises(NodeLost, match="node a is lost"):
        cluster.ask(2)


def test_a_failure_waits_for_no_other_part() -> None:
    cluster = Cluster("b", breaks="b", hangs="a")
    with pytest.raises(EngineError, match="the engine broke"):
        cluster.ask(2)
    assert set(cluster.called_off) == {"a"}


def test_an_end_before_all_is_answered_waits_for_no_part() -> None:
    cluster = Cluster("b", hangs="ab")
    engine = ShardedEngine(cast("ClusterEngine", Replica(cluster, "a")), replicas=2)
    found: list[str] = []

    def ask() -> None:
        try:
            engine.loglikelihood(REQUESTS, concurrency=1)
        except EngineError as error:
            found.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    while {where for where, _ in cluster.calls} != {"a", "b"}:
        time.sleep(0.01)
    # As Ctrl-C and SIGTERM do.
    engine.close()
    asking.join()
    assert found == ["a call was called off"]
    assert set(cluster.called_off) == {"a", "b"}
    assert cluster.left == ["b"]


def test_nobody_waits_at_the_end_for_an_engine_that_looks_for_another_node() -> None:
    cluster = Cluster("b", a=1)
    cluster.waits = True
    begun = time.monotonic()
    answers, notes = cluster.ask(2)
    assert time.monotonic() - begun < 30
    assert answers == ANSWERS
    # It is said although it may still find a node.
    assert notes == (
        "node a is gone; its questions went to the other replicas",
        "requests answered by 1 of 2 replicas: b 150 in 25 parts",
    )
    # The next test may find it one.
    assert not cluster.called_off
