"""From what TensorRT-LLM returns to our answers. What is missing, cut short or of another request is an error, never a guess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pytest_inferperf.engines.interface import Generation, GenerationRequest, LogLikelihood, LogLikelihoodRequest
from pytest_inferperf.engines.stopping import cut
from pytest_inferperf.engines.tensorrt_llm.versions import FULL_PROMPT_LOGPROBS
from pytest_inferperf.errors import EngineError

__all__ = ["Arrivals", "generation_of", "loglikelihood_of"]


@dataclass(kw_only=True)
class Arrivals:
    """When the tokens of one request came. A step may bring several: speculation, `stream_interval`."""

    times: list[float] = field(default_factory=list)
    """Seconds from the send to each token's step."""

    def note(self, token_ids: Sequence[int], moment_s: float) -> tuple[int, ...]:
        """Note a step, by all tokens so far; return those that are new."""
        new = tuple(token_ids[len(self.times) :])
        self.times.extend([moment_s] * len(new))
        return new


def generation_of(
    request: GenerationRequest, output: Any, arrivals: Arrivals, *, text: str, stopped: bool
) -> Generation:
    """Turn a finished `RequestOutput` into a `Generation`.

    `text` is the decoded output, `stopped` whether we ended it at a stop string. Raises `EngineError` for a request that
    failed, was cut short, or whose prompt was not read as it was sent.
    """
    check_prompt(request.prompt, output)
    answer = _only(output)
    # What came after the last step we saw was never streamed; what was taken back (a stop token) has no time.
    tokens = tuple(answer.token_ids)
    if len(tokens) > len(arrivals.times):
        raise EngineError(f"TensorRT-LLM streamed {len(arrivals.times)} of {len(tokens)} tokens")
    if not tokens and answer.finish_reason != "stop":
        raise EngineError(f"TensorRT-LLM ended a request without a token (finish_reason {answer.finish_reason!r})")
    shown, found = cut(text, request.stop)
    steps, ttft_s, latency_s = _own_figures(output, answer, len(tokens))
    return Generation(
        token_ids=tokens,
        text=shown,
        finish_reason="stop" if found else _finish(request, answer, len(tokens), stopped=stopped),
        prompt_tokens=len(output.prompt_token_ids),
        token_times_s=tuple(arrivals.times[: len(tokens)]),
        decoding_steps=steps,
        engine_ttft_s=ttft_s,
        engine_latency_s=latency_s,
    )


def check_prompt(prompt: Sequence[int], output: Any) -> None:
    """Raise `EngineError` where a request failed, or where another prompt was read than the one that was sent."""
    if getattr(output, "error", None):
        raise EngineError(f"TensorRT-LLM failed on a request of {len(prompt)} prompt tokens: {output.error}")
    read = tuple(output.prompt_token_ids or ())
    if read != tuple(prompt):
        raise EngineError(
            f"TensorRT-LLM read {len(read)} prompt tokens where {len(prompt)} were sent: the prompt was cut or changed"
        )


def _only(output: Any) -> Any:
    if len(output.outputs) != 1:
        raise EngineError(f"TensorRT-LLM gave {len(output.outputs)} outputs to one request")
    return output.outputs[0]


def _finish(request: GenerationRequest, answer: Any, count: int, *, stopped: bool) -> Literal["stop", "length"]:
    reason = answer.finish_reason
    if stopped:
        return "stop"
    if reason == "length" and count < request.max_tokens:
        raise EngineError(
            f"TensorRT-LLM ended a request for its length after {count} of {request.max_tokens} tokens; raise max_seq_len"
        )
    if reason not in ("stop", "length"):
        raise EngineError(f"TensorRT-LLM ended a request after {count} of {request.max_tokens} tokens: {reason!r}")
    return "stop" if reason == "stop" else "length"


def _own_figures(output: Any, answer: Any, tokens: int) -> tuple[float | None, float | None, float | None]:
    """Return decoding steps, TTFT and latency as the engine itself counts them; None for what it does not tell."""
    metrics = getattr(answer, "request_perf_metrics", None)
    steps = None
    average = getattr(output, "avg_decoded_tokens_per_iter", None)
    speculation = getattr(metrics, "speculative_decoding", None)
    if average:
        steps = tokens / average
    elif speculation is not None and speculation.total_draft_tokens:
        # A step yields one token of the target's own, and the proposals it accepts.
        steps = float(tokens - speculation.total_accepted_draft_tokens)
    timing = getattr(metrics, "timing_metrics", None)
    if timing is None:
        return steps, None, None
    ttft, latency = (
        (moment - timing.arrival_time).total_seconds() for moment in (timing.first_token_time, timing.last_token_time)
    )
    # A moment that was never set is zero, before any arrival.
    return steps, ttft if ttft > 0 else None, latency if latency > 0 else None


def loglikelihood_of(request: LogLikelihoodRequest, output: Any, *, version: str) -> LogLikelihood:
    """Sum the log-probabilities of the continuation.

    Entry i of `prompt_logprobs` is about token i + 1, so the continuation of a context of c tokens is scored by the
    entries c - 1 up to the last but one of the prompt. Raises `EngineError` where one of them, or the token in it, is
    missing: a term left out would look like a better answer.
    """
    tokens = (*request.context, *request.continuation)
    check_prompt(tokens, output)
    entries = _only(output).prompt_logprobs
    if entries is None or len(entries) < len(tokens) - 1:
        raise EngineError(
            f"TensorRT-LLM gave {len(entries or ())} log-probabilities for {len(tokens)} prompt tokens, where "
            f"{len(tokens) - 1} are needed; are KV cache blocks reused (block_reuse)?"
        )
    total, greedy = 0.0, True
    for index in range(len(request.context) - 1, len(tokens) - 1):
        found = entries[index].get(tokens[index + 1])
        if found is None:
            raise EngineError(
                f"TensorRT-LLM {version} gave no log-probability for prompt token {index + 1}. Releases before "
                f"{FULL_PROMPT_LOGPROBS} keep only the most likely one: take a later release to score tasks."
            )
        if found.rank is None:
            raise EngineError(f"TensorRT-LLM {version} gave no rank for prompt token {index + 1}")
        total += float(found.logprob)
        greedy = greedy and found.rank == 1
    return LogLikelihood(logprob=total, is_greedy=greedy)
