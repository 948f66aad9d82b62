"""The metric table and the names gates use."""

from __future__ import annotations

import pytest

from pytest_inferperf.errors import MarkError
from pytest_inferperf.model.metrics import METRICS, STATISTICS, parse_metric

LOWER_IS_BETTER = {"ttft_ms", "tpot_ms", "itl_ms", "chunk_gap_ms", "e2e_latency_ms", "peak_memory_gib"} | {
    "energy_per_token_j",
    "cost_per_million_tokens",
    "engine_ttft_ms",
    "engine_latency_ms",
}


def test_directions_are_what_the_words_mean() -> None:
    """Written out by hand: a row whose direction is turned around fails here."""
    assert {row.name for row in METRICS.values() if not row.higher_is_better} == LOWER_IS_BETTER


@pytest.mark.parametrize("statistic", STATISTICS)
def test_latencies_take_statistics(statistic: str) -> None:
    found = parse_metric(f"ttft_ms.{statistic}")
    assert (found.metric.name, found.statistic, found.name) == ("ttft_ms", statistic, f"ttft_ms.{statistic}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tttf_ms.p50", "unknown metric 'tttf_ms.p50'.\nDid you mean 'ttft_ms'? Metrics: "),
        ("ttft_ms", "a statistic is missing in 'ttft_ms'. Write one of: ttft_ms.mean, ttft_ms.p50, "),
        ("ttft_ms.p75", "unknown statistic 'p75' in 'ttft_ms.p75'. Write one of: "),
        ("output_throughput.p50", "'output_throughput' is one figure per round and takes no statistic; "),
        ("", "unknown metric ''."),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(MarkError) as caught:
        parse_metric(name)
    assert str(caught.value).startswith(message)
