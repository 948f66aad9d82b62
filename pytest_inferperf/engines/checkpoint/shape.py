"""What config.json says about the size of a model: heads, vocabulary, context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_inferperf.engines.checkpoint.sources import read_json

__all__ = ["ModelShape", "read_shape"]

_GROWING_ROPES = ("linear", "dynamic", "yarn")
"""Kinds of rope scaling whose factor may come on top of `max_position_embeddings`."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """0 stands for what config.json does not say."""

    heads: int
    """Attention heads."""

    vocab_size: int
    max_position: int
    """The longest context the model was made for, tokens."""


def read_shape(folder: Path) -> ModelShape:
    """Read config.json; of a model of several modalities, the part about text. Raises `CheckpointError`."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, dict) else config
    return ModelShape(
        heads=_whole(config, "num_attention_heads"),
        vocab_size=_whole(config, "vocab_size"),
        max_position=int(_whole(config, "max_position_embeddings") * _rope_factor(config)),
    )


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _rope_factor(config: Mapping[str, Any]) -> float:
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, dict):
        return 1.0
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    return float(factor) if kind in _GROWING_ROPES and isinstance(factor, int | float) and factor > 1 else 1.0
