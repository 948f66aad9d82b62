"""A pytest plugin (`-p ray_together`): no question is dealt before all replicas that a test asks for have joined.

A run waits for no replica. A comparison has to, or it compares one replica with itself.
"""

from __future__ import annotations

from typing import Any

from pytest_inferperf.cluster.sharded import ShardedEngine

WAIT_S = 600.0


def pytest_configure() -> None:
    deal = ShardedEngine._deal

    def together(self: ShardedEngine, *given: Any, **named: Any) -> Any:
        with self._state:
            self._state.wait_for(lambda: not self._joining, timeout=WAIT_S)
        return deal(self, *given, **named)

    ShardedEngine._deal = together  # type: ignore[method-assign]
