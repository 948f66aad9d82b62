"""What an engine implies of the machine, and drivers that are too old."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest

from pytest_inferperf.engines.hardware import GpuMachine
from pytest_inferperf.engines.needs import driver_problem, implied_need, installed_cuda, joint_need
from pytest_inferperf.model.case import EngineSpec, GpuRequirement

DRIVER = GpuMachine(driver="550.54.15", cuda="12.4")


def spec(**values: Any) -> EngineSpec:
    return EngineSpec(**{"model": "org/model", "served_model_name": "model", "backend": "tensorrt_llm", **values})


@pytest.mark.parametrize(
    ("values", "sm", "count"),
    [
        ({"quant": "NVFP4", "tp": 8}, 100, 8),
        ({"quant": "W4A8_NVFP4_FP8"}, 100, 1),
        ({"quant": "FP8", "tp": 2, "pp": 2}, 89, 4),
        ({"quant": "FP8_BLOCK_SCALES", "tp": 8}, 90, 8),
        ({"quant": "FP8", "kv_cache_dtype": "nvfp4"}, 100, 1),
        ({"quant": "BF16", "tp": 8}, 80, 8),
        ({"quant": "NVFP4_AWQ_LITE_CFG"}, 0, 1),
        ({"quant": "NVFP4", "backend": "openai", "serve": "trtllm-serve --max_batch_size 8"}, 100, 1),
    ],
)
def test_tensorrt_llm_needs_what_its_format_does(values: dict[str, Any], sm: int, count: int) -> None:
    assert implied_need(spec(**values)) == GpuRequirement(sm=sm, count=count)


@pytest.mark.parametrize(
    "values",
    [
        {"backend": "transformers"},
        {"backend": "openai", "serve": "vllm"},
        {"backend": "openai", "url": "http://host:8000"},
        {"backend": "a-plugin's"},
    ],
)
def test_what_may_run_without_a_gpu_needs_none(values: dict[str, Any]) -> None:
    assert implied_need(spec(quant="NVFP4", **values)) is None


def test_auto_without_a_gpu_is_simulated_and_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_inferperf.engines.backends.has_nvidia_gpu", lambda: False)
    assert implied_need(spec(quant="NVFP4", backend="auto")) is None


def test_needs_add_up_on_the_same_gpus() -> None:
    assert joint_need([None, None]) is None
    needs = [GpuRequirement(sm=89, count=8), None, GpuRequirement(sm=100, memory_gib=150)]
    assert joint_need(needs) == GpuRequirement(sm=100, count=8, memory_gib=150)


def test_a_driver_of_an_older_major_version_is_too_old() -> None:
    assert driver_problem(DRIVER, cuda="13.0") == (
        "the NVIDIA driver 550.54.15 runs CUDA up to 12.4, and the installed CUDA runtime is 13.0. Update the driver "
        "(580 or later), or install a TensorRT-LLM built for CUDA 12."
    )


@pytest.mark.parametrize("cuda", ["12.9", "12.0", "11.8", ""])
def test_a_driver_runs_its_own_major_version_and_older_ones(cuda: str) -> None:
    assert driver_problem(DRIVER, cuda=cuda) == ""


def test_nothing_is_said_of_an_unknown_driver() -> None:
    assert driver_problem(GpuMachine(), cuda="13.0") == ""


def test_the_installed_runtime_is_asked_before_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"nvidia-cuda-runtime-cu12": "12.9.79"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("CUDA_VERSION", "13.0.1.012")
    assert installed_cuda() == "12.9"
    installed.clear()
    assert installed_cuda() == "13.0"
    monkeypatch.delenv("CUDA_VERSION")
    assert installed_cuda() == ""
