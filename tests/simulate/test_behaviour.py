"""What the simulated server can be told."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.simulate.behaviour import Behaviour


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttft_ms": -1.0}, "--ttft-ms -1.0: must be at least 0."),
        ({"tokens_per_chunk": 0}, "--tokens-per-chunk 0: must be at least 1."),
        ({"error_rate": 1.5}, "--error-rate 1.5: must be from 0 to 1."),
        ({"error_status": 200}, "--error-status 200: must be from 400 to 599."),
        ({"itl_ms": float("nan")}, "--itl-ms nan: must be at least 0."),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        Behaviour(**options)
