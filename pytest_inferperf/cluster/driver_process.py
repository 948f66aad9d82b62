"""The process that holds the connection to Ray, and does there what pytest asks for: `main(DESCRIPTOR)`.

Ray ends the process of a driver whose head is gone, and some of its calls never return once it is: so both happen here, and
not in pytest. What is asked for, JSON, comes as `(number, method, arguments)` and is answered, in any order, with `(number, kind,
value)`; what has no number is not answered. It ends with the connection to pytest, and takes with it what the run had.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection as Pipe
from typing import Any

from pytest_inferperf.cluster.pipe import receive, written

__all__ = ["main"]

_THREADS = 256
"""Calls that wait at once: a few for each engine."""

_END_S = 10.0
"""Time Ray has to disconnect, before this process ends without."""


def main(descriptor: int) -> None:
    """Connect as the first message says, and serve until pytest lets go."""
    # A terminal sends it to all; what becomes of the cluster is for pytest to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Pipe(descriptor)
    try:
        import ray

        ray.init(**receive(pipe))
    except Exception as error:
        _leave(pipe, ("failed", f"{error}".strip() or type(error).__name__))
    pipe.send_bytes(written(("connected", "")))
    calls = _Calls()
    lock = threading.Lock()

    def answer(number: int | None, method: str, arguments: Sequence[Any]) -> None:
        try:
            said = written((number, "found", getattr(calls, method)(*arguments)))
        except ray.exceptions.RayTaskError as error:
            said = written((number, "failed", str(error.cause or error)))
        except ray.exceptions.GetTimeoutError:
            said = written((number, "late", ""))
        except Exception as error:
            if not ray.is_initialized():
                # A client of a server elsewhere is told so, where a driver is ended.
                _leave(pipe, None, why=str(error))
            said = written((number, "gone", f"{type(error).__name__}: {error}"))
        if number is not None:
            with lock, suppress(OSError):
                pipe.send_bytes(said)

    pool = ThreadPoolExecutor(max_workers=_THREADS)
    with suppress(EOFError, OSError):
        while (asked := receive(pipe)) is not None:
            pool.submit(answer, *asked)
    _leave(pipe, None)


def _leave(pipe: Pipe, said: tuple[str, str] | None, *, why: str = "") -> None:
    """Disconnect and end at once, whatever calls are still waiting."""
    import ray

    if why:
        print(why, file=sys.stderr, flush=True)
    if said is not None:
        with suppress(OSError):
            pipe.send_bytes(written(said))
    threading.Timer(_END_S, os._exit, [1]).start()
    with suppress(Exception):
        ray.shutdown()
    os._exit(0)


class _Calls:
    """What pytest may ask for. Groups and actors have numbers, which pytest gives them."""

    def __init__(self) -> None:
        self._groups: dict[int, Any] = {}
        self._actors: dict[int, Any] = {}
        self._removed: set[int] = set()
        self._lock = threading.Lock()

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are alive: `node_id`, `address` and `resources`."""
        import ray

        return [
            {"node_id": row["NodeID"], "address": row["NodeManagerAddress"], "resources": dict(row["Resources"])}
            for row in ray.nodes()
            if row["Alive"]
        ]

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return what there is, and what of it is free."""
        import ray

        return dict(ray.cluster_resources()), dict(ray.available_resources())

    def on_nodes(
        self, node_ids: Sequence[str], function: str, args: Sequence[object], wait_s: float
    ) -> dict[str, tuple[bool, Any]]:
        """Run a function, `module:name`, on nodes, all at once: whether it did, and what it returns or why not."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        module, _, name = function.partition(":")
        task = ray.remote(getattr(import_module(module), name))
        asked = {
            node_id: task.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
            ).remote(*args)
            for node_id in node_ids
        }
        found = {}
        for node_id, reference in asked.items():
            try:
                found[node_id] = (True, ray.get(reference, timeout=wait_s))
            except ray.exceptions.RayError as error:
                found[node_id] = (False, str(error))
        return found

    def new_group(self, group: int, bundles: Sequence[Mapping[str, float]], node_ids: Sequence[str]) -> None:
        """Ask for resources on these nodes: all of one bundle on one node, and no two bundles on the same."""
        from ray.util import placement_group

        made = placement_group(
            [dict(bundle) for bundle in bundles],
            strategy="STRICT_PACK" if len(bundles) == 1 else "STRICT_SPREAD",
            bundle_label_selector=[{"ray.io/node-id": f"in({','.join(node_ids)})"}] * len(bundles),
        )
        with self._lock:
            self._groups[group] = made
        if group in self._removed:
            self.remove_group(group)

    def is_granted(self, group: int, wait_s: float) -> bool:
        """Wait for the resources of a group."""
        return bool(self._groups[group].wait(wait_s))

    def remove_group(self, group: int) -> None:
        """Give a group back, granted or not, and end what runs in it: also one that is still being asked for."""
        from ray.util import remove_placement_group

        self._removed.add(group)
        with self._lock:
            made = self._groups.pop(group, None)
        if made is not None:
            remove_placement_group(made)

    def new_actor(self, actor: int, group: int, index: int, resources: Mapping[str, float]) -> None:
        """Start a `Host` in a bundle of a group. Waits for nothing."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from pytest_inferperf.cluster.host import Host

        self._actors[actor] = (
            ray.remote(Host)
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                max_concurrency=8,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._groups[group], placement_group_bundle_index=index
                ),
            )
            .remote(int(resources.get("GPU", 0)))
        )

    def ask(self, actor: int, wait_s: float, method: str, *args: object) -> Any:
        """Call an actor."""
        import ray

        return ray.get(getattr(self._actors[actor], method).remote(*args), timeout=wait_s)

    def tell(self, actor: int, method: str, *args: object) -> None:
        """Call an actor without waiting for anything."""
        getattr(self._actors[actor], method).remote(*args)

    def kill(self, actor: int) -> None:
        """End an actor and all that it has started."""
        import ray

        found = self._actors.pop(actor, None)
        if found is not None:
            ray.kill(found)
