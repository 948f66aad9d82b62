"""From token times to the metric table: the only place where its formulas are computed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pytest_inferperf.engines.interface import Generation
from pytest_inferperf.model.metrics import METRICS, STATISTICS
from pytest_inferperf.model.results import Round

__all__ = ["summarise_round"]


def summarise_round(
    generations: Sequence[Generation], *, duration_s: float, devices: int, peak_memory_bytes: int
) -> Round:
    """Compute every metric of one round; formulas and sources stand in `model.metrics`.

    `duration_s` is the wall time of the round, `devices` the number of GPUs (1 for a CPU). A metric without a
    sample (TPOT and ITL at an OSL of 1) is left out.
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
    }
    metrics = {
        "output_throughput": output_tokens / duration_s,
        "output_throughput_per_gpu": output_tokens / duration_s / devices,
        "total_throughput": (input_tokens + output_tokens) / duration_s,
        "request_throughput": len(finished) / duration_s,
    }
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
    assert all(name.partition(".")[0] in METRICS for name in metrics)
    return Round(
        duration_s=duration_s,
        num_requests=len(generations),
        num_failed_requests=len(generations) - len(finished),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        metrics=metrics,
    )


def _statistics(name: str, sample: Sequence[float]) -> dict[str, float]:
    import numpy as np

    values = np.asarray(sample)
    found = {f"{name}.mean": float(values.mean())}
    for statistic in STATISTICS:
        if statistic != "mean":
            found[f"{name}.{statistic}"] = float(np.percentile(values, float(statistic[1:])))
    return found
