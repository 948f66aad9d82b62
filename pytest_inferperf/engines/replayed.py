"""What stands where an engine would while results are replayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn

from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    TokenChunk,
)
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import EngineInfo, Hardware

__all__ = ["ReplayedEngine"]


class ReplayedEngine(Engine):
    """Nothing is built, and whatever is asked of it is an error."""

    # A gate that waits for more sessions waits for those of another run.
    can_relaunch = True

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.info = EngineInfo(
            backend="replay",
            hardware=Hardware(name="none", count=1, kind="cpu"),
            quant_algo=None,
            kv_cache_quant_algo=None,
            compute_dtype="none",
            simulated=False,
            max_model_len=0,
            checkpoint="",
            checkpoint_hash="",
        )

    def _refuse(self) -> NoReturn:
        raise EngineError("--inferperf-replay builds no engine: a test that asks one itself cannot be replayed.")

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        """See `Engine.encode`."""
        self._refuse()

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """See `Engine.decode`."""
        self._refuse()

    @property
    def prefix_token_id(self) -> int:
        """See `Engine.prefix_token_id`."""
        self._refuse()

    @property
    def eos_token_id(self) -> int:
        """See `Engine.eos_token_id`."""
        self._refuse()

    @property
    def vocab_size(self) -> int:
        """See `Engine.vocab_size`."""
        self._refuse()

    @property
    def special_token_ids(self) -> frozenset[int]:
        """See `Engine.special_token_ids`."""
        self._refuse()

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        """See `Engine.generate`."""
        self._refuse()

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        """See `Engine.stream`."""
        self._refuse()

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        """See `Engine.loglikelihood`."""
        self._refuse()

    def peak_memory_bytes(self) -> int:
        """See `Engine.peak_memory_bytes`."""
        self._refuse()

    def close(self) -> None:
        """See `Engine.close`."""
