"""A spec as `trtllm-serve` takes it: flags for plain settings, a file for configuration objects, nothing twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytest_inferperf.engines.tensorrt_llm.options import arguments_of
from pytest_inferperf.engines.tensorrt_llm.versions import served_speculation
from pytest_inferperf.model.case import EngineSpec

__all__ = ["served_arguments", "without_own"]

_OWN = ("tokenizer", "max_model_len", "request_model", "ca_file")
"""Engine options about the connection to a server: none of TensorRT-LLM's."""

_FLAGS: Mapping[str, str] = {
    "tensor_parallel_size": "--tp_size",
    "pipeline_parallel_size": "--pp_size",
    "moe_expert_parallel_size": "--ep_size",
    "max_batch_size": "--max_batch_size",
    "max_num_tokens": "--max_num_tokens",
    "max_seq_len": "--max_seq_len",
}
"""Arguments with a flag in both releases. A switch (`--enable_chunked_prefill`) can only be on, so those go into the file."""


def served_arguments(spec: EngineSpec) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Return flags with their values, and what belongs into the configuration file.

    Raises `EngineError` like `arguments_of`.
    """
    tree = arguments_of(without_own(spec))
    # Whoever measures a server does so from its client.
    del tree["return_perf_metrics"]
    if "speculative_config" in tree:
        tree["speculative_config"] = served_speculation(tree["speculative_config"])
    flags = [(_FLAGS[name], str(tree.pop(name))) for name in _FLAGS if name in tree]
    return flags, tree


def without_own(spec: EngineSpec) -> EngineSpec:
    """Return a spec without the options that are about the connection."""
    return replace(spec, engine_options=tuple(item for item in spec.engine_options if item[0] not in _OWN))
