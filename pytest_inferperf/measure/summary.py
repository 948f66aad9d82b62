"""From token times to the metric table: the only place where its formulas are computed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_inferperf.engines.interface import Generation
from pytest_inferperf.model.metrics import METRICS, STATISTICS, Slo, base_name, goodput
from pytest_inferperf.model.results import Round

__all__ = ["summarise_round", "with_costs"]


def summarise_round(
    generations: Sequence[Generation],
    *,
    duration_s: float,
    devices: int,
    peak_memory_bytes: int,
    slos: Sequence[Slo] = (),
) -> Round:
    """Compute every metric of one round; formulas and sources stand in `model.metrics`.

    `duration_s` is the wall time of the round, `devices` the number of GPUs (1 for a CPU). A metric without a
    sample (TPOT and ITL at an OSL of 1) is left out, and so is a goodput under a limit of it. `slos` are what goodput is
    counted under.
    """
    input_tokens = sum(item.prompt_tokens for item in generations)
    output_tokens = sum(len(item.token_ids) for item in generations)
    finished = [item for item in generations if item.token_ids]
    multi = [item for item in finished if len(item.token_ids) > 1]
    tpot_ms = [1000 * (item.token_times_s[-1] - item.token_times_s[0]) / (len(item.token_ids) - 1) for item in multi]
    samples = {
        "ttft_ms": [1000 * item.token_times_s[0] for item in finished],
        "tpot_ms": tpot_ms,
        "itl_ms": [
            1000 * (after - before) for item in multi for before, after in itertools.pairwise(item.token_times_s)
        ],
        "e2e_latency_ms": [1000 * item.token_times_s[-1] for item in finished],
        "engine_ttft_ms": [1000 * item.engine_ttft_s for item in finished if item.engine_ttft_s is not None],
        "engine_latency_ms": [1000 * item.engine_latency_s for item in finished if item.engine_latency_s is not None],
    }
    metrics = {
        "output_throughput": output_tokens / duration_s,
        "output_throughput_per_gpu": output_tokens / duration_s / devices,
        "total_throughput": (input_tokens + output_tokens) / duration_s,
        "request_throughput": len(finished) / duration_s,
    }
    for slo in slos:
        if finished and not multi and "tpot_ms" in dict(slo):
            continue  # What no request has is met by none, and missed by none.
        met = sum(_meets(item, dict(slo)) for item in finished)
        metrics[goodput(dict(slo)).name] = met / duration_s
    counted = [item for item in finished if item.decoding_steps]
    if counted:
        # Over all steps: a mean over requests would be that of the short ones.
        metrics["acceptance_length"] = sum(len(item.token_ids) for item in counted) / sum(
            item.decoding_steps or 0.0 for item in counted
        )
    if peak_memory_bytes:
        metrics["peak_memory_gib"] = peak_memory_bytes / 2**30
    # A burst that arrives at one instant has no rate.
    speeds = [1000 / value for value in tpot_ms if value > 0]
    if speeds:
        metrics["output_throughput_per_user"] = sum(speeds) / len(speeds)
    for name, sample in samples.items():
        if sample:
            metrics |= _statistics(name, sample)
    assert all(base_name(name) in METRICS for name in metrics)
    return Round(
        duration_s=duration_s,
        num_requests=len(generations),
        num_failed_requests=len(generations) - len(finished),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        metrics=metrics,
    )


def with_costs(found: Round, *, energy_j: float | None, price_per_hour: float) -> Round:
    """Add what the round's output tokens cost: joules, and money where the machine has a price.

    `energy_j` is the energy of all GPUs over the round, None where it was not measured; `price_per_hour` that of all
    GPUs, 0 for none. A counter that stood still has measured nothing.
    """
    costs: dict[str, float] = {}
    if energy_j is not None and energy_j > 0 and found.output_tokens:
        costs["energy_per_token_j"] = energy_j / found.output_tokens
    if price_per_hour > 0 and found.output_tokens:
        costs["cost_per_million_tokens"] = 1e6 * price_per_hour * found.duration_s / 3600 / found.output_tokens
    return replace(found, metrics={**found.metrics, **costs}) if costs else found


def _meets(item: Generation, slo: Mapping[str, float]) -> bool:
    times, gaps = item.token_times_s, len(item.token_times_s) - 1
    found = {"ttft_ms": 1000 * times[0], "e2e_latency_ms": 1000 * times[-1]}
    if gaps:
        # A request of one token has no TPOT to miss.
        found["tpot_ms"] = 1000 * (times[-1] - times[0]) / gaps
    return all(found[name] <= limit for name, limit in slo.items() if name in found)


def _statistics(name: str, sample: Sequence[float]) -> dict[str, float]:
    import numpy as np

    values = np.asarray(sample)
    found = {f"{name}.mean": float(values.mean())}
    for statistic in STATISTICS:
        if statistic != "mean":
            found[f"{name}.{statistic}"] = float(np.percentile(values, float(statistic[1:])))
    return found
