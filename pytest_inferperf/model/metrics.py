"""The metric table: name, unit, direction and formula of everything a gate can judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_inferperf.errors import MarkError, choices

__all__ = ["METRICS", "STATISTICS", "Metric", "MetricRef", "parse_metric"]

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
"""Summaries of a per-request or per-token sample. Percentiles interpolate linearly between order statistics."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row: what is measured, in which unit, and which direction is better."""

    name: str
    unit: str
    higher_is_better: bool
    formula: str
    sample: Literal["round", "request", "token"] = "round"
    """`round`: one figure per round. `request` and `token`: a sample, summarised by a statistic."""

    source: str = "pytest-inferperf"
    """Whose definition it is, or the tool that uses the same one."""

    @property
    def has_statistics(self) -> bool:
        """Whether the name takes `.mean .p50 .p90 .p95 .p99`."""
        return self.sample != "round"


@dataclass(frozen=True, kw_only=True)
class MetricRef:
    """A metric as a gate names it: `output_throughput`, `ttft_ms.p99`."""

    metric: Metric
    statistic: str | None

    @property
    def name(self) -> str:
        """The full name, statistic included."""
        return self.metric.name if self.statistic is None else f"{self.metric.name}.{self.statistic}"


_ROWS = (
    Metric(
        name="output_throughput",
        unit="tok/s",
        higher_is_better=True,
        formula="output tokens / wall time of the round",
        source="trtllm-bench system_output_throughput_tok_s",
    ),
    Metric(
        name="output_throughput_per_gpu",
        unit="tok/s/GPU",
        higher_is_better=True,
        formula="output_throughput / devices of the engine (a CPU engine counts as one)",
        source="trtllm-bench output_throughput_per_gpu_tok_s",
    ),
    Metric(
        name="output_throughput_per_user",
        unit="tok/s/user",
        higher_is_better=True,
        formula="mean over requests of 1000 / tpot_ms; prefill excluded",
        source="AIPerf output_token_throughput_per_user",
    ),
    Metric(
        name="total_throughput",
        unit="tok/s",
        higher_is_better=True,
        formula="(input + output tokens) / wall time of the round",
        source="trtllm-bench system_total_throughput_tok_s",
    ),
    Metric(
        name="request_throughput",
        unit="req/s",
        higher_is_better=True,
        formula="finished requests / wall time of the round",
        source="trtllm-bench request_throughput_req_s",
    ),
    Metric(
        name="goodput",
        unit="req/s",
        higher_is_better=True,
        formula="request_throughput x share of requests that met every SLO",
        source="AIPerf goodput; vLLM and SGLang bench --goodput",
    ),
    Metric(
        name="ttft_ms",
        unit="ms",
        higher_is_better=False,
        formula="first token - send, per request; under open loop from the planned send",
        sample="request",
        source="AIPerf time_to_first_token",
    ),
    Metric(
        name="tpot_ms",
        unit="ms",
        higher_is_better=False,
        formula="(latency - TTFT) / (OSL - 1), per request of at least 2 output tokens; for a first chunk of k tokens OSL - k",
        sample="request",
        source="trtllm-bench TPOT; AIPerf inter_token_latency",
    ),
    Metric(
        name="itl_ms",
        unit="ms",
        higher_is_better=False,
        formula="gaps between successive tokens, pooled over requests; a chunk of k tokens counts as k gaps of its gap / k",
        sample="token",
        source="vLLM and SGLang bench ITL, over tokens instead of chunks",
    ),
    Metric(
        name="chunk_gap_ms",
        unit="ms",
        higher_is_better=False,
        formula="gaps between successive chunks of a stream, whatever they hold, pooled over requests",
        sample="token",
        source="vLLM and SGLang bench ITL; AIPerf inter_chunk_latency",
    ),
    Metric(
        name="e2e_latency_ms",
        unit="ms",
        higher_is_better=False,
        formula="last token - send, per request; under open loop from the planned send",
        sample="request",
        source="trtllm-bench request latency",
    ),
    Metric(
        name="acceptance_length",
        unit="tok/step",
        higher_is_better=True,
        formula="output tokens / decoding steps, over all requests of the round; 1 without speculative decoding",
        source="trtllm-bench acceptance_length",
    ),
    Metric(
        name="peak_memory_gib",
        unit="GiB",
        higher_is_better=False,
        formula="largest memory held by the engine process: device memory on a GPU, resident set on a CPU",
    ),
)

METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}


def parse_metric(name: str) -> MetricRef:
    """Turn `ttft_ms.p99` into a reference to the table.

    Raises `MarkError` for a metric, a statistic, or a combination that does not exist.
    """
    base, _, statistic = name.partition(".")
    metric = METRICS.get(base)
    if metric is None:
        raise MarkError(f"unknown metric {name!r}.\n{choices(base, METRICS, what='Metrics')}")
    if metric.has_statistics:
        if statistic not in STATISTICS:
            given = f"unknown statistic {statistic!r}" if statistic else "a statistic is missing"
            names = ", ".join(f"{base}.{item}" for item in STATISTICS)
            raise MarkError(f"{given} in {name!r}. Write one of: {names}.")
        return MetricRef(metric=metric, statistic=statistic)
    if statistic:
        raise MarkError(f"{base!r} is one figure per round and takes no statistic; write {base!r}, not {name!r}.")
    return MetricRef(metric=metric, statistic=None)
