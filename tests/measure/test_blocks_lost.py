"""Two engines are compared, and their node is lost: a block is of one node, and what has its telemetry is kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from pytest_inferperf.engines.interface import Engine, Generation, GenerationRequest
from pytest_inferperf.errors import EngineError, NodeLost
from pytest_inferperf.model.case import EngineSpec, ReferenceEngine
from tests.measure.test_blocks import CANDIDATE, Clock, FakeEngine, World


class OnNode(FakeEngine):
    """Is launched where the node of its world is; a node is lost in the calls `lost_in` of it."""

    world: Cluster

    def __init__(self, world: Cluster, name: str, spec: EngineSpec, round_s: float) -> None:
        super().__init__(world, name, spec, round_s)
        self.node = world.node
        self.calls = itertools.count(1)
        self.lost_in: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        return self.world.node

    def relaunch(self) -> None:
        self.world.move()
        self.node = self.world.node
        super().relaunch()

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        if next(self.calls) in self.lost_in:
            self.world.lost = True
        if self.world.lost or self.node != self.world.node:
            raise NodeLost(f"lost on {self.node}")
        self.world.rounds.append((self.node, self.name))
        return super().generate(requests, concurrency=concurrency)


class Cluster(World):
    """Nodes of one kind, named one after the other."""

    def __init__(self, nodes: str = "xy", lost_in: tuple[int, ...] = ()) -> None:
        self.nodes, self.lost = list(nodes), False
        self.node = self.nodes.pop(0)
        self.rounds: list[tuple[str, str]] = []
        super().__init__(Clock())
        self.candidate: OnNode = OnNode(self, "B", CANDIDATE, 1.0)
        self.candidate.lost_in = lost_in

    def move(self) -> None:
        if self.lost:
            if not self.nodes:
                raise NodeLost(f"lost on {self.node}, and no other node of its kind takes over")
            self.node, self.lost = self.nodes.pop(0), False

    def open(self, reference: ReferenceEngine) -> Engine:
        # One that finds its node gone when it is launched goes on elsewhere by itself.
        self.move()
        engine = OnNode(self, "A", reference.spec, 2.0)
        self.opened.append(engine)
        self.prepare(engine)
        return engine

    def shown(self) -> str:
        return " ".join(f"{node}{name}" for node, name in self.rounds)


def test_engines_that_are_held_begin_again_on_another_node() -> None:
    # Warm-up, a block, and the first round of another.
    world = Cluster(lost_in=(4,))
    found = world.measure(2)
    assert len(found.blocks) == 2
    assert world.shown() == "xA xB xA xB xB xA xA yA yB yA yB yB yA yA yB yB yA"
    assert len(found.telemetry) == 1
    assert not any(engine.loaded for engine in world.opened)


def test_engines_that_take_turns_keep_the_blocks_so_far() -> None:
    # The candidate's turn is first in the second block: its sixth round.
    world = Cluster(lost_in=(6,))
    found = world.measure(2, reload=True)
    assert len(found.blocks) == 2
    assert world.shown() == "xA xA xA xB xB xB xB xB yB yB yB yA yA yA"
    assert len(found.telemetry) == 4
    assert world.candidate.loaded


def test_a_block_whose_sides_were_launched_on_two_nodes_is_measured_again() -> None:
    world = Cluster()

    def lose(engine: FakeEngine) -> None:
        # Once it has answered, and before the candidate is launched.
        if len(world.opened) == 1:
            close = engine.close

            def close_and_lose() -> None:
                close()
                world.lost = True

            engine.close = close_and_lose  # type: ignore[method-assign]

    world.prepare = lose
    found = world.measure(1, reload=True)
    assert len(found.blocks) == 1
    assert len(found.telemetry) == 2
    assert world.shown() == "xA xA xA yB yB yB yA yA yA yB yB yB"


@pytest.mark.parametrize("reload", [False, True])
def test_where_no_node_is_left_the_error_says_so(reload: bool) -> None:
    world = Cluster("x", lost_in=(2,))
    with pytest.raises(NodeLost, match="no other node of its kind takes over"):
        world.measure(1, reload=reload)
    assert not any(engine.loaded for engine in world.opened)


@pytest.mark.parametrize("reload", [False, True])
def test_a_second_loss_ends_it(reload: bool) -> None:
    with pytest.raises(NodeLost, match="lost on y"):
        Cluster("xy", lost_in=(2, 3)).measure(1, reload=reload)


def test_a_reference_that_no_node_is_left_for_is_no_reason_to_reload() -> None:
    world = Cluster("x")
    world.lost = True
    with pytest.raises(EngineError) as caught:
        world.measure()
    assert "reload" not in str(caught.value)
    assert isinstance(caught.value, NodeLost)
