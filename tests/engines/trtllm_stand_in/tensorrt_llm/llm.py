"""`LLM` and `RequestOutput`: as strict as the real ones, with a toy model behind them."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Generator, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from . import toy
from .behaviour import fault, gpus, is_old
from .llmapi import llm_args
from .on_ray import place_on_ray
from .proxy import RanksClient, launched, spawning_fails
from .sampling_params import SamplingParams
from .table import LLM as NAMED


class RequestError(RuntimeError):
    pass


class LLM:
    made: ClassVar[list[LLM]] = []

    def __init__(self, model: str, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in llm_args.TorchLlmArgs.model_fields:
                raise ValueError(f"LLM.__init__() got invalid argument: {name}")
        if "TRTLLM_NO_USAGE_STATS" not in os.environ:
            raise AssertionError("usage would be reported")
        assert "model" in NAMED
        self.given = dict(kwargs)
        self.closed = False
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise ValueError(f"no config.json in {model}")
        args: Any = llm_args.TorchLlmArgs(model=model, **kwargs)
        args.cuda_graph_config = kwargs.get("cuda_graph_config", llm_args.CudaGraphConfig())  # type: ignore[attr-defined]
        world = args.tensor_parallel_size * args.pipeline_parallel_size
        self._ranks = RanksClient(world) if launched() and world > 1 else None
        if world > 1 and self._ranks is None and spawning_fails():
            raise RuntimeError("MPI_ERR_SPAWN: could not spawn processes")
        if args.orchestrator_type == "ray":
            place_on_ray(args.tensor_parallel_size, world)
        elif world > gpus() and self._ranks is None:
            raise RuntimeError(f"Only {gpus()} GPUs are available, but {world} are required.")
        if fault() == "oom":
            raise RuntimeError("Executor worker returned error: CUDA out of memory. Tried to allocate 20.00 GiB.")
        args.quant_config = _quant_config(folder, args)
        args.dtype = "bfloat16" if args.dtype == "auto" else args.dtype
        if fault() == "wrong_tp":
            args.tensor_parallel_size = 1
        if fault() == "wrong_option":
            args.max_batch_size = 1
        policy = getattr(args.scheduler_config, "capacity_scheduler_policy", None)
        if policy is not None:
            args.scheduler_config.capacity_scheduler_policy = llm_args.CapacitySchedulerPolicy(policy)
        self.args = args
        self.requests: list[SamplingParams] = []
        self.aborted = 0
        LLM.made.append(self)

    def generate_async(
        self, inputs: list[int], sampling_params: SamplingParams | None = None, *, streaming: bool = False
    ) -> RequestOutput:
        if self.closed:
            raise RuntimeError("LLM is shutting down")
        assert isinstance(inputs, list)
        sampling = sampling_params or SamplingParams()
        sampling.setup()
        self.requests.append(sampling)
        limit = self.args.max_num_tokens
        if limit and len(inputs) > limit and not self.args.enable_chunked_prefill:
            raise RequestError(f"prompt of {len(inputs)} tokens exceeds max_num_tokens {limit}")
        if fault() == "raises":
            raise RequestError("the request cannot be scheduled")
        return RequestOutput(self, inputs, sampling, streaming=streaming)

    def shutdown(self) -> None:
        self.closed = True
        if self._ranks is not None:
            self._ranks.shutdown()
        marker = os.environ.get("TRTLLM_STAND_IN_MARKER")
        if marker:
            Path(marker).write_text("shut down")


def _block_scales(folder: Path) -> dict[str, str]:
    """The one format that both releases know without a file of ModelOpt's."""
    found = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
    if not found:
        return {}
    if found.get("quant_method") != "fp8" or found.get("weight_block_size") != [128, 128]:
        raise NotImplementedError(f"Unsupported quantization_config: {found}.")
    return {"quant_algo": "FP8_BLOCK_SCALES"}


def _quant_config(folder: Path, args: Any) -> SimpleNamespace:
    path = folder / "hf_quant_config.json"
    section = json.loads(path.read_text())["quantization"] if path.is_file() else _block_scales(folder)
    algo, kv_cache = section.get("quant_algo"), section.get("kv_cache_quant_algo")
    override = getattr(args.kv_cache_config, "dtype", "auto")
    if override in ("fp8", "nvfp4"):
        kv_cache = override.upper()
    if fault() == "misquantized":
        algo = "FP8" if algo == "NVFP4" else "NVFP4"
    if fault() == "wrong_kv_cache":
        kv_cache = None
    named = llm_args.QuantAlgo
    return SimpleNamespace(
        quant_algo=named(algo) if algo else None, kv_cache_quant_algo=named(kv_cache) if kv_cache else None
    )


class RequestOutput:
    """A future over the steps of one request. Yields itself after each."""

    def __init__(self, llm: LLM, prompt: list[int], sampling: SamplingParams, *, streaming: bool) -> None:
        self._llm = llm
        self._sampling = sampling
        self._streaming = streaming
        self._left = False
        try:
            self._loop: Any = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self.prompt_token_ids = prompt[:-1] if fault() == "truncating" else list(prompt)
        self.error = "CUDA error: an illegal memory access was encountered" if fault() == "failing" else None
        self.finished = False
        self.decoding_iter = 0
        self.avg_decoded_tokens_per_iter: float | None = None
        self.outputs = [
            SimpleNamespace(
                index=0, text="", token_ids=[], finish_reason=None, prompt_logprobs=None, request_perf_metrics=None
            )
        ]
        if fault() == "two_outputs":
            self.outputs.append(self.outputs[0])
        self._steps = self._run()

    def _run(self) -> Iterator[RequestOutput]:
        answer, sampling = self.outputs[0], self._sampling
        if fault() == "dies":
            os._exit(9)
        if fault() == "hangs":
            time.sleep(600)
        if fault() == "late":
            time.sleep(0.05)
        speculation = self._llm.args.speculative_config
        length = speculation.max_draft_len if speculation is not None else 0
        most = sampling.max_tokens // 2 if fault() == "short" else sampling.max_tokens  # type: ignore[attr-defined]
        step = accepted = 0
        text = list(self.prompt_token_ids)
        while len(answer.token_ids) < most and fault() not in ("silent", "failing"):
            take = min(1 + (step % (length + 1)), most - len(answer.token_ids))
            for _ in range(take):
                text.append(toy.greedy(text))
                answer.token_ids.append(text[-1])
                if text[-1] == sampling.end_id and not sampling.ignore_eos:  # type: ignore[attr-defined]
                    answer.finish_reason = "stop"
                    break
            step, accepted = step + 1, accepted + take - 1
            if answer.finish_reason:
                break
            if step % self._llm.args.stream_interval == 0 and len(answer.token_ids) < most:
                yield self
        answer.finish_reason = answer.finish_reason or {"silent": None, "cancelled": "cancelled"}.get(fault(), "length")
        if fault() == "unstreamed":
            yield self
            answer.token_ids.append(1)
        self.finished = True
        self._report(step, accepted, length)
        if sampling.prompt_logprobs:  # type: ignore[attr-defined]
            answer.prompt_logprobs = self._prompt_logprobs()
        if fault() != "unstreamed":
            yield self

    def _report(self, steps: int, accepted: int, length: int) -> None:
        if fault() == "no_figures" or not self._llm.args.return_perf_metrics:
            return
        self.decoding_iter = steps
        if steps and not is_old():
            self.avg_decoded_tokens_per_iter = len(self.outputs[0].token_ids) / steps
        self.outputs[0].request_perf_metrics = SimpleNamespace(
            timing_metrics=SimpleNamespace(
                arrival_time=timedelta(seconds=100),
                first_scheduled_time=timedelta(seconds=100.125),
                first_token_time=timedelta(seconds=100.25),
                last_token_time=timedelta(seconds=102),
            ),
            speculative_decoding=SimpleNamespace(
                # Later releases tell the mean per step instead.
                total_draft_tokens=steps * length * is_old(),
                total_accepted_draft_tokens=accepted * is_old(),
            ),
        )

    def _prompt_logprobs(self) -> list[dict[int, SimpleNamespace]] | None:
        if fault() == "no_logprobs":
            return None
        prompt = self.prompt_token_ids
        found = []
        for last, token in zip(prompt, [*prompt[1:], -1], strict=True):
            # The most likely token, and in later releases the prompt's own.
            kept = {toy.greedy([last])} | ({token} if token >= 0 and not is_old() else set())
            rank = None if fault() == "no_rank" else toy.rank
            found.append(
                {
                    item: SimpleNamespace(logprob=toy.logprob(last, item), rank=rank and rank(last, item))
                    for item in kept
                }
            )
        if fault() == "absent_token":
            found[-2] = {}
        return found[:-2] if fault() == "short_logprobs" else found

    def result(self, timeout: float | None = None) -> RequestOutput:
        for _ in self._steps:
            pass
        return self

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        yield from asyncio.sleep(0).__await__()
        return self.result()

    def __iter__(self) -> Iterator[RequestOutput]:
        assert self._streaming
        return self._steps

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        assert self._streaming
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError("the request was made outside of this event loop")
        return self

    async def __anext__(self) -> RequestOutput:
        await asyncio.sleep(0)
        for step in self._steps:
            return step
        raise StopAsyncIteration

    def abort(self) -> None:
        self._left = True
        self._llm.aborted += 1
        self.outputs[0].finish_reason = "cancelled"
        self._steps.close()  # type: ignore[attr-defined]

    def aborted(self) -> bool:
        return self._left
