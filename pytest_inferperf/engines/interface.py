"""What every engine can do. A backend implements `Engine`; everything above sees only this file."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal

from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import EngineInfo, Hardware

if TYPE_CHECKING:
    from pytest_inferperf.engines.load_hosts import LoadHosts
    from pytest_inferperf.engines.openai.endpoint import Endpoint

__all__ = [
    "Engine",
    "Generation",
    "GenerationRequest",
    "LogLikelihood",
    "LogLikelihoodRequest",
    "Message",
    "Progress",
    "Serving",
    "TokenChunk",
    "Watched",
]

Message = tuple[str, str]
"""The role and the content of one message of a chat."""

Progress = Callable[[str], None]
"""Receives one line of progress ("quantize NVFP4: calibrating 64/128") during a build or a load."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One prompt to complete. Greedy unless `temperature` is above 0."""

    prompt: tuple[int, ...]
    """Token ids. Longer than the engine's `max_model_len - max_tokens` is an `EngineError`, never truncated."""

    max_tokens: int
    messages: tuple[Message, ...] = ()
    """What a server is sent in place of the ids: a chat as it is, or its contents as one text; none for the ids."""

    follow_ups: tuple[GenerationRequest, ...] = ()
    """The later turns of a conversation: each is sent after the answer to the one before, with all that was said."""

    ignore_eos: bool = False
    """True makes the output exactly `max_tokens` long."""

    stop: tuple[str, ...] = ()
    """Strings that end the output; the text before the first of them is returned."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The completion of one request, with the times of its tokens."""

    token_ids: tuple[int, ...]
    """Generated tokens, without the prompt; with the end-of-sequence token when it was generated."""

    text: str
    """Decoded output, cut before the first stop string, special tokens left out."""

    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    token_times_s: tuple[float, ...]
    """Seconds from the send of the request to the arrival of each token, same length as `token_ids`."""

    decoding_steps: float | None = None
    """Steps the engine took for the output, fewer than its tokens under speculative decoding; None where unknown."""

    engine_ttft_s: float | None = None
    """Arrival to first token by the engine's own clock, seconds; None where it tells none."""

    engine_latency_s: float | None = None
    """Arrival to last token by the engine's own clock, seconds; None where it tells none."""


@dataclass(frozen=True, kw_only=True)
class TokenChunk:
    """What arrived at once while streaming."""

    token_ids: tuple[int, ...]
    text: str
    time_s: float
    """Seconds since the request was sent."""


@dataclass(frozen=True, kw_only=True)
class LogLikelihoodRequest:
    """Score `continuation` after `context`. An empty context scores from the first token that has one before it."""

    context: tuple[int, ...]
    """At least one token: the caller prepends the beginning-of-sequence token to an empty context."""

    continuation: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """The answer to a `LogLikelihoodRequest`."""

    logprob: float
    """Natural log of the probability of the continuation: the sum over its tokens."""

    is_greedy: bool
    """Whether greedy decoding would have produced the continuation."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How to put load on an engine that is a server, without its own methods between the load and its clock."""

    endpoint: Endpoint
    body: Callable[[GenerationRequest], bytes]
    """Writes the body of a streaming request."""

    fresh_prompts: bool
    """Whether the server outlives the run: prompts that it has seen before may be in its prefix cache."""

    occasion: int = 0
    """How often the workload was measured on it before: prompts that it may know are sent with other tokens."""

    encode: Callable[[str], Sequence[int]] | None = None
    """Tokenizes a text of the model, without special tokens; None where no tokenizer is at hand."""

    hosts: LoadHosts | None = None
    """Other machines that may send the load; None where there are none."""

    chat: Callable[[], Serving] | None = None
    """Returns how to reach the same server's chat endpoint; None where it has none."""


@dataclass
class Watched:
    """What a machine did while an engine was measured on it."""

    figures: Mapping[str, float] = field(default_factory=dict)
    """Figure (`cpu.others`, `gpu0.sm_clock`) to value, once the watch is over. What could not be read is absent."""


class Engine(ABC):
    """A model loaded and ready to generate. A context manager; `close` is idempotent."""

    can_relaunch: ClassVar[bool] = False
    """Whether `relaunch` works. Without it, a performance gate has one session only, and may stay undecided."""

    spec: EngineSpec
    info: EngineInfo

    @abstractmethod
    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        """Tokenize each text."""

    @abstractmethod
    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Turn token ids back into text."""

    @property
    @abstractmethod
    def prefix_token_id(self) -> int:
        """The token that stands before an empty context: bos, else eos."""

    @property
    @abstractmethod
    def eos_token_id(self) -> int:
        """The end-of-sequence token."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids the model knows."""

    @property
    @abstractmethod
    def special_token_ids(self) -> frozenset[int]:
        """Ids that a synthetic prompt must not contain."""

    @abstractmethod
    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        """Complete every request, `concurrency` at a time, answers in the order of the requests.

        Raises `EngineError` when a prompt does not fit, and when the engine dies or times out.
        """

    @abstractmethod
    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        """Complete one request, yielding tokens as they come."""

    @abstractmethod
    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        """Score every request, answers in the order of the requests; the engine batches and shares contexts."""

    @abstractmethod
    def peak_memory_bytes(self) -> int:
        """Largest memory held since `forget_peak_memory`, else since the launch: device memory, or on a CPU resident set.

        0 where unknown.
        """

    def forget_peak_memory(self) -> None:
        """Begin a new peak: what other tests asked of the same engine is no figure of this one.

        By default nothing is forgotten, and the peak is that since the launch.
        """
        return

    @property
    def serving(self) -> Serving | None:
        """How the load generator reaches it; None for an engine that is measured through `generate`.

        Raises `EngineError` where the server has ended.
        """
        return None

    @property
    def watched_hardware(self) -> Hardware:
        """The devices of this machine that are watched while it is measured."""
        return self.info.hardware

    @property
    def devices(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that it was given; empty where it was given none, and takes what CUDA shows it."""
        return ()

    @property
    def machine(self) -> Mapping[str, str] | None:
        """What is recorded of the machine it runs on (driver, power cap); None where it runs on this one."""
        return None

    @property
    def where(self) -> str:
        """The machine that it and its references are on, in words, another one once that is lost; "" for this one."""
        return ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What happened to it that a report must say, a sentence each."""
        return ()

    _taken = 0

    def take_notes(self) -> tuple[str, ...]:
        """Return the `notes` that were not taken before: what one result has said, no later one says."""
        found = self.notes
        fresh, self._taken = found[self._taken :], len(found)
        return fresh

    def watch(self) -> AbstractContextManager[Watched] | None:
        """Watch the machine it runs on for a time; None where that is this one, which the caller watches."""
        return None

    def evaluators(self, replicas: int) -> AbstractContextManager[Engine]:
        """Hold what answers a task: on a cluster up to `replicas` engines behind one, else this engine alone."""
        return nullcontext(self)

    def clock_s(self) -> float:
        """Read the clock that rounds are timed by, seconds: only differences mean anything, and none is negative."""
        return time.perf_counter()

    def relaunch(self) -> None:
        """End the engine's process, if it has not ended, and start the same engine in a new one: the next session.

        Raises `EngineError` when it does not start, and `InvalidRun` when what comes back is another engine; either
        leaves the engine closed.
        """
        raise EngineError(
            f"{type(self).__name__} cannot be launched again. Implement relaunch(), which starts the same engine in a "
            "new process, and set can_relaunch = True."
        )

    @abstractmethod
    def close(self) -> None:
        """Free the model and end every process of the engine."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
