"""What is timed of an engine on a node, and how the node is watched meanwhile."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_inferperf.cluster import host
from pytest_inferperf.cluster.engine import ClusterEngine
from pytest_inferperf.cluster.worker import RemoteWorker
from pytest_inferperf.errors import EngineError, InvalidRun, NodeLost


class Place:
    """Stands in for a node that answers after `way_s`, and says that an engine took `took_s` of it."""

    def __init__(self, *, way_s: float = 0.0, took_s: float = 0.0) -> None:
        self.node = SimpleNamespace(name="far")
        self.way_s, self.took_s = way_s, took_s
        self.watched: str | Exception = json.dumps({"cpu.others": 0.1})

    def next_number(self) -> int:
        return 1

    def ask(self, name: str, *_arguments: Any, timeout_s: float = 0.0) -> Any:
        del timeout_s
        if name == "start":
            return json.dumps({"pid": 7})
        if name == "more":
            time.sleep(self.way_s + self.took_s)
            return [json.dumps(item).encode() for item in (["took", self.took_s], ["result", []])]
        if name == "watched" and isinstance(self.watched, Exception):
            raise self.watched
        return self.watched


def engine_on(place: Place) -> ClusterEngine:
    """Return an engine that is on a node already."""
    engine = object.__new__(ClusterEngine)
    engine._worker = RemoteWorker(place, what="m", progress=None, python="")  # type: ignore[arg-type]
    engine._seat = SimpleNamespace(place=place)  # type: ignore[assignment]
    engine.info = SimpleNamespace(hardware=SimpleNamespace(name="cpu", count=1, kind="cpu"))  # type: ignore[assignment]
    return engine


def test_the_way_to_a_node_is_no_time_of_the_engine() -> None:
    """A baseline recorded with it would let an engine without it be slower."""
    engine = engine_on(Place(way_s=0.3, took_s=0.1))
    wall, start = time.perf_counter(), engine.clock_s()
    engine._worker.call("generate", {}, timeout_s=10)
    took = engine.clock_s() - start
    assert time.perf_counter() - wall > 0.39
    assert took == pytest.approx(0.1, abs=0.05)


def test_a_node_says_how_long_the_engine_took(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def call(self, name: str, args: object, *, timeout_s: float) -> str:
            del name, args, timeout_s
            time.sleep(0.1)
            return "done"

    monkeypatch.setattr(host, "WorkerProcess", lambda **_keywords: Slow())
    talk = host._Talk(what="m", python="", lease=None)
    talk.begin({"name": "generate", "args": {}, "timeout_s": 1, "stream": False})
    said: list[Any] = []
    while not said or said[-1][0] != "result":
        said += map(json.loads, talk.more(5))
    assert [kind for kind, _ in said] == ["took", "result"]
    assert said[0][1] >= 0.1


def test_a_node_that_was_watched_has_figures() -> None:
    with engine_on(Place()).watch() as found:
        pass
    assert found.figures == {"cpu.others": 0.1}


@pytest.mark.parametrize(("problem", "raised"), [(EngineError("broke"), InvalidRun), (NodeLost("gone"), NodeLost)])
def test_a_node_that_was_not_watched_to_the_end_has_no_figures_to_judge(
    problem: Exception, raised: type[Exception]
) -> None:
    place = Place()
    place.watched = problem
    with pytest.raises(raised), engine_on(place).watch():
        pass


def test_what_ended_a_round_is_reported_and_not_what_became_of_the_watch() -> None:
    place = Place()
    place.watched = EngineError("broke")
    with pytest.raises(KeyError), engine_on(place).watch():
        raise KeyError
