"""Engine options of TensorRT-LLM: one row each, read by the backend, by its server, and by the documentation.

A spec becomes a tree of arguments here, without the package: `{"tensor_parallel_size": 8, "kv_cache_config": {…}}`. The
backend makes configuration objects of it, the server a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_inferperf.errors import EngineError, choices
from pytest_inferperf.model.case import EngineSpec, Scalar

__all__ = ["CONFIGS", "DECODING", "OPTIONS", "Option", "arguments_of"]

Tree = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One engine option, and the argument of `tensorrt_llm.LLM` it becomes."""

    kind: type
    path: str
    """The argument, dotted inside a configuration object: `kv_cache_config.enable_block_reuse`."""

    meaning: str
    default: Scalar = None
    """Passed where the option is not given; None leaves the choice to TensorRT-LLM."""

    values: tuple[str, ...] = ()
    """Valid values of a string; of a list, of each item."""

    is_list: bool = False
    """Whether a string holds several values, with commas between them."""

    minimum: float = 1
    maximum: float = float("inf")
    """Of a number, both included."""


_MOE = (
    "AUTO",
    "CUTLASS",
    "CUTEDSL",
    "WIDEEP",
    "TRTLLM",
    "DEEPGEMM",
    "DENSEGEMM",
    "VANILLA",
    "TRITON",
    "MARLIN",
    "MEGAMOE_DEEPGEMM",
)

OPTIONS: dict[str, Option] = {
    "attention_dp": Option(
        kind=bool, path="enable_attention_dp", meaning="attention data-parallel over the tp devices, experts over ep"
    ),
    "max_batch_size": Option(kind=int, path="max_batch_size", meaning="requests in one step"),
    "max_num_tokens": Option(kind=int, path="max_num_tokens", meaning="tokens in one step"),
    "max_seq_len": Option(kind=int, path="max_seq_len", meaning="prompt and output of one request, tokens"),
    "chunked_prefill": Option(
        kind=bool,
        path="enable_chunked_prefill",
        default=False,
        meaning="read a long prompt in parts; without it a prompt longer than max_num_tokens is refused",
    ),
    "memory_fraction": Option(
        kind=float,
        path="kv_cache_config.free_gpu_memory_fraction",
        minimum=0.01,
        maximum=1,
        meaning="share of the memory left by the weights that the KV cache takes",
    ),
    "block_reuse": Option(
        kind=bool,
        path="kv_cache_config.enable_block_reuse",
        default=False,
        meaning="keep the KV cache of prompts for later ones; repeated prompts are then faster than new ones, and no task can be scored",
    ),
    "cuda_graphs": Option(
        kind=bool, path="cuda_graph_config", meaning="replay decoding steps as CUDA graphs; False switches them off"
    ),
    "cuda_graph_padding": Option(
        kind=bool, path="cuda_graph_config.enable_padding", meaning="round batches up to the nearest captured size"
    ),
    "cuda_graph_max_batch_size": Option(
        kind=int, path="cuda_graph_config.max_batch_size", meaning="the largest batch that is captured"
    ),
    "attention_backend": Option(
        kind=str, path="attn_backend", values=("TRTLLM", "VANILLA", "FLASHINFER"), meaning="attention kernels"
    ),
    "moe_backend": Option(kind=str, path="moe_config.backend", values=_MOE, meaning="kernels of the experts"),
    "nvfp4_gemm_backends": Option(
        kind=str,
        path="nvfp4_gemm_config.allowed_backends",
        values=("cutlass", "cublaslt", "cutedsl", "cuda_core", "marlin"),
        is_list=True,
        meaning="kernels of NVFP4 matrix products to choose from, with commas between them",
    ),
    "scheduler_policy": Option(
        kind=str,
        path="scheduler_config.capacity_scheduler_policy",
        values=("MAX_UTILIZATION", "GUARANTEED_NO_EVICT", "STATIC_BATCH"),
        meaning="which requests run when the KV cache is short",
    ),
    "stream_interval": Option(kind=int, path="stream_interval", meaning="steps between two chunks of a stream"),
    "orchestrator": Option(
        kind=str, path="orchestrator_type", values=("rpc", "ray"), meaning="what starts the workers; MPI by default"
    ),
    "speculative": Option(
        kind=str,
        path="speculative_config.decoding_type",
        values=("eagle3", "mtp", "ngram", "draft_target"),
        meaning="speculative decoding, measured as acceptance_length",
    ),
    "draft_model": Option(
        kind=str,
        path="speculative_config.speculative_model",
        meaning="folder or hub id of the draft model (eagle3, draft_target)",
    ),
    "max_draft_len": Option(
        kind=int, path="speculative_config.max_draft_len", meaning="tokens proposed in one step of speculation"
    ),
}
"""By name. Any other name is an argument of `tensorrt_llm.LLM` itself, dotted inside a configuration object."""

CONFIGS: dict[str, str] = {
    "kv_cache_config": "KvCacheConfig",
    "moe_config": "MoeConfig",
    "nvfp4_gemm_config": "Nvfp4GemmConfig",
    "scheduler_config": "SchedulerConfig",
    "cuda_graph_config": "CudaGraphConfig",
    "torch_compile_config": "TorchCompileConfig",
    "attention_dp_config": "AttentionDpConfig",
}
"""Argument to the class of its configuration object; that of `speculative_config` follows from `speculative`."""

DECODING: dict[str, str] = {"eagle3": "Eagle3", "mtp": "MTP", "ngram": "NGram", "draft_target": "Draft_Target"}
"""Our name of a kind of speculation to TensorRT-LLM's `decoding_type`."""

_NEED_DRAFT = ("eagle3", "draft_target")

_OURS: dict[str, str] = {
    "model": "model=",
    "tokenizer": "model=",
    "tensor_parallel_size": "tp=",
    "pipeline_parallel_size": "pp=",
    "moe_expert_parallel_size": "ep=",
    "kv_cache_config.dtype": "kv_cache_dtype=",
    "quant_config": "quant=",
    "return_perf_metrics": "nothing: it is always on",
    "backend": "nothing: its PyTorch backend is always taken",
    "telemetry_config": "nothing: its usage reports are always off",
}
"""Arguments that the mark, or the backend, decides."""


def arguments_of(spec: EngineSpec) -> Tree:
    """Turn a spec into the arguments of `tensorrt_llm.LLM`, but for the model: plain values, and a dict per object.

    Raises `EngineError` for an option of a wrong type or value, options that contradict each other, and an argument that
    has a keyword of its own. A name that is none of `OPTIONS` is passed; what it means is known to the package alone.
    """
    given = dict(spec.engine_options)
    tree: Tree = {
        "tensor_parallel_size": spec.tp,
        "pipeline_parallel_size": spec.pp,
        "kv_cache_config": {"dtype": spec.kv_cache_dtype},
        "return_perf_metrics": True,
    }
    if spec.ep != 1:
        tree["moe_expert_parallel_size"] = spec.ep
    values = {name: given.get(name, option.default) for name, option in OPTIONS.items()}
    checked = {name: _checked(name, OPTIONS[name], value) for name, value in values.items() if value is not None}
    _check_together(given)
    for name, value in checked.items():
        _put(tree, OPTIONS[name].path, value)
    for name, value in given.items():
        if name not in OPTIONS:
            _check_passed(name)
            _put(tree, name, value)
    return tree


def _checked(name: str, option: Option, value: Scalar) -> Any:
    wrong = f"engine option {name}={value!r}"
    # bool is an int: max_batch_size=True is a mistake, not a batch of one.
    fits = isinstance(value, (int, float)) if option.kind is float else isinstance(value, option.kind)
    if not fits or isinstance(value, bool) is not (option.kind is bool):
        wanted = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}[option.kind]
        raise EngineError(f"{wrong}: expected {wanted} ({option.meaning})")
    if isinstance(value, str):
        items = value.split(",") if option.is_list else [value]
        for item in items:
            if not item or (option.values and item not in option.values):
                raise EngineError(f"{wrong}.\n{choices(item, option.values or ('a name',), what='Values')}")
        if name == "speculative":
            return DECODING[value]
        return items if option.is_list else value
    if option.kind in (int, float) and not option.minimum <= float(value or 0) <= option.maximum:
        upper = f" and at most {option.maximum:g}" if option.maximum != float("inf") else ""
        raise EngineError(f"{wrong}: at least {option.minimum:g}{upper} ({option.meaning})")
    if name == "cuda_graphs":
        # An object with its defaults is on, None is off.
        return {} if value else None
    return value


def _check_together(given: Mapping[str, Scalar]) -> None:
    kind = given.get("speculative")
    needs = [
        name for name in given if name in ("draft_model", "max_draft_len") or name.startswith("speculative_config.")
    ]
    if needs and kind is None:
        raise EngineError(f"engine option {needs[0]}: speculative= is missing. Name the kind: {', '.join(DECODING)}.")
    if kind in _NEED_DRAFT and not given.get("draft_model"):
        raise EngineError(f"engine option speculative={kind!r} needs a draft model: draft_model=folder or hub id.")
    if kind is not None and kind not in _NEED_DRAFT and given.get("draft_model"):
        raise EngineError(f"engine option draft_model: speculative={kind!r} takes none; it proposes tokens by itself.")
    if kind is not None and kind != "mtp" and not given.get("max_draft_len"):
        raise EngineError(f"engine option speculative={kind!r} needs max_draft_len=, the tokens proposed in one step.")
    graphs = [name for name in given if name.startswith(("cuda_graph_padding", "cuda_graph_max", "cuda_graph_config."))]
    if given.get("cuda_graphs") is False and graphs:
        raise EngineError(f"engine option {graphs[0]}: cuda_graphs=False switches CUDA graphs off. Keep one.")


def _check_passed(name: str) -> None:
    for path, instead in _OURS.items():
        if name == path or name.startswith(f"{path}."):
            raise EngineError(f"engine option {name!r} is not passed to TensorRT-LLM: say {instead}.")
    for known, option in OPTIONS.items():
        if name == option.path:
            raise EngineError(f"engine option {name!r} is called {known!r} here: {option.meaning}.")
    head, dot, _ = name.partition(".")
    objects = (*CONFIGS, "speculative_config")
    if head in objects and not dot:
        raise EngineError(f"engine option {name!r} is an object; set its fields by name: {name}.FIELD.")
    if dot and head not in objects:
        raise EngineError(
            f"unknown engine option {name!r} of the tensorrt_llm backend.\n{choices(head, objects, what='Objects')}"
        )


def _put(tree: Tree, path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    if value == {} and leaf in tree:
        return
    tree[leaf] = value
