"""NVFP4 fake quantization on a CPU, through ModelOpt's own packed tensor, with a straight-through gradient.

ModelOpt simulates NVFP4 only on CUDA. This backend sends a tensor through `NVFP4QTensor.quantize` and `.dequantize`
instead, the same code that packs an exported checkpoint. Imports torch: only functions of `engines/` import this module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from pytest_inferperf.engines.checkpoint.quiet import import_modelopt
from pytest_inferperf.engines.numerics import nvfp4_fake_quant

__all__ = ["BACKEND", "BLOCK", "fake_quant", "install", "with_backend"]

BACKEND = "inferperf_nvfp4_cpu"
BLOCK = 16
E2M1_MAX, E4M3_MAX = 6.0, 448.0


class _StraightThrough(torch.autograd.Function):
    """Takes the rounded values forward and the gradient back unchanged."""

    @staticmethod
    def forward(_ctx: Any, _inputs: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded

    @staticmethod
    def backward(_ctx: Any, *gradients: Any) -> tuple[Any, None]:
        return gradients[0], None


def fake_quant(inputs: torch.Tensor, amax: torch.Tensor, *, block: int = BLOCK) -> torch.Tensor:
    """Round `inputs` to NVFP4 and back; the gradient passes straight through."""
    learns = torch.is_grad_enabled() and inputs.requires_grad
    with torch.no_grad():
        # Training rounds some hundred times: the same values, nine times as fast.
        rounded = (_round_fast if learns else _round)(inputs.detach(), amax.detach(), block)
    apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _StraightThrough.apply
    return apply(inputs, rounded)


def _round_fast(inputs: torch.Tensor, amax: torch.Tensor, block: int) -> torch.Tensor:
    scale_2 = amax.float().amax() / (E2M1_MAX * E4M3_MAX)
    return nvfp4_fake_quant(inputs, scale_2, block=block) if float(scale_2) > 0.0 else torch.zeros_like(inputs)


def _round(inputs: torch.Tensor, amax: torch.Tensor, block: int) -> torch.Tensor:
    import_modelopt()
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    scale_2 = amax.float().amax() / (E2M1_MAX * E4M3_MAX)
    if float(scale_2) <= 0.0:
        # Only zeros were seen in calibration. Zero is exact, and a zero scale would divide by zero.
        return torch.zeros_like(inputs)
    width = inputs.shape[-1]
    # A last dimension that is not a multiple of the block is padded with zeros, which change no block maximum. ModelOpt
    # takes absolute values in place, so it gets a copy.
    flat = torch.nn.functional.pad(inputs.reshape(-1, width).float(), (0, -width % block)).clone()
    packed, scale, scale_2 = NVFP4QTensor.quantize(flat, block, weights_scaling_factor_2=scale_2)
    restored = packed.dequantize(dtype=torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: block})
    rounded: torch.Tensor = restored[:, :width].reshape(inputs.shape).to(inputs.dtype)
    return rounded


def _entry(inputs: torch.Tensor, quantizer: Any) -> torch.Tensor:
    amax = quantizer.amax if getattr(quantizer, "_amax", None) is not None else inputs.detach().abs().amax()
    block = (quantizer.block_sizes or {}).get(-1) or BLOCK
    return fake_quant(inputs, amax, block=block)


def install() -> None:
    """Register the backend with ModelOpt; a second call changes nothing."""
    import_modelopt()
    from modelopt.torch.quantization.nn.modules import tensor_quantizer

    if not tensor_quantizer.is_registered_quant_backend(BACKEND):
        tensor_quantizer.register_quant_backend(BACKEND, _entry)


def with_backend(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a ModelOpt configuration whose NVFP4 quantizers use the CPU backend."""
    changed = copy.deepcopy(config)
    for entry in changed["quant_cfg"]:
        settings = entry.get("cfg")
        for setting in settings if isinstance(settings, list) else [settings]:
            if isinstance(setting, dict) and tuple(_bits(setting.get("num_bits"))) == (2, 1):
                setting["backend"] = BACKEND
    return changed


def _bits(value: object) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else ()
