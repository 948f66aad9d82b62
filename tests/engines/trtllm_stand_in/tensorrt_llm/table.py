"""The public API of TensorRT-LLM as its source has it: callable to parameters and defaults, for two releases.

`OLD` is what the stable release 1.2.1 may still spell by its older names, read in the worst way; `NEW` is 1.4.0rc1. Where
the real package is importable, `test_table_is_that_of_the_package` compares.
"""

from __future__ import annotations

from typing import Any

REQUIRED = object()

LLM: dict[str, Any] = {
    "model": REQUIRED,
    "tokenizer": None,
    "tokenizer_mode": "auto",
    "skip_tokenizer_init": False,
    "trust_remote_code": False,
    "tensor_parallel_size": 1,
    "dtype": "auto",
    "revision": None,
    "tokenizer_revision": None,
}
"""The named parameters of `LLM`; every other keyword is a field of `TorchLlmArgs`."""

ARGS: dict[str, Any] = {
    **LLM,
    "pipeline_parallel_size": 1,
    "context_parallel_size": 1,
    "moe_tensor_parallel_size": None,
    "moe_expert_parallel_size": None,
    "moe_cluster_parallel_size": None,
    "enable_attention_dp": False,
    "attention_dp_config": None,
    "gpus_per_node": None,
    "max_batch_size": 2048,
    "max_input_len": 1024,
    "max_seq_len": None,
    "max_beam_width": 1,
    "max_num_tokens": 8192,
    "enable_chunked_prefill": False,
    "kv_cache_config": None,
    "attn_backend": "TRTLLM",
    "moe_config": None,
    "nvfp4_gemm_config": None,
    "enable_autotuner": True,
    "torch_compile_config": None,
    "cuda_graph_config": "CudaGraphConfig",
    "allreduce_strategy": "AUTO",
    "scheduler_config": None,
    "disable_overlap_scheduler": False,
    "stream_interval": 1,
    "sampler_type": "auto",
    "load_format": "auto",
    "force_dynamic_quantization": False,
    "env_overrides": None,
    "return_perf_metrics": False,
    "perf_metrics_max_requests": 0,
    "enable_iter_perf_stats": False,
    "enable_iter_req_stats": False,
    "iter_stats_max_iterations": None,
    "gather_generation_logits": False,
    "speculative_config": None,
    "orchestrator_type": None,
    "print_iter_log": False,
    "backend": None,
    "telemetry_config": None,
}

KV_CACHE: dict[str, Any] = {
    "dtype": "auto",
    "free_gpu_memory_fraction": 0.9,
    "enable_block_reuse": True,
    "max_tokens": None,
    "tokens_per_block": 32,
    "enable_partial_reuse": True,
    "copy_on_partial_reuse": True,
    "host_cache_size": None,
    "event_buffer_max_size": 0,
    "max_attention_window": None,
}

_SPECULATION: dict[str, Any] = {
    "decoding_type": REQUIRED,
    "max_draft_len": None,
    "max_concurrency": None,
    "acceptance_window": None,
    "acceptance_length_threshold": None,
}
_EAGLE = {"eagle3_one_model": True, "eagle3_layers_to_capture": None}
_MTP = {"mtp_eagle_one_model": True, "use_mtp_vanilla": False, "use_relaxed_acceptance_for_thinking": False}
_NGRAM = {"max_matching_ngram_size": 2, "is_keep_all": True, "is_use_oldest": True, "is_public_pool": True}


def _configs(draft_model: str, layers: int | None, eagle: tuple[str, str], **extra: Any) -> dict[str, dict[str, Any]]:
    base = {**_SPECULATION, draft_model: None}
    return {
        "KvCacheConfig": KV_CACHE,
        "MoeConfig": {"backend": "AUTO", "max_num_tokens": None, "load_balancer": None},
        "SchedulerConfig": {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT", "context_chunking_policy": None},
        "CudaGraphConfig": {"batch_sizes": None, "max_batch_size": 0, "enable_padding": False},
        "TorchCompileConfig": {"enable_fullgraph": True, "enable_inductor": False},
        "AttentionDpConfig": {"enable_balance": False, "timeout_iters": 50, "batching_wait_iters": 10},
        eagle[0]: {**base, **_EAGLE, "decoding_type": eagle[1]},
        "MTPDecodingConfig": {**base, **_MTP, "decoding_type": "MTP", "num_nextn_predict_layers": layers},
        "NGramDecodingConfig": {**base, **_NGRAM, "decoding_type": "NGram"},
        "DraftTargetDecodingConfig": {**base, "decoding_type": "Draft_Target"},
        **extra,
    }


OLD = _configs("speculative_model_dir", 1, ("EagleDecodingConfig", "Eagle"))
NEW = _configs(
    "speculative_model",
    None,
    ("Eagle3DecodingConfig", "Eagle3"),
    Nvfp4GemmConfig={"allowed_backends": ["cutlass", "cublaslt", "cuda_core"]},
)

VALUES: dict[str, tuple[str, ...]] = {
    "KvCacheConfig.dtype": ("auto", "fp8", "nvfp4", "bfloat16", "float16"),
    "MoeConfig.backend": (
        *("AUTO", "CUTLASS", "CUTEDSL", "WIDEEP", "TRTLLM", "DEEPGEMM", "DENSEGEMM", "VANILLA", "TRITON", "MARLIN"),
        "MEGAMOE_DEEPGEMM",
    ),
    "SchedulerConfig.capacity_scheduler_policy": ("MAX_UTILIZATION", "GUARANTEED_NO_EVICT", "STATIC_BATCH"),
    "Nvfp4GemmConfig.allowed_backends": ("cutlass", "cublaslt", "cutedsl", "cuda_core", "marlin"),
    "TorchLlmArgs.attn_backend": ("TRTLLM", "VANILLA", "FLASHINFER"),
    "TorchLlmArgs.orchestrator_type": ("rpc", "ray"),
}
"""`Class.field` to what it takes, besides its default."""

SAMPLING: dict[str, Any] = {
    "end_id": None,
    "pad_id": None,
    "max_tokens": 32,
    "stop": None,
    "stop_token_ids": None,
    "n": 1,
    "best_of": None,
    "use_beam_search": False,
    "top_k": None,
    "top_p": None,
    "seed": None,
    "temperature": None,
    "min_tokens": None,
    "logprobs": None,
    "prompt_logprobs": None,
    "return_context_logits": False,
    "return_generation_logits": False,
    "return_perf_metrics": False,
    "ignore_eos": False,
    "detokenize": True,
    "add_special_tokens": True,
    "truncate_prompt_tokens": None,
}
