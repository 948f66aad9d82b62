"""What was really loaded, read back from `llm.args`: the options of a result, which `measure.validity` compares with the ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pytest_inferperf.engines.tensorrt_llm.options import DECODING, OPTIONS
from pytest_inferperf.model.case import EngineSpec, Scalar
from pytest_inferperf.model.results import UNVERIFIED

__all__ = ["Resolved", "resolved_of"]

_SPELLINGS: Mapping[str, tuple[str, ...]] = {"speculative_model": ("speculative_model", "speculative_model_dir")}
"""Fields with two names, by the release; the one that holds something counts."""

_RECORDED = (
    "max_batch_size",
    "max_num_tokens",
    "max_seq_len",
    "attention_backend",
    "moe_backend",
    "memory_fraction",
    "stream_interval",
)
"""Options that decide speed: recorded with every result, also where TensorRT-LLM chose them."""

_SPECULATION = ("max_concurrency", "acceptance_length_threshold", "acceptance_window")
"""What may switch speculation off in the middle of a run: recorded where it is on."""

_KINDS = {name: ours for ours, name in DECODING.items()} | {"Eagle": "eagle3"}


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The configuration of a loaded engine."""

    quant_algo: str | None
    kv_cache_quant_algo: str | None
    dtype: str
    max_seq_len: int
    """0 where the model decides."""

    max_num_tokens: int
    """0 where it is not said."""

    chunked_prefill: bool
    options: dict[str, Scalar]
    """tp, pp and ep, every option that was asked for or has a default of ours, and those that are always recorded."""


def resolved_of(args: Any, spec: EngineSpec) -> Resolved:
    """Read the arguments of a loaded `LLM` back."""
    given = dict(spec.engine_options)
    found: dict[str, Scalar] = {
        "tp": _plain(_at(args, "tensor_parallel_size")),
        "pp": _plain(_at(args, "pipeline_parallel_size")),
    }
    if spec.ep != 1:
        found["ep"] = _plain(_at(args, "moe_expert_parallel_size"))
    for name, option in OPTIONS.items():
        if name in given or name in _RECORDED or option.default is not None:
            found[name] = _option(name, _at(args, option.path), given.get(name))
    found |= {name: _plain(_at(args, name)) for name in given if name not in OPTIONS}
    if _at(args, "speculative_config") is not None:
        paths = [f"speculative_config.{name}" for name in _SPECULATION]
        found |= {path: _plain(_at(args, path)) for path in paths}
    quant = _at(args, "quant_config")
    return Resolved(
        quant_algo=UNVERIFIED if quant is None else _algo(quant.quant_algo),
        kv_cache_quant_algo=UNVERIFIED if quant is None else _algo(quant.kv_cache_quant_algo),
        dtype=str(_plain(_at(args, "dtype")) or "auto"),
        max_seq_len=_whole(_at(args, "max_seq_len")),
        max_num_tokens=_whole(_at(args, "max_num_tokens")),
        chunked_prefill=bool(_at(args, "enable_chunked_prefill")),
        options=found,
    )


def _at(args: Any, path: str) -> Any:
    """Follow a dotted path; None where it ends early."""
    for name in path.split("."):
        values = [getattr(args, item, None) for item in _SPELLINGS.get(name, (name,))]
        args = next((value for value in values if value is not None), None)
    return args


def _option(name: str, value: Any, asked: Scalar) -> Scalar:
    if name == "cuda_graphs":
        return value is not None
    if name == "speculative":
        return _KINDS.get(str(value), str(value))
    if name == "draft_model" and isinstance(asked, str) and asked.replace("/", "--") in str(value):
        # A hub id comes back as the folder it was downloaded to.
        return asked
    return _plain(value)


def _plain(value: Any) -> Scalar:
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return ",".join(str(_plain(item)) for item in value)
    return str(value)


def _algo(value: Any) -> str | None:
    name = _plain(value)
    return None if name in (None, "NO_QUANT") else str(name)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
