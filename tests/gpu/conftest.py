"""GPU checks: skipped, with the reason, where no NVIDIA GPU and no CUDA is."""

from __future__ import annotations

import pytest
import torch

from pytest_inferperf.engines.hardware import find_gpus


def why_not() -> str:
    """Say why GPU checks cannot run here; "" where they can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA GPU"
    return "" if find_gpus() else "NVML shows no NVIDIA GPU: install nvidia-ml-py"


def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = why_not() if item.get_closest_marker("gpu") else ""
    if reason:
        pytest.skip(f"GPU check: {reason}")
