"""The driver's side of an engine process on a node: what becomes of a call that is called off."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_inferperf.cluster.place import Place
from pytest_inferperf.cluster.worker import RemoteWorker
from pytest_inferperf.errors import EngineError, NodeLost


class Node:
    """Stands in for a place, whose engine answers nothing until it is killed; then asking for it fails with `error`."""

    node = SimpleNamespace(name="a")

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.told: list[tuple[object, ...]] = []
        self.asked, self.killed = threading.Event(), threading.Event()

    def next_number(self) -> int:
        return 7

    def ask(self, method: str, *args: object, timeout_s: float = 0) -> Any:
        del args, timeout_s
        if method == "more":
            self.asked.set()
            if self.killed.wait(0.1) and self.error is not None:
                raise self.error
            return []
        return json.dumps({"pid": 1})

    def tell(self, *said: object) -> None:
        self.told.append(said)
        self.killed.set()


@pytest.mark.parametrize("error", [None, EngineError("node a failed at 'more': KeyError(7)"), NodeLost("a is lost")])
def test_a_call_that_is_called_off_ends_within_a_look(error: Exception | None) -> None:
    node = Node(error)
    worker = RemoteWorker(cast("Place", node), what="engine x", progress=None, python="")
    found: list[Exception] = []

    def ask() -> None:
        try:
            worker.call("generate", {}, timeout_s=600)
        except EngineError as failure:
            found.append(failure)

    asking = threading.Thread(target=ask)
    asking.start()
    assert node.asked.wait(60)
    worker.call_off()
    worker.call_off()
    asking.join(60)
    # Not the loss of its node: nobody looks for another one.
    assert [(type(item), str(item)) for item in found] == [(EngineError, "engine x is closed: a call was called off")]
    assert node.told == [("kill", 7)]
    worker.close()
    with pytest.raises(EngineError, match="engine x is closed: a call was called off"):
        worker.call("generate", {}, timeout_s=600)
