"""Values that tests of many subjects are about: an engine's own account of itself, and a measured round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytest_inferperf.model.results import EngineInfo, Hardware, Round

CPU = Hardware(name="Test CPU", count=2, kind="cpu")

_INFO = EngineInfo(
    backend="test",
    hardware=CPU,
    quant_algo=None,
    kv_cache_quant_algo=None,
    compute_dtype="float32",
    simulated=False,
    max_model_len=512,
    checkpoint="c",
    checkpoint_hash="h",
)
_ROUND = Round(duration_s=1.0, num_requests=1, num_failed_requests=0, input_tokens=1, output_tokens=1, metrics={})


def engine_info(**changes: Any) -> EngineInfo:
    """Return what an engine of tests says that it is, but for `changes`."""
    return replace(_INFO, **changes)


def one_round(metrics: Mapping[str, float], **changes: Any) -> Round:
    """Return a round of one request of one token, but for `changes`, with these metrics by full name."""
    return replace(_ROUND, metrics=metrics, **changes)
