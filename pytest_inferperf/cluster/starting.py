"""Starts Python processes of ours that import nothing from the folder where pytest runs."""

from __future__ import annotations

import sys

__all__ = ["command_of"]

_START = (
    # `-c` and `-m` look into the working directory first, where a project may have a queue.py of its own.
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from importlib import import_module; import_module(sys.argv[1]).main(int(sys.argv[2]))"
)


def command_of(module: str, descriptor: int) -> list[str]:
    """Return the command that calls `main` of a module with a descriptor. Without `-P`, which Python 3.10 lacks."""
    return [sys.executable, "-c", _START, module, str(descriptor)]
