"""An engine in a server of our own: started on a free loopback port, and ended with everything it started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pytest_inferperf.engines.checkpoint.cache import checkpoint_hash
from pytest_inferperf.engines.checkpoint.conformance import read_quant_config
from pytest_inferperf.engines.devices import DeviceLease
from pytest_inferperf.engines.hardware import cpu_hardware, find_gpus
from pytest_inferperf.engines.interface import Generation, GenerationRequest, Progress, Serving
from pytest_inferperf.engines.openai.connecting import check_options, max_model_len
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.engine import OpenAIEngine
from pytest_inferperf.engines.servers.presets import Launch, command_with_config, plan_launch, takes_engine_options
from pytest_inferperf.engines.servers.process import ManagedServer, free_port
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import UNVERIFIED, EngineInfo, Hardware

__all__ = ["ServedEngine"]


class ServedEngine(OpenAIEngine):
    """Owns its server. Each launch of it is a session."""

    can_relaunch = True

    def __init__(
        self,
        spec: EngineSpec,
        *,
        checkpoint: Path | None,
        load_timeout_s: float = 600.0,
        call_timeout_s: float = 600.0,
        log_dir: Path | None = None,
        progress: Progress | None = None,
        lease: DeviceLease | None = None,
    ) -> None:
        """Start the server with the checkpoint, or, for one that finds its models itself, with `spec.model`.

        Raises `EngineError`, with the end of the server's log, where it does not start or answers nothing.
        """
        options = check_options(spec, others=takes_engine_options(spec.serve))
        self._model = str(checkpoint) if checkpoint is not None else spec.model
        self._load_timeout_s = load_timeout_s
        self._log_dir = log_dir
        self._progress = progress
        self._lease = lease
        self._devices = lease.uuids if lease is not None else ()
        started = time.perf_counter()
        launch = self._start(spec)
        try:
            config = read_quant_config(checkpoint) if checkpoint is not None else None
            info = EngineInfo(
                backend="openai",
                hardware=_hardware(spec, self._devices),
                quant_algo=config.quant_algo if config is not None else UNVERIFIED,
                # A flag of the server, or its own choice: nothing reads it back.
                kv_cache_quant_algo=UNVERIFIED,
                compute_dtype=UNVERIFIED,
                simulated=False,
                max_model_len=max_model_len(replace(spec, model=self._model), None),
                checkpoint=self._model,
                checkpoint_hash=checkpoint_hash(checkpoint) if checkpoint is not None else UNVERIFIED,
                options=options,
                versions={"server": spec.serve},
                load_s=time.perf_counter() - started,
            )
            super().__init__(
                spec,
                Endpoint.parse(launch.base_url, model=launch.request_model),
                info=info,
                timeout_s=call_timeout_s,
                tokenizer=self._model,
            )
        except BaseException:
            self._server.stop()
            raise

    def _start(self, spec: EngineSpec) -> Launch:
        launch = plan_launch(spec.serve, spec, model=self._model, port=free_port())
        with command_with_config(launch) as command:
            self._server = ManagedServer(
                command,
                what=f"{spec.serve.split()[0]} {spec.served_model_name} {spec.precision}",
                ready_url=launch.ready_url,
                ready_timeout_s=self._load_timeout_s,
                environment={**launch.environment, **(self._lease.environment if self._lease is not None else {})},
                descriptors=self._lease.descriptors if self._lease is not None else (),
                log_dir=self._log_dir,
                progress=self._progress,
            )
        return launch

    @property
    def devices(self) -> tuple[str, ...]:
        """See `Engine.devices`."""
        return self._devices

    @property
    def pid(self) -> int:
        """Process id of the server's guardian."""
        return self._server.pid

    @property
    def serving(self) -> Serving | None:
        """See `Engine.serving`."""
        self._server.check()
        return super().serving

    @property
    def watched_hardware(self) -> Hardware:
        """See `Engine.watched_hardware`: the server runs on this machine."""
        return self.info.hardware

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        """See `Engine.generate`."""
        try:
            return super().generate(requests, concurrency=concurrency)
        except EngineError:
            # The log of a server that has died says why.
            self._server.check()
            raise

    def relaunch(self) -> None:
        """See `Engine.relaunch`."""
        self._server.stop()
        launch = self._start(self.spec)
        try:
            self._endpoint = Endpoint.parse(launch.base_url, model=launch.request_model)
            self._abilities = self._probe()
        except BaseException:
            self._server.stop()
            raise

    def close(self) -> None:
        """See `Engine.close`."""
        self._server.stop()


def _hardware(spec: EngineSpec, devices: Sequence[str]) -> Hardware:
    """Return what the server runs on: of a machine with several kinds of GPUs, those that it was given."""
    gpus = [gpu for gpu in find_gpus() if not devices or gpu.uuid in devices]
    return Hardware(name=gpus[0].name, count=spec.world_size, kind="gpu") if gpus else cpu_hardware()
