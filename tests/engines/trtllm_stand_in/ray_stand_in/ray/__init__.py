"""Ray as far as an engine on it asks: RAY_STAND_IN lists the nodes (`B200:8,B200:8`), RAY_STAND_IN_BUSY GPUs of each in use."""

from __future__ import annotations

import os
from typing import Any

from . import util

__all__ = ["init", "nodes", "shutdown", "util"]

_connected = False


def init(**arguments: Any) -> None:
    global _connected
    assert arguments.pop("address") == "auto"
    assert arguments.keys() <= {"namespace", "ignore_reinit_error", "log_to_driver"}
    if _connected and not arguments.get("ignore_reinit_error"):
        raise RuntimeError("Maybe you called ray.init twice by accident?")
    if not os.environ.get("RAY_STAND_IN"):
        raise ConnectionError("Could not find any running Ray instance.")
    _connected = True


def shutdown() -> None:
    global _connected
    _connected = False


def nodes() -> list[dict[str, Any]]:
    assert _connected
    found = []
    for item in os.environ["RAY_STAND_IN"].split(","):
        kind, _, count = item.partition(":")
        gpus = {"GPU": float(count), f"accelerator_type:{kind}": 1.0} if int(count) else {}
        found.append({"Alive": True, "Resources": {"CPU": 64.0, **gpus}})
    return found
