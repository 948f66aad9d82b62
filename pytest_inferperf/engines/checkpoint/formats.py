"""What each `quant_algo` looks like on disk, and what it does to activations: one row each. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FORMATS", "KV_SCALES", "SCALE_SUFFIXES", "Format"]

SCALE_SUFFIXES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "k_scale", "v_scale")
"""Tensors an export adds beside the weights of the source model."""

KV_SCALES = (("k_proj", "k_scale"), ("v_proj", "v_scale"))
"""The projection each KV cache scale is filed under, and its name."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One number format of an exported checkpoint. Shapes are those of a linear of `[out, in]`."""

    quant_algo: str
    weight_dtype: str
    """As a safetensors header spells it."""

    out_per_row: int = 1
    """Output channels in one row of the packed weight."""

    in_per_column: int = 1
    """Input channels in one column of the packed weight."""

    decode: Literal["e2m1", "int4", "e4m3", "int8"]
    """How a packed weight turns back into numbers."""

    scale_dtypes: tuple[str, ...] = ("F32",)
    block: int | None = None
    """Default input channels per scale; `group_size` in hf_quant_config.json wins. None for scales without blocks."""

    per_channel_scale: bool = False
    """Without blocks: one scale per output channel instead of one per tensor."""

    has_global_scale: bool = False
    """Whether `weight_scale_2` stands over the block scales."""

    activation: Literal["none", "nvfp4", "fp8", "fp8_per_token", "int8"] = "none"
    allows_pre_quant_scale: bool = False

    @property
    def has_input_scale(self) -> bool:
        """Whether a calibrated activation scale belongs to every linear."""
        return self.activation in ("nvfp4", "fp8", "int8")

    def packed_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Shape of the packed weight."""
        return out_features // self.out_per_row, in_features // self.in_per_column

    def scale_shape(self, out_features: int, in_features: int, group_size: int | None) -> tuple[int, ...]:
        """Shape of `weight_scale`."""
        if self.block is not None:
            return out_features, -(-in_features // (group_size or self.block))
        return (out_features,) if self.per_channel_scale else ()

    def bits_per_parameter(self, group_size: int | None) -> float:
        """Bits one weight takes, block scales included; scalars are too few to count."""
        bits = {"e2m1": 4.0, "int4": 4.0, "e4m3": 8.0, "int8": 8.0}[self.decode]
        if self.block is None:
            return bits
        return bits + (8 if self.scale_dtypes[0] == "F8_E4M3" else 32) / (group_size or self.block)


def _nvfp4(name: str, *, block: int = 16, activation: Literal["none", "nvfp4", "fp8"], awq: bool = False) -> Format:
    return Format(
        quant_algo=name,
        weight_dtype="U8",
        in_per_column=2,
        decode="e2m1",
        scale_dtypes=("F8_E4M3",),
        block=block,
        has_global_scale=True,
        activation=activation,
        allows_pre_quant_scale=awq,
    )


FORMATS: dict[str, Format] = {
    row.quant_algo: row
    for row in (
        Format(quant_algo="FP8", weight_dtype="F8_E4M3", decode="e4m3", activation="fp8"),
        Format(
            quant_algo="FP8_PER_CHANNEL_PER_TOKEN",
            weight_dtype="F8_E4M3",
            decode="e4m3",
            per_channel_scale=True,
            activation="fp8_per_token",
        ),
        _nvfp4("NVFP4", activation="nvfp4"),
        _nvfp4("NVFP4_AWQ", activation="nvfp4", awq=True),
        _nvfp4("W4A16_NVFP4", activation="none"),
        _nvfp4("W4A8_NVFP4_FP8", block=32, activation="fp8"),
        Format(
            quant_algo="W4A16_AWQ",
            weight_dtype="U8",
            out_per_row=2,
            decode="int4",
            scale_dtypes=("F32", "BF16", "F16"),
            block=128,
            allows_pre_quant_scale=True,
        ),
        Format(
            quant_algo="W8A8_SQ_PER_CHANNEL",
            weight_dtype="I8",
            decode="int8",
            per_channel_scale=True,
            activation="int8",
            allows_pre_quant_scale=True,
        ),
    )
}
"""The formats this package can check and run. ModelOpt exports more: those are refused by name, never guessed."""
