"""Where an engine runs on the cluster, and where it goes on once its node is lost."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_inferperf.cluster.place import Place, take_place
from pytest_inferperf.cluster.rules import Node, Request, same_kind
from pytest_inferperf.cluster.worker import RemoteWorker
from pytest_inferperf.errors import HardwareError, NodeLost
from pytest_inferperf.model.results import Placement

if TYPE_CHECKING:
    from pytest_inferperf.cluster.connection import Connection
    from pytest_inferperf.engines.devices import DeviceLease
    from pytest_inferperf.engines.interface import Progress

__all__ = ["Seat"]


class Seat:
    """The place of an engine and of those it is compared with: one node, and after its loss one other of its kind."""

    def __init__(
        self,
        connection: Connection,
        request: Request,
        *,
        timeout_s: float,
        progress: Progress | None = None,
        like: Node | None = None,
        given_up: threading.Event | None = None,
    ) -> None:
        """Wait for a place, on a node of the kind of `like` where it is given, until `given_up` is set.

        Raises `HardwareError` like `take_place`.
        """
        self._connection = connection
        self._request = request
        self._timeout_s = timeout_s
        self._progress = progress
        self._given_up = given_up or threading.Event()
        self.place = self._take(like)
        self.placement = self._placed()
        """Where it is, and how long it took to get there."""

        self.notes: tuple[str, ...] = ()
        """What was lost and where it went on: a report says so."""

        self._worker: RemoteWorker | None = None

    def another(self, given_up: threading.Event) -> Seat:
        """Wait for a second place of the same kind, for a replica. Raises like the constructor."""
        return Seat(self._connection, self._request, timeout_s=self._timeout_s, like=self.place.node, given_up=given_up)

    def start(
        self,
        *,
        what: str,
        log_dir: Path | None = None,
        progress: Progress | None = None,
        python: str = "",
        lease: DeviceLease | None = None,
        close_s: float | None = None,
    ) -> RemoteWorker:
        """Start an engine process here, given the keywords of `WorkerProcess`. Its log stays on the node."""
        del log_dir, lease, close_s
        self._worker = RemoteWorker(self.place, what=what, progress=progress, python=python)
        return self._worker

    def call_off(self) -> None:
        """End the engine process that runs here in the middle of its call. See `RemoteWorker.call_off`."""
        if self._worker is not None:
            self._worker.call_off()

    @property
    def lost(self) -> bool:
        """Whether the node answers no more."""
        try:
            self.place.ask("where")
        except NodeLost:
            return True
        return False

    def move(self, given_up: threading.Event | None = None) -> None:
        """Go on, on another node of the same kind. Once: what fells two nodes in a row is rather the case than the nodes.

        Raises `NodeLost` the second time, and where there is no other node, or none until it is `given_up`: then, and
        only then, it can be called again.
        """
        old = self.place
        lost = f"{old.request.what} is lost on {old.where}"
        if self._given_up.is_set():
            raise NodeLost(f"{lost}, and nobody waits for it any more")
        if self.notes:
            raise NodeLost(f"{lost} too, after: {self.notes[-1]}")
        old.release()
        try:
            self.place = self._take(old.node, lost=old.node.node_id, given_up=given_up)
        except HardwareError as error:
            raise NodeLost(f"{lost}, and no other node of its kind takes over: {error}") from None
        self.notes = (
            f"{old.request.what} was lost on {old.where}, and went on on {self.place.where}, which is of the same kind",
        )
        self.placement = self._placed()

    def _take(self, like: Node | None, *, lost: str = "", given_up: threading.Event | None = None) -> Place:
        self._asked, self._since = datetime.now(timezone.utc), time.monotonic()
        among = None
        if like is not None:
            # Ray may take a while to see that a node is gone.
            among = [node for node in same_kind(like, self._connection.nodes()) if node.node_id != lost]
        return take_place(
            self._connection,
            self._request,
            timeout_s=self._timeout_s,
            progress=self._progress,
            among=among,
            given_up=[self._given_up, *([given_up] if given_up is not None else [])],
        )

    def _placed(self) -> Placement:
        place = self.place
        return Placement(
            engine=place.request.what,
            node=place.where.removeprefix("node "),
            gpus=len(place.devices),
            asked=self._asked.isoformat(timespec="seconds"),
            granted=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            waited_s=round(time.monotonic() - self._since, 1),
            shared=not place.request.whole_node,
        )

    def release(self) -> None:
        """Give the place back, and take no other. Never raises; may be called again."""
        self._given_up.set()
        with suppress(Exception):
            self.place.release()
