"""The TensorRT-LLM engine: a ModelOpt checkpoint in `tensorrt_llm.LLM`, with its PyTorch backend."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pytest_inferperf.engines.checkpoint.cache import checkpoint_hash
from pytest_inferperf.engines.checkpoint.shape import read_shape
from pytest_inferperf.engines.hardware import find_gpus, gpu_words
from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    Progress,
    TokenChunk,
)
from pytest_inferperf.engines.mpi_launch import find_launch, launch_problem, nodes_of, outer_environment
from pytest_inferperf.engines.needs import on_ray
from pytest_inferperf.engines.stopping import cut, held_back
from pytest_inferperf.engines.tensorrt_llm.answers import Arrivals, generation_of, loglikelihood_of
from pytest_inferperf.engines.tensorrt_llm.options import arguments_of
from pytest_inferperf.engines.tensorrt_llm.ray_nodes import RayNodes
from pytest_inferperf.engines.tensorrt_llm.readback import resolved_of
from pytest_inferperf.engines.tensorrt_llm.versions import Package
from pytest_inferperf.engines.tokenizing import Tokenizer
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import EngineInfo, Hardware

__all__ = ["TensorrtLlmEngine"]

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class TensorrtLlmEngine(Engine):
    """Runs the checkpoint on the GPUs of this machine. What was loaded is read back: a difference makes the run INVALID."""

    def __init__(self, spec: EngineSpec, *, checkpoint: str, progress: Progress | None = None) -> None:
        started = time.perf_counter()
        report = progress or (lambda _line: None)
        arguments = arguments_of(spec)
        folder = Path(checkpoint)
        shape = read_shape(folder)
        hardware = _hardware(spec)
        self.spec = spec
        self._tokenizer = Tokenizer(folder)
        self._vocab_size = shape.vocab_size or len(self._tokenizer)
        self._llm: Any = None
        report(f"load {spec.served_model_name} {spec.precision} into TensorRT-LLM")
        self._package = Package()
        try:
            self._llm = self._package.load(str(folder), arguments)
            resolved = resolved_of(self._llm.args, spec)
            self._max_num_tokens = resolved.max_num_tokens
            self._chunked = resolved.chunked_prefill
            self.info = EngineInfo(
                backend="tensorrt_llm",
                hardware=hardware(),
                quant_algo=resolved.quant_algo,
                kv_cache_quant_algo=resolved.kv_cache_quant_algo,
                compute_dtype=resolved.dtype,
                simulated=False,
                max_model_len=resolved.max_seq_len or shape.max_position or 1 << 30,
                checkpoint=str(folder),
                checkpoint_hash=checkpoint_hash(folder),
                options=resolved.options,
                versions={"tensorrt_llm": self._package.version},
                load_s=time.perf_counter() - started,
            )
        except BaseException:
            self.close()
            raise

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        """See `Engine.encode`."""
        return self._tokenizer.encode(texts, add_special_tokens=add_special_tokens)

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """See `Engine.decode`."""
        return [self._tokenizer.decode(item, skip_special_tokens=skip_special_tokens) for item in sequences]

    @property
    def prefix_token_id(self) -> int:
        """See `Engine.prefix_token_id`."""
        return self._tokenizer.prefix_token_id

    @property
    def eos_token_id(self) -> int:
        """See `Engine.eos_token_id`."""
        return self._tokenizer.eos_token_id

    @property
    def vocab_size(self) -> int:
        """See `Engine.vocab_size`."""
        return self._vocab_size

    @property
    def special_token_ids(self) -> frozenset[int]:
        """See `Engine.special_token_ids`."""
        return self._tokenizer.special_token_ids(self._vocab_size)

    def peak_memory_bytes(self) -> int:
        """See `Engine.peak_memory_bytes`: unknown. The KV cache takes its share of the memory whatever is asked."""
        return 0

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        """See `Engine.generate`: `concurrency` requests in flight, the next sent when one ends."""
        for request in requests:
            self._check_fits(request)
        return self._run(self._complete, requests, concurrency)

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        """See `Engine.stream`."""
        self._check_fits(request)
        return self._stream(request)

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        """See `Engine.loglikelihood`."""
        if dict(self.spec.engine_options).get("block_reuse"):
            raise EngineError(
                "block_reuse=True: TensorRT-LLM gives no log-probabilities for prompt tokens whose KV cache it reuses. "
                "Leave block_reuse out to score tasks."
            )
        for request in requests:
            if not request.context or not request.continuation:
                raise EngineError("a log-likelihood request needs a context and a continuation of at least one token")
            self._check_prompt((*request.context, *request.continuation), 1)
        return self._run(self._score, requests, concurrency)

    def close(self) -> None:
        """See `Engine.close`."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()

    def _run(
        self, answer: Callable[[_Request], Awaitable[_Answer]], requests: Sequence[_Request], concurrency: int
    ) -> list[_Answer]:
        if concurrency < 1:
            raise EngineError(f"concurrency={concurrency}: at least 1")
        return asyncio.run(_in_flight(answer, requests, concurrency))

    @property
    def _loaded(self) -> Any:
        if self._llm is None:
            raise EngineError("the engine is closed")
        return self._llm

    async def _complete(self, request: GenerationRequest) -> Generation:
        arrivals, stopped = Arrivals(), False
        sent = time.perf_counter()
        output = self._loaded.generate_async(
            list(request.prompt), sampling_params=self._sampling(request), streaming=True
        )
        with _aborted_if_left(output):
            async for step in output:
                new = arrivals.note(_tokens(step), time.perf_counter() - sent)
                if self._stops(request, _tokens(step), len(new)):
                    stopped = True
                    break
        text = self._tokenizer.decode(_tokens(output))
        return generation_of(request, output, arrivals, text=text, stopped=stopped)

    def _stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        arrivals, shown = Arrivals(), 0
        sent = time.perf_counter()
        output = self._loaded.generate_async(
            list(request.prompt), sampling_params=self._sampling(request), streaming=True
        )
        with _aborted_if_left(output):
            for step in output:
                moment = time.perf_counter() - sent
                new = arrivals.note(_tokens(step), moment)
                text, stopped = cut(self._tokenizer.decode(_tokens(step)), request.stop)
                done = stopped or bool(step.finished)
                if not done:
                    # Half a character, or what may be the beginning of a stop string, waits for the rest.
                    ready = shown if text.endswith("\ufffd") else len(text) - held_back(text, request.stop)
                    text = text[: max(shown, ready)]
                yield TokenChunk(token_ids=new, text=text[shown:], time_s=moment)
                shown = len(text)
                if stopped:
                    break
        generation_of(request, output, arrivals, text="", stopped=stopped)

    async def _score(self, request: LogLikelihoodRequest) -> LogLikelihood:
        tokens = [*request.context, *request.continuation]
        sampling = self._package.sampling(
            max_tokens=1, temperature=0.0, top_k=1, seed=0, ignore_eos=True, detokenize=False, prompt_logprobs=1
        )
        output = self._loaded.generate_async(tokens, sampling_params=sampling, streaming=False)
        with _aborted_if_left(output):
            await output
        return loglikelihood_of(request, output, version=self._package.version)

    def _sampling(self, request: GenerationRequest) -> Any:
        # Greedy is top_k=1 in every release; that a temperature of 0 means it too, only later ones say.
        choice: Mapping[str, Any] = {"top_p": request.top_p} if request.temperature > 0 else {"top_k": 1}
        return self._package.sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
            ignore_eos=request.ignore_eos,
            # Texts are decoded here, as every engine's are.
            detokenize=False,
            **choice,
        )

    def _stops(self, request: GenerationRequest, tokens: Sequence[int], new: int) -> bool:
        """Whether the newest tokens complete a stop string.

        TensorRT-LLM compares tokens, and one text has many tokenizations, so the text itself is searched: its end first.
        """
        if not any(request.stop) or not new:
            return False
        tail = new + 4 * max(len(item) for item in request.stop) + 4
        if not cut(self._tokenizer.decode(tokens[-tail:]), request.stop)[1]:
            return False
        return cut(self._tokenizer.decode(tokens), request.stop)[1]

    def _check_fits(self, request: GenerationRequest) -> None:
        if not request.prompt:
            raise EngineError("a prompt needs at least one token")
        if request.max_tokens < 1:
            raise EngineError(f"max_tokens={request.max_tokens}: at least 1")
        self._check_prompt(request.prompt, request.max_tokens)

    def _check_prompt(self, prompt: Sequence[int], max_tokens: int) -> None:
        total = len(prompt) + max_tokens
        if total > self.info.max_model_len:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens and max_tokens={max_tokens} make {total}, more than "
                f"max_model_len={self.info.max_model_len}; shorten the prompt or raise max_seq_len"
            )
        if not self._chunked and self._max_num_tokens and len(prompt) > self._max_num_tokens:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens is longer than max_num_tokens={self._max_num_tokens}; raise it, or say "
                "chunked_prefill=True"
            )
        if not 0 <= min(prompt) <= max(prompt) < self._vocab_size:
            raise EngineError(f"token ids must lie between 0 and {self._vocab_size - 1}, got {max(prompt, key=abs)}")


async def _in_flight(
    answer: Callable[[_Request], Awaitable[_Answer]], requests: Sequence[_Request], concurrency: int
) -> list[_Answer]:
    """Answer every request, `concurrency` at a time. The first failure ends all."""
    waiting = iter(enumerate(requests))
    answers: dict[int, _Answer] = {}

    async def work() -> None:
        for index, request in waiting:
            answers[index] = await answer(request)

    workers = [asyncio.ensure_future(work()) for _ in range(min(concurrency, len(requests)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [answers[index] for index in range(len(requests))]


@contextlib.contextmanager
def _aborted_if_left(output: Any) -> Iterator[None]:
    """Abort a request that is not finished when its reader leaves: it would hold its place in the batch."""
    try:
        yield
    finally:
        if not output.finished:
            output.abort()


def _tokens(output: Any) -> Sequence[int]:
    tokens: Sequence[int] = output.outputs[0].token_ids
    return tokens


def _hardware(spec: EngineSpec) -> Callable[[], Hardware]:
    """Return what tells the GPUs of the engine once it is loaded.

    Raises `EngineError` where it cannot be loaded as pytest was started, or there are too few, before anything is.
    """
    launch, gpus = find_launch(), find_gpus()
    problem = launch_problem(spec, launch, outer=outer_environment())
    if problem:
        raise EngineError(problem)
    if on_ray(spec):
        return RayNodes(spec, gpus).hardware
    nodes = nodes_of(spec, launch)
    here = -(-spec.world_size // nodes)
    if len(gpus) < here:
        each = f" on each of {nodes} nodes" if nodes > 1 else ""
        raise EngineError(
            f"tp={spec.tp} x pp={spec.pp} need {here} GPU{'s' if here > 1 else ''}{each}; found "
            f"{gpu_words(gpus)} (asked of NVML through nvidia-ml-py)"
        )
    found = Hardware(name=gpus[0].name, count=spec.world_size, kind="gpu", nodes=nodes)
    return lambda: found
