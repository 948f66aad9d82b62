"""The Ray cluster that a run uses: one that is there, or one that is started on this machine and ended with the run."""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
import socket
from typing import Any

from pytest_inferperf import __version__
from pytest_inferperf.cluster.driver import Driver
from pytest_inferperf.cluster.place import Place, lines_of
from pytest_inferperf.cluster.rules import Node
from pytest_inferperf.cluster.scratch import ScratchFolder
from pytest_inferperf.engines.hardware import Gpu, cpu_hardware
from pytest_inferperf.errors import HardwareError, MissingExtra, SettingsError
from pytest_inferperf.hiding import hider

__all__ = ["LOCAL", "Connection", "check_address", "connect"]

LOCAL = "local"
OBJECT_STORE_BYTES = 100 * 2**20
"""Ray's own default is a third of the memory; what we send are requests and answers."""

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_AUTO_CONNECT": "0"}
"""What Ray is told by its environment: to report its use to nobody, and to look for no other cluster on its own."""

LISTEN_S = 20.0
"""Time in which a client server of Ray takes a connection."""

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

    def __init__(self, driver: Driver, *, folder: ScratchFolder | None = None) -> None:
        self.driver = driver
        self._folder = folder
        self._known: dict[str, Node] = {}
        self._places: list[Place] = []
        self._closed = False

    def nodes(self) -> tuple[Node, ...]:
        """Return the nodes that are alive and hand out CPUs; one that is seen for the first time is asked what it is.

        Raises `HardwareError` for a node that does not answer, or that has another version of this package, and
        `ClusterLost`.
        """
        # A head node that hands out no CPU is there for Ray alone.
        alive = {item["node_id"]: item for item in self.driver.nodes() if item["resources"].get("CPU", 0) >= 1}
        new = [node_id for node_id in alive if node_id not in self._known]
        if new:
            self._known |= {node_id: _node(alive[node_id], text) for node_id, text in _probe(self.driver, new).items()}
        return tuple(self._known[node_id] for node_id in alive if node_id in self._known)

    @property
    def known(self) -> tuple[Node, ...]:
        """Every node that `nodes` has ever returned: those that were lost since are among them."""
        return tuple(self._known.values())

    def free_words(self) -> str:
        """Say what nobody has taken: `3 CPUs, 0 of 8 GPUs`."""
        total, free = self.driver.resources()
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
        for place in list(self._places):
            place.release()
        # What a cluster that was lost leaves behind is ended with its folder.
        is_lost = self.driver.is_lost
        self.driver.end()
        if self._folder is not None:
            self._folder.remove(ended=not is_lost)


def connect(address: str, *, engines: int = 1) -> Connection:
    """Connect to a cluster, or start one, with room for so many `engines` without GPUs. Raises `HardwareError`."""
    common: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == LOCAL:
        folder = ScratchFolder()
        try:
            driver = Driver(
                environment=_environment_of_local(),
                address="local",
                include_dashboard=False,
                # Replicas that a test asks for share the cores; by default Ray hands out each core once.
                num_cpus=max(engines, cpu_hardware().count) if engines > 1 else None,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder.path),
                **common,
            )
        except HardwareError as error:
            message = f"--inferperf-ray=local: Ray does not start here ({lines_of(error)[0]})."
        except BaseException:
            folder.remove(ended=False)
            raise
        else:
            return Connection(driver, folder=folder)
        folder.remove(ended=False)
        raise HardwareError(message)
    try:
        _check_listens(address)
        return Connection(Driver(environment=ENVIRONMENT, address=address, **common))
    except HardwareError as error:
        message = (
            f"--inferperf-ray={address}: no client server of Ray there ({lines_of(error)[0]}). It has a port of its own, "
            "10001 unless the head says otherwise: ray start --head --ray-client-server-port=PORT. On a machine of the "
            "cluster write --inferperf-ray=auto."
            if address.startswith("ray://")
            else f"--inferperf-ray={address}: no Ray cluster there ({lines_of(error)[0]}). Start one (ray start --head), name it "
            "(RAY_ADDRESS or ray://HOST:PORT), or use --inferperf-ray=local."
        )
    raise HardwareError(message)


def _check_listens(address: str) -> None:
    """Raise `HardwareError` where nobody listens: Ray's client would try for half a minute, and not say why."""
    if address.startswith("ray://"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=LISTEN_S).close()
        except (OSError, OverflowError) as error:
            raise HardwareError(str(error)) from None


def _environment_of_local() -> dict[str, str]:
    """Return what makes a Ray of this run listen on loopback alone, to those who hold a secret of the run.

    Ray takes 127.0.0.1 for a wish to be reached from outside; its switch for desktop systems makes it mean it.
    """
    return ENVIRONMENT | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Workers that nobody asked for would take memory.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        # Nobody will start its head again.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    }


def _probe(driver: Driver, node_ids: list[str]) -> dict[str, str]:
    """Let nodes describe themselves. Those that were lost meanwhile are left out."""
    found = {}
    described = driver.on_nodes(node_ids, "pytest_inferperf.cluster.host:describe_node", wait_s=PROBE_S)
    for node_id, (answered, text) in described.items():
        if answered:
            found[node_id] = text
        elif node_id in {item["node_id"] for item in driver.nodes()}:
            raise HardwareError(
                f"the node {node_id[:8]} of the cluster does not answer ({hider()(text).strip().splitlines()[-1]}). Every node needs "
                f'this package: pip install "pytest-inferperf[cluster]=={__version__}"'
            )
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
        node_id=row["node_id"],
        name=data["name"],
        cpus=float(row["resources"].get("CPU", 0)),
        cpu_name=data["cpu_name"],
        cores=int(data["cores"]),
        # Of what the driver sees, Ray may have been given a part.
        gpus=gpus[: int(row["resources"].get("GPU", 0))],
    )
