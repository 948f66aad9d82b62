"""The Ray cluster that a run uses: one that is there, or one that is started on this machine and ended with the run."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pytest_inferperf import __version__
from pytest_inferperf.cluster.place import Place, lines_of
from pytest_inferperf.cluster.rules import Node
from pytest_inferperf.cluster.scratch import ScratchFolder
from pytest_inferperf.engines.hardware import Gpu, cpu_hardware
from pytest_inferperf.errors import HardwareError, MissingExtra, SettingsError

__all__ = ["LOCAL", "Connection", "check_address", "connect"]

LOCAL = "local"
OBJECT_STORE_BYTES = 100 * 2**20
"""Ray's own default is a third of the memory; what we send are requests and answers."""

PROBE_S = 120.0
"""Time in which every node must have described itself."""


def check_address(text: str, *, option: str = "--inferperf-ray") -> str:
    """Return what an option says, checked. Imports nothing of Ray. Raises `SettingsError`."""
    if text not in ("auto", LOCAL) and not re.fullmatch(r"ray://[^\s:/]+:\d+", text):
        raise SettingsError(
            f"{option}={text}: write auto (the cluster of this machine, or of RAY_ADDRESS), local (one that is "
            "started here and ended with the run), or ray://HOST:PORT."
        )
    if importlib.util.find_spec("ray") is None:
        raise SettingsError(str(MissingExtra(option, "cluster", "ray")))
    return text


class Connection:
    """A cluster that this process is connected to, and what it holds there. `close` gives all of it back."""

    def __init__(self, *, folder: ScratchFolder | None = None) -> None:
        self._folder = folder
        self._known: dict[str, Node] = {}
        self._places: list[Place] = []
        self._closed = False

    def nodes(self) -> tuple[Node, ...]:
        """Return the nodes that are alive and hand out CPUs; one that is seen for the first time is asked what it is.

        Raises `HardwareError` for a node that does not answer, or that has another version of this package.
        """
        import ray

        # A head node that hands out no CPU is there for Ray alone.
        alive = {item["NodeID"]: item for item in ray.nodes() if item["Alive"] and item["Resources"].get("CPU", 0) >= 1}
        new = [node_id for node_id in alive if node_id not in self._known]
        if new:
            self._known |= {node_id: _node(alive[node_id], text) for node_id, text in _probe(new).items()}
        return tuple(self._known[node_id] for node_id in alive if node_id in self._known)

    def free_words(self) -> str:
        """Say what nobody has taken: `3 CPUs, 0 of 8 GPUs`."""
        import ray

        total, free = ray.cluster_resources(), ray.available_resources()
        parts = [f"{free.get(name, 0):g} of {total[name]:g} {name}s" for name in ("CPU", "GPU") if total.get(name)]
        return ", ".join(parts) or "nothing"

    def remember(self, place: Place) -> None:
        """Keep a place, to be released at the latest with the connection."""
        self._places.append(place)

    def forget(self, place: Place) -> None:
        """Let go of a place that was released."""
        if place in self._places:
            self._places.remove(place)

    def close(self) -> None:
        """Give every place back, disconnect, and end a cluster that was started for us. May be called again."""
        if self._closed:
            return
        self._closed = True
        import ray

        for place in list(self._places):
            place.release()
        with suppress(Exception):
            ray.shutdown()
        if self._folder is not None:
            self._folder.remove()


def connect(address: str, *, engines: int = 1) -> Connection:
    """Connect to a cluster, or start one, with room for so many `engines` without GPUs. Raises `HardwareError`."""
    if address == LOCAL:
        _keep_to_this_machine()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        raise HardwareError("--inferperf-ray: this process is connected to a Ray cluster already; close that first.")
    logging.getLogger("ray").setLevel(logging.ERROR)
    common: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == LOCAL:
        folder = ScratchFolder()
        try:
            with _signals_kept():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    # Replicas that a test asks for share the cores; by default Ray hands out each core once.
                    num_cpus=max(engines, cpu_hardware().count) if engines > 1 else None,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(folder.path),
                    **common,
                )
        except BaseException:
            folder.remove()
            raise
        return Connection(folder=folder)
    try:
        with _signals_kept():
            ray.init(address=address, **common)
    except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        message = (
            f"--inferperf-ray={address}: no Ray cluster there ({lines_of(error)[0]}). Start one (ray start --head), name it "
            "(RAY_ADDRESS or ray://HOST:PORT), or use --inferperf-ray=local."
        )
    else:
        return Connection()
    raise HardwareError(message)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep SIGTERM as it is: Ray takes it for itself, and ends the process in the middle of whatever it does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _keep_to_this_machine() -> None:
    """Make the Ray that is imported next listen on loopback alone, to those who hold a secret of this run.

    Ray takes 127.0.0.1 for a wish to be reached from outside; this switch, meant for desktop systems, makes it mean it.
    """
    if "ray" in sys.modules:
        raise HardwareError(
            "--inferperf-ray=local: something in this process has imported ray before, which then listens to the whole "
            "network. Start a cluster (ray start --head) and use --inferperf-ray=auto."
        )
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Workers that nobody asked for would take memory.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
    }


def _probe(node_ids: list[str]) -> dict[str, str]:
    """Let nodes describe themselves, all at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pytest_inferperf.cluster.host import describe_node

    task = ray.remote(describe_node)
    asked = {
        node_id: task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
        ).remote()
        for node_id in node_ids
    }
    found = {}
    for node_id, reference in asked.items():
        try:
            found[node_id] = ray.get(reference, timeout=PROBE_S)
        except ray.exceptions.RayError as error:
            if node_id not in {item["NodeID"] for item in ray.nodes() if item["Alive"]}:
                continue  # It was lost meanwhile.
            raise HardwareError(
                f"the node {node_id[:8]} of the cluster does not answer ({lines_of(error)[-1]}). Every node needs this package: "
                f'pip install "pytest-inferperf[cluster]=={__version__}"'
            ) from None
    return found


def _node(row: dict[str, Any], described: str) -> Node:
    data = json.loads(described)
    if data["version"] != __version__:
        raise HardwareError(
            f"the node {data['name']} has pytest-inferperf {data['version']}, and this run is {__version__}. Install it "
            f'there: pip install "pytest-inferperf[cluster]=={__version__}"'
        )
    gpus = tuple(Gpu(**item) for item in data["gpus"])
    return Node(
        node_id=row["NodeID"],
        name=data["name"],
        cpus=float(row["Resources"].get("CPU", 0)),
        cpu_name=data["cpu_name"],
        cores=int(data["cores"]),
        # Of what the driver sees, Ray may have been given a part.
        gpus=gpus[: int(row["Resources"].get("GPU", 0))],
    )
