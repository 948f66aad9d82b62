"""FP8 weights with a scale for each block of 128 x 128, as DeepSeek releases its models: no ModelOpt export, but read as it is.

TensorRT-LLM calls the format `FP8_BLOCK_SCALES`. Its description in config.json does not list which matrices are plain:
those without a scale are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_inferperf.engines.checkpoint.sources import Tensor
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.quant import BLOCK_SCALES

__all__ = ["BLOCK", "check_block_scales", "is_block_scaled"]

BLOCK = 128
"""Rows and columns of a block: the only size that TensorRT-LLM reads."""

_SCALE = "weight_scale_inv"
_WEIGHT = "F8_E4M3"
_PLAIN = ("BF16", "F16", "F32")


def is_block_scaled(folder: Path, section: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` describes the format. Raises `CheckpointError` for one that only resembles it."""
    if section.get("quant_method") != "fp8" or section.get("weight_block_size") is None:
        return False
    for name, found, expected in (
        ("weight_block_size", section["weight_block_size"], [BLOCK, BLOCK]),
        ("fmt", section.get("fmt", "e4m3"), "e4m3"),
        ("activation_scheme", section.get("activation_scheme", "dynamic"), "dynamic"),
    ):
        if found != expected:
            raise CheckpointError(
                f"{folder / 'config.json'}: {name} is {found!r}; {BLOCK_SCALES} is run with {expected!r}"
            )
    return True


def check_block_scales(
    folder: Path, tensors: Mapping[str, Tensor], excluded: tuple[str, ...]
) -> tuple[list[str], float]:
    """Return the quantized modules, and bits per parameter of theirs.

    Raises `CheckpointError` for a matrix in another type, a scale that is missing or of another shape, and a module that
    config.json says is plain and is not.
    """
    quantized = []
    for tensor in tensors.values():
        module, _, leaf = tensor.name.rpartition(".")
        if leaf == _SCALE and f"{module}.weight" not in tensors:
            raise CheckpointError(f"{tensor.file}: {module}.weight is missing, its {_SCALE} is there")
        if leaf != "weight" or len(tensor.shape) != 2:
            continue
        scale = tensors.get(f"{module}.{_SCALE}")
        if tensor.dtype in _PLAIN and scale is None:
            continue
        if tensor.dtype != _WEIGHT:
            raise CheckpointError(
                f"{tensor.file}: {tensor.name}: found dtype {tensor.dtype}, expected {_WEIGHT} ({BLOCK_SCALES})"
            )
        if any(module == name or module.startswith(f"{name}.") for name in excluded):
            raise CheckpointError(
                f"{tensor.file}: {tensor.name}: found dtype {tensor.dtype}, expected plain weights: {module} is in "
                "modules_to_not_convert"
            )
        _check_scale(tensor, scale, f"{module}.{_SCALE}")
        quantized.append(module)
    if not quantized:
        raise CheckpointError(f"{folder}: {BLOCK_SCALES} in config.json, but no weight is quantized")
    parts = [tensors[f"{module}.{leaf}"] for module in quantized for leaf in ("weight", _SCALE)]
    parameters = sum(tensors[f"{module}.weight"].numel for module in quantized)
    return sorted(quantized), 8 * sum(part.nbytes for part in parts) / parameters


def _check_scale(weight: Tensor, scale: Tensor | None, name: str) -> None:
    if scale is None:
        raise CheckpointError(f"{weight.file}: {name} is missing; {weight.name} needs it")
    rows, columns = weight.shape
    expected = -(-rows // BLOCK), -(-columns // BLOCK)
    if scale.dtype != "F32" or scale.shape != expected:
        raise CheckpointError(
            f"{scale.file}: {name}: found {scale.dtype} {list(scale.shape)}, expected F32 {list(expected)} for a weight of "
            f"{list(weight.shape)}"
        )
