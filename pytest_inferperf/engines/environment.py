"""The environment of the processes that engines run in."""

from __future__ import annotations

import os

__all__ = ["quiet_environment"]


def quiet_environment() -> dict[str, str]:
    """Return pytest's environment for a child: output at once, no telemetry, no warnings about forks."""
    found = dict(os.environ)
    found["PYTHONUNBUFFERED"] = "1"
    found.setdefault("TOKENIZERS_PARALLELISM", "false")
    found.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Measured by coverage or not, the child is not the test process.
    found.pop("COV_CORE_SOURCE", None)
    return found
