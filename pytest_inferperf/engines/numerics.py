"""The number formats: weights unpacked exactly, activations and KV cache rounded as the hardware would. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from pytest_inferperf.engines.checkpoint.formats import Format

__all__ = ["ACTIVATIONS", "FP8_MAX", "fp8_fake_quant", "nvfp4_fake_quant", "unpack_weight"]

FP8_MAX = 448.0
NVFP4_BLOCK = 16
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def nvfp4_fake_quant(inputs: torch.Tensor, scale_2: torch.Tensor, *, block: int = NVFP4_BLOCK) -> torch.Tensor:
    """Round to NVFP4 with dynamic block scales under a fixed global scale: equal to `NVFP4QTensor`, and faster."""
    width = inputs.shape[-1]
    padded = inputs if width % block == 0 else nn.functional.pad(inputs, (0, -width % block))
    blocks = padded.float().reshape(*padded.shape[:-1], -1, block)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / (6.0 * scale_2)
    scale = torch.where(scale == 0, 1.0, scale).clamp_(2**-9, FP8_MAX).to(torch.float8_e4m3fn).float() * scale_2
    scaled = blocks / scale
    # The E2M1 grid has steps of 1/2 below 2, of 1 below 4, of 2 up to 6. Adding 2^22 times the power of two below a
    # value (at least 1) leaves exactly that many bits, and rounds ties to even, as the format does.
    power = (scaled.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(1.0, 4.0)
    magic = power.mul_(2.0**22).copysign_(scaled)
    rounded = scaled.add_(magic).sub_(magic).clamp_(-6.0, 6.0)
    return rounded.mul_(scale).flatten(-2)[..., :width].to(inputs.dtype)


def fp8_fake_quant(inputs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Round to FP8 E4M3 under a fixed scale, saturating."""
    scaled = (inputs.float() / scale).clamp_(-FP8_MAX, FP8_MAX)
    return (scaled.to(torch.float8_e4m3fn).float() * scale).to(inputs.dtype)


def _fp8_per_token(inputs: torch.Tensor, _scale: torch.Tensor) -> torch.Tensor:
    scale = inputs.float().abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12) / FP8_MAX
    return fp8_fake_quant(inputs, scale)


def _int8_fake_quant(inputs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return ((inputs.float() / scale).round_().clamp_(-128, 127) * scale).to(inputs.dtype)


ACTIVATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "nvfp4": nvfp4_fake_quant,
    "fp8": fp8_fake_quant,
    "fp8_per_token": _fp8_per_token,
    "int8": _int8_fake_quant,
}
"""How activations are rounded, by the name in the table of formats; under a scale that dynamic ones ignore."""


def unpack_weight(tensors: Mapping[str, torch.Tensor], layout: Format, group_size: int | None) -> torch.Tensor:
    """Turn one packed weight (`weight`, `weight_scale`, `weight_scale_2`) into float32, exactly."""
    packed, scale = tensors["weight"], tensors["weight_scale"].float()
    values: torch.Tensor
    if layout.decode == "e2m1":
        table = torch.tensor(_E2M1, device=packed.device)
        values = table[torch.stack((packed & 0x0F, packed >> 4), dim=-1).flatten(-2).long()]
    elif layout.decode == "int4":
        signed = torch.stack((packed & 0x0F, packed >> 4), dim=1).flatten(0, 1).to(torch.int8)
        values = torch.where(signed > 7, signed - 16, signed).float()
    else:
        values = packed.float()
    if layout.has_global_scale:
        scale = scale * tensors["weight_scale_2"].float()
    if layout.block is not None:
        block = group_size or layout.block
        return values * scale.repeat_interleave(block, dim=-1)[:, : values.shape[-1]]
    return values * (scale.reshape(-1, 1) if layout.per_channel_scale else scale.reshape(()))
