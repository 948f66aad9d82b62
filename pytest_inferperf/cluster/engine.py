"""An engine process on a node of the cluster, behind the same interface as one on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from pytest_inferperf.cluster.seat import Seat
from pytest_inferperf.cluster.worker import RemoteWorker
from pytest_inferperf.engines.hardware import cpu_hardware
from pytest_inferperf.engines.interface import Engine, Watched
from pytest_inferperf.engines.process import EngineProcess, difference
from pytest_inferperf.errors import EngineError, InvalidRun, NodeLost
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import EngineInfo, Hardware

__all__ = ["ClusterEngine"]


class ClusterEngine(EngineProcess):
    """An engine on the node of a seat. Relaunched after the loss of its node, it goes on where the seat moves to."""

    def __init__(self, spec: EngineSpec, *, seat: Seat, **keywords: Any) -> None:
        self._seat = seat
        self._keywords = keywords
        super().__init__(spec, start=seat.start, **keywords)
        if self.info.hardware.kind == "cpu":
            return
        found = len(seat.place.devices)
        if found < self.info.hardware.count:
            self.close()
            raise EngineError(
                f"engine {spec.served_model_name} {spec.precision} took {self.info.hardware.count} GPUs of node "
                f"{seat.place.node.name}, and Ray gave it {found}. Ask for them: tp=, pp= or requires_gpu(count=)."
            )

    @property
    def devices(self) -> tuple[str, ...]:
        """See `Engine.devices`: they are of another machine."""
        return ()

    @property
    def watched_hardware(self) -> Hardware:
        """See `Engine.watched_hardware`: of this machine, nothing is to be watched."""
        return cpu_hardware()

    @property
    def machine(self) -> Mapping[str, str]:
        """See `Engine.machine`."""
        return self._seat.place.context

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Engine.notes`."""
        return self._seat.notes

    @contextmanager
    def watch(self) -> Iterator[Watched]:
        """See `Engine.watch`: its node is watched, by the actor there."""
        place, found = self._seat.place, Watched()
        hardware = {"name": self.info.hardware.name, "count": self.info.hardware.count, "kind": self.info.hardware.kind}
        place.ask("watch", json.dumps(hardware))
        try:
            yield found
        except BaseException:
            # What ended the round is what is reported.
            with suppress(EngineError):
                place.ask("watched")
            raise
        try:
            found.figures = json.loads(place.ask("watched"))
        except NodeLost:
            raise
        except EngineError as error:
            # Without it nobody knows whether the node was its own.
            raise InvalidRun(f"node {place.node.name} was not watched to the end: {error}") from None

    def clock_s(self) -> float:
        """See `Engine.clock_s`: that of the node. What a call takes on its way is no time of the engine."""
        assert isinstance(self._worker, RemoteWorker)
        return super().clock_s() - self._worker.beside_s

    def relaunch(self, given_up: threading.Event | None = None) -> None:
        """See `Engine.relaunch`. Raises `NodeLost` where its node is lost, and no other takes over until `given_up`."""
        if self._seat.lost:
            self._seat.move(given_up)
        super().relaunch()

    def call_off(self) -> None:
        """End it in the middle of a call of another thread, or of its launch. See `RemoteWorker.call_off`."""
        self._seat.call_off()

    def _launch(self) -> EngineInfo:
        """See `EngineProcess._launch`: a node that is lost meanwhile is replaced like any other."""
        try:
            return super()._launch()
        except NodeLost:
            self._seat.move()
        try:
            return super()._launch()
        except NodeLost as error:
            raise NodeLost(f"{error}, after: {self._seat.notes[-1]}") from None

    def another_seat(self, given_up: threading.Event) -> Seat:
        """Wait for a second seat of the same kind, until it is `given_up`. Raises `HardwareError` where there is none."""
        return self._seat.another(given_up)

    def replica(self, seat: Seat) -> ClusterEngine:
        """Start the same engine on another seat, which is released where that fails.

        Raises `EngineError`, and `InvalidRun` where it is not the same engine.
        """
        try:
            found = ClusterEngine(self.spec, seat=seat, **self._keywords)
            moved = difference(self.info, found.info)
            if moved:
                raise InvalidRun(f"a replica of {self.spec.served_model_name} is another engine: {moved}")
        except BaseException:
            seat.release()
            raise
        return found

    def leave(self) -> None:
        """Close a replica and give its seat back."""
        self.close()
        self._seat.release()

    @property
    def where(self) -> str:
        """See `Engine.where`."""
        return self._seat.place.where

    @contextmanager
    def evaluators(self, replicas: int) -> Iterator[Engine]:
        """See `Engine.evaluators`: up to `replicas` nodes of the same kind answer."""
        from pytest_inferperf.cluster.sharded import ShardedEngine

        sharded = ShardedEngine(self, replicas=replicas, progress=self._progress)
        try:
            yield sharded
        finally:
            sharded.close()
