"""Quantization formats and KV cache types: one row each, read everywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_inferperf.errors import choices

__all__ = [
    "BLOCK_SCALES",
    "KV_CACHE_DTYPES",
    "NOT_MADE",
    "NO_LESSONS",
    "QAT",
    "QUANTIZATIONS",
    "KvCacheDtype",
    "Quantization",
    "check_quant",
    "is_finer",
    "precision_bits",
    "precision_key",
    "split_precision",
]

BLOCK_SCALES = "FP8_BLOCK_SCALES"
"""FP8 with a scale for each block of weights, as DeepSeek releases it, under TensorRT-LLM's name. Read, and never made."""

QAT = "qat"
"""The recipe that trains the quantized model before it is exported. Other weights, so another precision."""

NOT_MADE = (
    f'quant="{BLOCK_SCALES}" is read and never made, and these weights are plain. Give a checkpoint that has it, or '
    'quant="FP8".'
)

NO_LESSONS = (
    'recipe="qat" trains the quantized model, unless the checkpoint is one already. Give texts like those the model was '
    'trained on, and none that a task asks: qat_dataset="texts.jsonl", a "text" field per line.'
)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """One number format for weights and activations."""

    name: str
    """What a mark says: `quant="NVFP4"`."""

    modelopt_config: str | None
    """The ModelOpt configuration (a name in `mtq.config.choices`) that makes it; None for what is only read."""

    quant_algo: str | None
    """What `hf_quant_config.json` says after export, and TensorRT-LLM once it is loaded; None for plain weights."""

    needs_calibration: bool
    """Whether its configuration measures activations on calibration texts."""

    min_sm: int
    """The first GPU generation with hardware for it, as SM version (100 is B200)."""

    weight_bits: int
    activation_bits: int


@dataclass(frozen=True, kw_only=True)
class KvCacheDtype:
    """One number format for the KV cache."""

    name: str
    modelopt_config: str | None
    kv_cache_quant_algo: str | None
    min_sm: int
    bits: int


QUANTIZATIONS: dict[str, Quantization] = {
    row.name: row
    for row in (
        Quantization(
            name="BF16",
            modelopt_config=None,
            quant_algo=None,
            needs_calibration=False,
            min_sm=80,
            weight_bits=16,
            activation_bits=16,
        ),
        Quantization(
            name="FP8",
            modelopt_config="FP8_DEFAULT_CFG",
            quant_algo="FP8",
            needs_calibration=True,
            min_sm=89,
            weight_bits=8,
            activation_bits=8,
        ),
        Quantization(
            name=BLOCK_SCALES,
            modelopt_config=None,
            quant_algo=BLOCK_SCALES,
            needs_calibration=False,
            min_sm=90,
            weight_bits=8,
            activation_bits=8,
        ),
        Quantization(
            name="NVFP4",
            modelopt_config="NVFP4_DEFAULT_CFG",
            quant_algo="NVFP4",
            needs_calibration=True,
            min_sm=100,
            weight_bits=4,
            activation_bits=4,
        ),
        Quantization(
            name="W4A16_NVFP4",
            modelopt_config="W4A16_NVFP4_CFG",
            quant_algo="W4A16_NVFP4",
            needs_calibration=False,
            min_sm=80,
            weight_bits=4,
            activation_bits=16,
        ),
        Quantization(
            name="W4A8_NVFP4_FP8",
            modelopt_config="W4A8_NVFP4_FP8_CFG",
            quant_algo="W4A8_NVFP4_FP8",
            needs_calibration=True,
            min_sm=100,
            weight_bits=4,
            activation_bits=8,
        ),
        Quantization(
            name="INT4_AWQ",
            modelopt_config="INT4_AWQ_CFG",
            quant_algo="W4A16_AWQ",
            needs_calibration=True,
            min_sm=80,
            weight_bits=4,
            activation_bits=16,
        ),
    )
}

KV_CACHE_DTYPES: dict[str, KvCacheDtype] = {
    row.name: row
    for row in (
        KvCacheDtype(name="auto", modelopt_config=None, kv_cache_quant_algo=None, min_sm=0, bits=16),
        KvCacheDtype(name="fp8", modelopt_config="FP8_KV_CFG", kv_cache_quant_algo="FP8", min_sm=89, bits=8),
        KvCacheDtype(name="nvfp4", modelopt_config="NVFP4_KV_CFG", kv_cache_quant_algo="NVFP4", min_sm=100, bits=4),
    )
}

_CONFIG_NAME = re.compile(r"[A-Z][A-Z0-9_]*_(CFG|CONFIG)")


def check_quant(name: str) -> str | None:
    """Return None if `name` can be a quantization, else the sentence that says what is valid.

    A ModelOpt configuration name (`…_CFG`) is accepted by its form: ModelOpt itself knows the list, and it
    is asked before anything is built.
    """
    if name in QUANTIZATIONS or _CONFIG_NAME.fullmatch(name):
        return None
    return (
        choices(name, QUANTIZATIONS, what="Quantizations")
        + " Or a ModelOpt configuration name such as NVFP4_AWQ_LITE_CFG."
    )


def precision_key(quant: str, kv_cache_dtype: str, recipe: str = "") -> str:
    """Name a precision in a baseline file: `NVFP4`, `NVFP4+kv_fp8`, or `NVFP4+qat+kv_fp8`.

    Other recipes reach the same format in another way: they are context.
    """
    trained = f"{quant}+{QAT}" if recipe == QAT else quant
    return trained if kv_cache_dtype == "auto" else f"{trained}+kv_{kv_cache_dtype}"


def split_precision(name: str) -> tuple[str, str, str]:
    """Split what `precision_key` made into quantization, KV cache type and recipe; the parts are not checked."""
    head, plus, kv_cache_dtype = name.partition("+kv_")
    quant = head.removesuffix(f"+{QAT}")
    return quant, kv_cache_dtype if plus else "auto", QAT if quant != head else ""


def precision_bits(precision: str) -> tuple[int, int, int] | None:
    """Return the bits of weights, activations and KV cache of a precision; None for one that the tables lack."""
    quant, kv_cache_dtype, _ = split_precision(precision)
    row, kv_cache = QUANTIZATIONS.get(quant), KV_CACHE_DTYPES.get(kv_cache_dtype)
    if row is None or kv_cache is None:
        return None
    return row.weight_bits, row.activation_bits, kv_cache.bits


def is_finer(precision: str, other: str) -> bool:
    """Whether a precision has more bits than another in something, and fewer in nothing.

    Two that differ in both directions (FP8, and NVFP4 weights with BF16 activations) have no order, nor has a ModelOpt
    configuration of which the table knows no bits, nor weights that were trained and weights that were not.
    """
    ours, theirs = precision_bits(precision), precision_bits(other)
    trained = [split_precision(name)[2] for name in (precision, other)]
    if ours is None or theirs is None or ours == theirs or trained[0] != trained[1]:
        return False
    return all(mine >= its for mine, its in zip(ours, theirs, strict=True))
