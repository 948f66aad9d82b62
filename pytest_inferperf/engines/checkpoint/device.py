"""Where a checkpoint is built decides in which precision: on a GPU in the stored one, on a CPU in float32.

The cache files it by what NVML says, since torch takes seconds to import; the build, which has torch, checks that it is so.
"""

from __future__ import annotations

from pytest_inferperf.engines.hardware import find_gpus
from pytest_inferperf.errors import CheckpointError

__all__ = ["check_device", "expected_device"]

_HIDE = 'or build on the CPU: CUDA_VISIBLE_DEVICES=""'


def expected_device() -> str:
    """Return where a checkpoint is built on this machine, without importing torch: "cuda" or "cpu"."""
    return "cuda" if find_gpus() else "cpu"


def check_device(found: str, *, torch: str) -> None:
    """Check that the device on which torch builds is the one that the checkpoint is filed under.

    `torch` is its version. Raises `CheckpointError`.
    """
    if found == expected_device():
        return
    if found == "cuda":
        raise CheckpointError(
            f"torch {torch} builds on a GPU, and NVML shows none that is whole: the checkpoint would be filed as one built on "
            f"a CPU, whose weights are others. Install nvidia-ml-py, {_HIDE}"
        )
    raise CheckpointError(
        f"torch {torch} builds on the CPU, and NVML shows a GPU: the checkpoint would be filed as one built there, whose "
        f"weights are others. Install a torch built for CUDA that this driver runs, {_HIDE}"
    )
