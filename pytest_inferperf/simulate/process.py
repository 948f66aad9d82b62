"""The simulated server in a process of its own, so that client and server do not share an interpreter."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields

from pytest_inferperf.errors import EngineError
from pytest_inferperf.simulate.behaviour import Behaviour

__all__ = ["read_stats", "serve_in_process"]

_STOP_S = 5.0


@contextlib.contextmanager
def serve_in_process(behaviour: Behaviour) -> Iterator[str]:
    """Serve on a free port of this machine for as long as the block runs; gives the URL.

    The process has ended when the block has, whatever happened in it. Raises `EngineError` where it does not start.
    """
    command = [sys.executable, "-m", "pytest_inferperf.cli", "simulate-server", *_options(behaviour)]
    # A session of its own: Ctrl-C is for the client, which then ends the block.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise EngineError(f"the simulated server did not start: it ended with exit status {process.wait()}.")
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _options(behaviour: Behaviour) -> list[str]:
    options = []
    for item in fields(behaviour):
        name, value = item.name.replace("_", "-"), getattr(behaviour, item.name)
        if isinstance(value, bool):
            options.append(f"--{name}" if value else f"--no-{name}")
        else:
            options += [f"--{name}={value}"]
    return options


def read_stats(host: str, port: int, *, reset: bool = True) -> dict[str, float]:
    """Return what the server knows of itself since its start or the last `reset`: see `SimulatedServer.stats`."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request("GET", "/stats?reset" if reset else "/stats")
        found: dict[str, float] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return found
