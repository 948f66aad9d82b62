"""The metric table: name, unit, direction and formula of everything a gate can judge."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_inferperf.errors import MarkError, choices
from pytest_inferperf.model.workload import spell

__all__ = [
    "COMPARED_TOKENS",
    "METRICS",
    "SLO_METRICS",
    "STATISTICS",
    "Metric",
    "MetricRef",
    "Slo",
    "base_name",
    "goodput",
    "parse_metric",
    "per_megawatt",
]

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
"""Summaries of a per-request or per-token sample. Percentiles interpolate linearly between order statistics."""

COMPARED_TOKENS = 128
"""Answers are compared up to here. Asking for 1024 tokens 16 times, one after the other, would outlast the rounds."""

SLO_METRICS = ("ttft_ms", "tpot_ms", "e2e_latency_ms")
"""What an SLO can limit: the latencies of a request."""

Slo = tuple[tuple[str, float], ...]
"""Limits that a request must meet, all of them: names of `SLO_METRICS`, in that order, with milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row: what is measured, in which unit, and which direction is better."""

    name: str
    unit: str
    higher_is_better: bool
    formula: str
    sample: Literal["round", "session", "request", "token"] = "round"
    """`round` and `session`: one figure each. `request` and `token`: a sample, summarised by a statistic."""

    source: str = "pytest-inferperf"
    """Whose definition it is, or the tool that uses the same one."""

    needs: str = ""
    """What must be there for it to be measured, beside a workload that has a sample of it; "" for nothing."""

    may_be_zero: bool = False
    """Whether 0 is a figure, and the worst one, where any other metric was measured wrong if it is 0."""

    @property
    def has_statistics(self) -> bool:
        """Whether the name takes `.mean .p50 .p90 .p95 .p99`."""
        return self.sample in ("request", "token")


@dataclass(frozen=True, kw_only=True)
class MetricRef:
    """A metric as a gate names it: `output_throughput`, `ttft_ms.p99`."""

    metric: Metric
    statistic: str | None
    slo: Slo = ()
    """What requests must meet to count; `goodput` alone has it. Under another SLO it is another metric."""

    @property
    def name(self) -> str:
        """The full name: with its statistic, or as `goodput[ttft_ms<=500,tpot_ms<=50]`."""
        if self.slo:
            return f"{self.metric.name}[{','.join(f'{name}<={spell(limit)}' for name, limit in self.slo)}]"
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
        may_be_zero=True,
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
        name="engine_ttft_ms",
        unit="ms",
        higher_is_better=False,
        formula="first token - arrival, per request, by the engine's own clock, where it tells",
        sample="request",
        source="TensorRT-LLM request_perf_metrics",
    ),
    Metric(
        name="engine_latency_ms",
        unit="ms",
        higher_is_better=False,
        formula="last token - arrival, per request, by the engine's own clock, where it tells",
        sample="request",
        source="TensorRT-LLM request_perf_metrics",
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
    Metric(
        name="energy_per_token_j",
        unit="J/token",
        higher_is_better=False,
        formula="energy counters of the engine's GPUs over the round / output tokens; prefill is in it",
        source="NVML nvmlDeviceGetTotalEnergyConsumption",
        needs="GPUs that all count their energy, and an engine that is not in a server",
    ),
    Metric(
        name="cost_per_million_tokens",
        unit="per 1M tokens",
        higher_is_better=False,
        formula="inferperf_gpu_hour_price x GPUs x hours of the round / million output tokens",
        needs="an engine on GPUs, and their price: inferperf_gpu_hour_price in the ini file",
    ),
    Metric(
        name="output_agreement",
        unit="share",
        higher_is_better=True,
        formula="part of an answer under load before it differs from the one at concurrency 1, mean over 16 answers",
        sample="session",
        source="after MLPerf TEST01",
    ),
)

METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}


def per_megawatt(energy_per_token_j: float) -> float:
    """Return the output tokens per second that a megawatt of GPU power yields: 1 J/token is a million of them."""
    return 1e6 / energy_per_token_j


def base_name(name: str) -> str:
    """Return the name of the metric in a full name: `ttft_ms` of `ttft_ms.p99`."""
    return re.split(r"[.\[]", name, maxsplit=1)[0]


def goodput(limits: Mapping[str, float]) -> MetricRef:
    """Return the goodput under an SLO: `{"ttft_ms": 500}`.

    Raises `MarkError` for no limit, one of something that is not the latency of a request, and one not above 0.
    """
    if not limits:
        raise MarkError(f"goodput needs an SLO: limits, in ms, of {', '.join(SLO_METRICS)}.")
    for name, limit in limits.items():
        if name not in SLO_METRICS:
            raise MarkError(f"unknown SLO {name!r}. {choices(name, SLO_METRICS, what='SLOs')}")
        if not 0 < limit < math.inf:
            raise MarkError(f"the SLO {name}={limit:g} must be a number of ms above 0.")
    slo = tuple((name, float(limits[name])) for name in SLO_METRICS if name in limits)
    return MetricRef(metric=METRICS["goodput"], statistic=None, slo=slo)


def _parse_goodput(name: str) -> MetricRef:
    limits = {}
    for part in re.sub(r"^\w+\[?|\]$", "", name).split(","):
        match = re.fullmatch(r"(\w+)<=([0-9.]+(?:e-?[0-9]+)?)", part.strip())
        if match is None or not name.endswith("]"):
            raise MarkError(
                f"{name!r}: goodput is counted under an SLO, which is part of its name: 'goodput[ttft_ms<=500,tpot_ms<=50]'."
            )
        limits[match[1]] = float(match[2])
    return goodput(limits)


def parse_metric(name: str) -> MetricRef:
    """Turn `ttft_ms.p99` or `goodput[ttft_ms<=500]` into a reference to the table.

    Raises `MarkError` for a metric, a statistic, or a combination that does not exist.
    """
    base, _, statistic = name.partition(".")
    metric = METRICS.get(base_name(name))
    if metric is None:
        raise MarkError(f"unknown metric {name!r}.\n{choices(base, METRICS, what='Metrics')}")
    if metric.name == "goodput":
        return _parse_goodput(name)
    if metric.has_statistics:
        if statistic not in STATISTICS:
            given = f"unknown statistic {statistic!r}" if statistic else "a statistic is missing"
            names = ", ".join(f"{base}.{item}" for item in STATISTICS)
            raise MarkError(f"{given} in {name!r}. Write one of: {names}.")
        return MetricRef(metric=metric, statistic=statistic)
    if statistic:
        raise MarkError(
            f"{base!r} is one figure per {metric.sample} and takes no statistic; write {base!r}, not {name!r}."
        )
    return MetricRef(metric=metric, statistic=None)
