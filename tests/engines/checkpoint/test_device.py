"""A checkpoint is never filed under another device than it was built on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pytest_inferperf.engines.checkpoint import device
from pytest_inferperf.engines.checkpoint.build import build_checkpoint
from pytest_inferperf.engines.checkpoint.cache import ensure_checkpoint
from pytest_inferperf.engines.checkpoint.device import check_device, expected_device
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec

SeesGpu = Callable[[bool], None]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SeesGpu:
    """Let NVML show a GPU or none; without nvidia-ml-py it shows none."""
    return lambda shown: monkeypatch.setattr(device, "find_gpus", lambda: (object(),) if shown else ())


@pytest.mark.parametrize(("shown", "expected"), [(True, "cuda"), (False, "cpu")])
def test_what_nvml_shows_is_where_a_build_is_expected(nvml: SeesGpu, shown: bool, expected: str) -> None:
    nvml(shown)
    assert expected_device() == expected
    check_device(expected, torch="2.13.0")


@pytest.mark.parametrize(
    ("shown", "found", "message"),
    [
        (False, "cuda", r"torch 2\.13\.0 builds on a GPU, and NVML shows none .*\. Install nvidia-ml-py, or .*VISIBLE"),
        (
            True,
            "cpu",
            r"torch 2\.13\.0 builds on the CPU, and NVML shows a GPU: .* torch built for CUDA .*, or .*VISIBLE",
        ),
    ],
)
def test_a_build_elsewhere_is_refused_with_the_cure(nvml: SeesGpu, shown: bool, found: str, message: str) -> None:
    nvml(shown)
    with pytest.raises(CheckpointError, match=message):
        check_device(found, torch="2.13.0")


@pytest.mark.parametrize("shown", [True, False])
def test_a_refused_build_leaves_nothing_in_the_cache(
    nvml: SeesGpu, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    def build(spec: EngineSpec, source: Path, destination: Path, progress: Progress) -> None:
        build_checkpoint(spec, source=source, destination=destination, progress=progress)

    nvml(shown)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not shown)
    spec = EngineSpec(model=str(source), served_model_name="tiny", quant="W4A16_NVFP4")
    with pytest.raises(CheckpointError, match="whose weights are others"):
        ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lambda _line: None)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
