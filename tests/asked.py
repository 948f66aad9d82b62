"""Servers that note what they are asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_inferperf.simulate.server import SimulatedServer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every request under load that a simulated server of this process got."""
    found: list[dict[str, Any]] = []
    complete = SimulatedServer._complete

    def listen(self: SimulatedServer, connection: Any, body: bytes, *, chat: bool) -> None:
        request = json.loads(body)
        if request.get("stream"):
            found.append(request)
        complete(self, connection, body, chat=chat)

    monkeypatch.setattr(SimulatedServer, "_complete", listen)
    return found
