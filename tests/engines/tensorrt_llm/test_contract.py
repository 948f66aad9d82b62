"""The contract with the package: what each spec passes, and that no argument can be renamed unseen.

`contract` is the whole of it: it opens an engine for every spec below on the strict stand-in, uses it, and compares what
came back. The mutation test renames every argument and field that the backend names, one at a time, and the contract
must fail each time.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from pytest_inferperf.engines.interface import GenerationRequest, LogLikelihoodRequest
from pytest_inferperf.engines.tensorrt_llm import options as options_module
from pytest_inferperf.engines.tensorrt_llm.options import OPTIONS
from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.validity import check_engine
from pytest_inferperf.model.case import EngineSpec
from tests.engines.tensorrt_llm.conftest import VERSIONS, Install, loaded_once, spec_of
from tests.engines.trtllm_stand_in.tensorrt_llm import table

DRAFT = "org/draft"

SPECS: dict[str, tuple[EngineSpec, dict[str, Any]]] = {
    "8B smoke on one GPU": (
        spec_of("NVFP4", "fp8"),
        {"tensor_parallel_size": 1, "kv_cache_config.dtype": "fp8", "kv_cache_config.enable_block_reuse": False},
    ),
    "DeepSeek-R1 NVFP4, maximum throughput": (
        spec_of("NVFP4", tp=8, ep=8, attention_dp=True, max_batch_size=1024, max_num_tokens=8192, memory_fraction=0.8),
        {
            "tensor_parallel_size": 8,
            "moe_expert_parallel_size": 8,
            "enable_attention_dp": True,
            "max_batch_size": 1024,
            "max_num_tokens": 8192,
            "enable_chunked_prefill": False,
            "kv_cache_config.free_gpu_memory_fraction": 0.8,
            "return_perf_metrics": True,
        },
    ),
    "DeepSeek-R1 FP8, one user, MTP": (
        spec_of("FP8", tp=8, ep=2, speculative="mtp", max_draft_len=3, moe_backend="TRTLLM", max_seq_len=256),
        {
            "moe_expert_parallel_size": 2,
            "speculative_config.decoding_type": "MTP",
            "speculative_config.max_draft_len": 3,
            "moe_config.backend": "TRTLLM",
            "max_seq_len": 256,
        },
    ),
    "Llama 3.1 405B NVFP4": (
        spec_of("NVFP4", "fp8", tp=4, pp=2, scheduler_policy="MAX_UTILIZATION", chunked_prefill=True),
        {
            "tensor_parallel_size": 4,
            "pipeline_parallel_size": 2,
            "scheduler_config.capacity_scheduler_policy": "MAX_UTILIZATION",
            "enable_chunked_prefill": True,
        },
    ),
    "Maverick FP8, EAGLE-3": (
        spec_of("FP8", "fp8", tp=8, ep=8, speculative="eagle3", draft_model=DRAFT, max_draft_len=3, stream_interval=2),
        {"speculative_config.speculative_model": DRAFT, "speculative_config.max_draft_len": 3, "stream_interval": 2},
    ),
    "draft model": (
        spec_of(speculative="draft_target", draft_model=DRAFT, max_draft_len=4, orchestrator="rpc"),
        {"speculative_config.decoding_type": "Draft_Target", "orchestrator_type": "rpc"},
    ),
    "n-grams": (
        spec_of(
            speculative="ngram",
            max_draft_len=2,
            **{
                "speculative_config.max_matching_ngram_size": 3,
                "speculative_config.max_concurrency": 8,
                "speculative_config.acceptance_window": 16,
                "speculative_config.acceptance_length_threshold": 1.5,
            },
        ),
        {
            "speculative_config.max_matching_ngram_size": 3,
            "speculative_config.max_concurrency": 8,
            "speculative_config.acceptance_window": 16,
            "speculative_config.acceptance_length_threshold": 1.5,
        },
    ),
    "CUDA graphs padded": (
        spec_of(
            cuda_graphs=True, cuda_graph_padding=True, cuda_graph_max_batch_size=64, attention_backend="FLASHINFER"
        ),
        {
            "cuda_graph_config.enable_padding": True,
            "cuda_graph_config.max_batch_size": 64,
            "attn_backend": "FLASHINFER",
        },
    ),
    "no CUDA graphs": (spec_of(cuda_graphs=False), {"cuda_graph_config": None}),
    "passed by name": (
        spec_of(
            enable_autotuner=False,
            block_reuse=True,
            **{
                "kv_cache_config.tokens_per_block": 64,
                "torch_compile_config.enable_inductor": True,
                "attention_dp_config.enable_balance": True,
            },
        ),
        {
            "enable_autotuner": False,
            "kv_cache_config.enable_block_reuse": True,
            "kv_cache_config.tokens_per_block": 64,
            "torch_compile_config.enable_inductor": True,
            "attention_dp_config.enable_balance": True,
        },
    ),
}
"""Name to a spec, as the suites need it, and arguments that must have come through, by dotted path."""

ONLY_NEW: dict[str, tuple[EngineSpec, dict[str, Any]]] = {
    "NVFP4 kernels": (
        spec_of("NVFP4", nvfp4_gemm_backends="cutlass,cutedsl"),
        {"nvfp4_gemm_config.allowed_backends": ["cutlass", "cutedsl"]},
    )
}

OLD_NAMES = {"speculative_config.speculative_model": "speculative_config.speculative_model_dir"}


def given(llm: Any, path: str) -> Any:
    """Return an argument as `LLM` was given it."""
    head, *rest = path.split(".")
    value = llm.given[head]
    for name in rest:
        value = getattr(value, name)
    return value.name if hasattr(value, "name") else value


def contract(engine_module: ModuleType, package: Any, checkpoints: dict[str, Path], *, old: bool) -> None:
    """Raise unless the backend keeps every promise to the package, and the package's answers come through."""
    for name, (spec, expected) in {**SPECS, **({} if old else ONLY_NEW)}.items():
        engine = engine_module.TensorrtLlmEngine(spec, checkpoint=str(checkpoints[spec.quant]))
        with engine:
            llm = package.LLM.made[-1]
            for path, value in expected.items():
                spelled = OLD_NAMES.get(path, path) if old else path
                if not (old and path == "speculative_config.decoding_type"):
                    assert given(llm, spelled) == value, (name, path)
            wanted = dict(spec.engine_options)
            recorded = {item: engine.info.options[item] for item in wanted}
            assert recorded == wanted, name
            assert check_engine(spec, engine.info) == "", name
            assert engine.info.quant_algo == (None if spec.quant == "BF16" else spec.quant)
            assert engine.info.kv_cache_quant_algo == llm.args.quant_config.kv_cache_quant_algo
            assert engine.info.compute_dtype == "bfloat16"
            assert engine.info.max_model_len == wanted.get("max_seq_len", 512)
            speculates = "speculative" in wanted
            for figure in ("max_concurrency", "acceptance_length_threshold", "acceptance_window"):
                assert (f"speculative_config.{figure}" in engine.info.options) == speculates
            limits = (llm.args.max_num_tokens, llm.args.enable_chunked_prefill)
            assert (engine._max_num_tokens, engine._chunked) == limits
            use(engine, llm, speculates=speculates, scores=not wanted.get("block_reuse"))
        assert llm.closed
    for name in DECIDED:
        with pytest.raises(EngineError, match="is not passed to TensorRT-LLM"):
            engine_module.arguments_of(spec_of(**{name: 1}))

    bad = spec_of(**{"kv_cache_config.tokens_per_blok": 64})
    with pytest.raises(EngineError, match=r"unknown engine option .*Nearest: kv_cache_config\.tokens_per_block"):
        engine_module.TensorrtLlmEngine(bad, checkpoint=str(checkpoints["BF16"]))
    with engine_module.TensorrtLlmEngine(spec_of(), checkpoint=str(checkpoints["BF16"])) as engine:
        request = GenerationRequest(prompt=(10, 11), max_tokens=6, ignore_eos=True)
        for fault, message in FAULTS.items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TRTLLM_STAND_IN", fault)
                with pytest.raises(EngineError, match=message):
                    engine.generate([request], concurrency=1)
    served = sys.modules["pytest_inferperf.engines.tensorrt_llm.versions"].served_speculation
    assert served({"decoding_type": "Eagle3", "speculative_model": "d", "max_draft_len": 2}) == {
        "decoding_type": "Eagle",
        "speculative_model_dir": "d",
        "max_draft_len": 2,
    }
    assert served({"decoding_type": "MTP", "max_draft_len": 2}) == {
        "decoding_type": "MTP",
        "num_nextn_predict_layers": 2,
    }
    assert served({"decoding_type": "MTP"}) == {"decoding_type": "MTP"}


FAULTS = {
    "failing": "CUDA error",
    "truncating": "read 1 prompt tokens where 2 were sent",
    "silent": r"without a token \(finish_reason None\)",
    "two_outputs": "gave 2 outputs",
    "short": "after 3 of 6 tokens",
}

DECIDED = (
    *("model", "tokenizer", "tensor_parallel_size", "pipeline_parallel_size", "moe_expert_parallel_size"),
    *("kv_cache_config.dtype", "quant_config", "quant_config.quant_algo", "return_perf_metrics", "backend"),
    "telemetry_config.disabled",
)
"""Arguments that the mark or the backend decides, never an option."""


def use(engine: Any, llm: Any, *, speculates: bool, scores: bool) -> None:
    request = GenerationRequest(prompt=(10, 11), max_tokens=6, ignore_eos=True)
    ends = GenerationRequest(prompt=(255,), max_tokens=6, temperature=0.5, top_p=0.5, seed=7)
    answer, ended = engine.generate([request, ends], concurrency=2)
    assert answer.token_ids == (12, 13, 14, 15, 16, 17)
    assert ended.token_ids == (256, 257)
    assert (answer.engine_ttft_s, answer.engine_latency_s) == (0.25, 2.0)
    assert answer.decoding_steps is not None or not speculates
    assert not speculates or answer.decoding_steps < 6
    first, second = llm.requests[0].given, llm.requests[1].given
    assert (first["top_k"], second["top_p"], second["seed"]) == (1, 0.5, 7)
    assert all(item["detokenize"] is False for item in (first, second))
    assert tuple(token for chunk in engine.stream(request) for token in chunk.token_ids) == answer.token_ids
    text = engine.decode([answer.token_ids])[0]
    aborted = llm.aborted
    (stopped,) = engine.generate(
        [GenerationRequest(prompt=(10, 11), max_tokens=60, ignore_eos=True, stop=(text[3:5],))], concurrency=1
    )
    assert (stopped.text, stopped.finish_reason, llm.aborted) == (text[:3], "stop", aborted + 1)
    if scores:
        (score,) = engine.loglikelihood([LogLikelihoodRequest(context=(10,), continuation=(11, 12))], concurrency=1)
        assert score.is_greedy
        assert llm.requests[-1].given["top_k"] == 1
        assert llm.requests[-1].given["detokenize"] is False


FOLDER = Path(inspect.getfile(options_module)).parent
MODULES = ("options", "versions", "readback", "answers", "engine")
"""In the order in which they import each other."""

NAMES = {
    *table.ARGS,
    *table.SAMPLING,
    *(field for fields in (*table.OLD.values(), *table.NEW.values()) for field in fields),
    *("inputs", "sampling_params", "streaming"),
    *("outputs", "token_ids", "finish_reason", "prompt_logprobs", "request_perf_metrics", "prompt_token_ids", "error"),
    *("avg_decoded_tokens_per_iter", "speculative_decoding", "total_draft_tokens", "total_accepted_draft_tokens"),
    *("finished", "shutdown", "abort", "args", "generate_async"),
    *("timing_metrics", "arrival_time", "first_token_time", "last_token_time", "logprob", "rank"),
    *("quant_config", "quant_algo", "kv_cache_quant_algo", "LLM", "SamplingParams", "TorchLlmArgs", "model_fields"),
    *table.OLD,
    *table.NEW,
} - {"stop"}
"""Every name of the package's API that could stand in the backend; `stop` is also a reason to finish."""

OPTION_NAMES = {"OPTIONS", "_RECORDED"}
"""Tables whose keys, or items, are names of our options, some of which are called as the argument is."""

OPTION_CHECKS = {"_check_together", "_checked"}
"""Functions that are about our options alone."""

OWN_VALUES = {"request", "spec", "self", "item"}
"""What holds values of ours, whose fields may be called as theirs are."""


def names_of_ours(tree: ast.Module) -> set[int]:
    """Find the nodes that name our options, or are documentation."""
    found = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        for target in targets:
            if isinstance(target, ast.Name) and target.id in OPTION_NAMES:
                table_of_ours = node.value  # type: ignore[attr-defined]
                keys = table_of_ours.keys if isinstance(table_of_ours, ast.Dict) else table_of_ours.elts
                found |= {id(key) for key in keys}
        if isinstance(node, ast.FunctionDef) and node.name in OPTION_CHECKS:
            found |= {id(inner) for inner in ast.walk(node)}
    return found


def mutations(module: str) -> Iterator[tuple[str, CodeType]]:
    """Yield a module with one name of the package changed, and where, for every place and every part of a path."""
    source = (FOLDER / f"{module}.py").read_text()
    tree = ast.parse(source)
    ours = names_of_ours(tree)
    for node in ast.walk(tree):
        if id(node) in ours:
            continue
        where = f"{module}.py:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            path = node.value
            for part in range(path.count(".") + 1) if all(name in NAMES for name in path.split(".")) else ():
                names = path.split(".")
                names[part] += "x"
                node.value = ".".join(names)
                yield f"{where} {node.value!r}", compile(tree, f"{module}.py", "exec")
                node.value = path
        elif isinstance(node, ast.Attribute) and node.attr in NAMES and isinstance(node.ctx, ast.Load):
            if not (isinstance(node.value, ast.Name) and node.value.id in OWN_VALUES):
                name = node.attr
                node.attr += "x"
                yield f"{where} .{node.attr}", compile(tree, f"{module}.py", "exec")
                node.attr = name
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("LLM", "sampling", "generate_async"):
            for keyword in node.keywords:
                if keyword.arg is not None:
                    argument, keyword.arg = keyword.arg, f"{keyword.arg}x"
                    yield f"{where} {keyword.arg}=", compile(tree, f"{module}.py", "exec")
                    keyword.arg = argument


def fresh(code: dict[str, CodeType], patch: pytest.MonkeyPatch) -> ModuleType:
    """Run the backend's modules from code; return the engine's."""
    for name in MODULES:
        full = f"pytest_inferperf.engines.tensorrt_llm.{name}"
        module = ModuleType(full)
        patch.setitem(sys.modules, full, module)
        exec(code[name], module.__dict__)  # the backend's own source, with one name changed
    engine = sys.modules["pytest_inferperf.engines.tensorrt_llm.engine"]
    patch.setattr(engine, "Tokenizer", loaded_once)
    return engine


@pytest.mark.parametrize("version", VERSIONS)
def test_every_spec_keeps_the_contract(
    install: Install, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    package = install(version)
    code = {name: compile((FOLDER / f"{name}.py").read_text(), f"{name}.py", "exec") for name in MODULES}
    contract(fresh(code, monkeypatch), package, checkpoints, old=version == VERSIONS[0])


@pytest.mark.parametrize("module", MODULES)
def test_no_argument_can_be_renamed_unseen(install: Install, checkpoints: dict[str, Path], module: str) -> None:
    code = {name: compile((FOLDER / f"{name}.py").read_text(), f"{name}.py", "exec") for name in MODULES}
    survivors, count = [], 0
    for where, changed in mutations(module):
        count += 1
        seen = False
        for version in reversed(VERSIONS):
            package = install(version)
            with pytest.MonkeyPatch.context() as patch:
                try:
                    contract(fresh({**code, module: changed}, patch), package, checkpoints, old=version == VERSIONS[0])
                except (Exception, pytest.fail.Exception):
                    seen = True
                    break
        if not seen:
            survivors.append(where)
    assert not survivors, "\n".join(survivors)
    assert count >= 10


def test_every_option_is_in_a_spec_of_the_contract() -> None:
    used = {name for spec, _ in (*SPECS.values(), *ONLY_NEW.values()) for name, _ in spec.engine_options}
    assert set(OPTIONS) <= used


if importlib.util.find_spec("tensorrt_llm") is not None:

    def test_table_is_that_of_the_package() -> None:
        """On a machine with the real TensorRT-LLM, its own signatures are compared with the stand-in's."""
        llm_args = importlib.import_module("tensorrt_llm.llmapi.llm_args")
        for name in options_module.CONFIGS.values():
            assert set(table.NEW[name]) <= set(getattr(llm_args, name).model_fields), name
        assert set(table.ARGS) <= set(llm_args.TorchLlmArgs.model_fields)
