"""What can be said of a spec before a GPU is asked for: options, heads, context, draft model, and the checkpoint's own format."""

from __future__ import annotations

from pathlib import Path

from pytest_inferperf.engines.checkpoint.conformance import read_quant_config
from pytest_inferperf.engines.checkpoint.shape import read_shape
from pytest_inferperf.engines.checkpoint.sources import is_quantized
from pytest_inferperf.engines.tensorrt_llm.options import arguments_of
from pytest_inferperf.engines.tensorrt_llm.served import without_own
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec, Workload
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, QUANTIZATIONS

__all__ = ["check_spec"]


def check_spec(spec: EngineSpec, workload: Workload | None, *, folder: Path | None) -> str:
    """Say why TensorRT-LLM could not run a case; "" where nothing is known against it.

    `folder` is the model's, None for a hub id, whose config.json is not at hand. Raises `EngineError` for a wrong option,
    `CheckpointError` for a config.json that cannot be read.
    """
    arguments_of(without_own(spec) if spec.serve else spec)
    options = dict(spec.engine_options)
    found = [_draft_problem(options.get("draft_model"), spec), _length_problem(options.get("max_seq_len"), workload)]
    if folder is not None:
        shape = read_shape(folder)
        if shape.heads and shape.heads % spec.tp and not options.get("attention_dp"):
            found.append(f"tp={spec.tp} does not divide the model's {shape.heads} attention heads")
        wanted = _longest(workload) if workload is not None else 0
        limit = options.get("max_seq_len")
        for name, tokens in (("isl + osl", wanted), ("max_seq_len", limit if isinstance(limit, int) else 0)):
            if shape.max_position and tokens > shape.max_position:
                found.append(f"{name} = {tokens} tokens are more than the model's context of {shape.max_position}")
        found.append(_format_problem(spec, folder))
    return next(filter(None, found), "")


def _draft_problem(draft: object, spec: EngineSpec) -> str:
    if not isinstance(draft, str):
        return ""
    path = Path(draft).expanduser()
    looks_local = path.is_absolute() or draft.startswith((".", "~")) or draft.count("/") != 1
    if path.is_dir() and not (path / "config.json").is_file():
        return f"draft_model={draft!r}: no config.json; give a Hugging Face folder"
    if looks_local and not path.is_dir():
        return f"draft_model={draft!r}: no such folder; give a folder, or a hub id such as 'org/name'"
    if str(path) == spec.model:
        return f"draft_model={draft!r} is the model itself"
    return ""


def _length_problem(limit: object, workload: Workload | None) -> str:
    if workload is None or workload.file or not isinstance(limit, int) or _longest(workload) <= limit:
        # What a file holds is checked request by request: its tokens are not known yet.
        return ""
    return f"isl + osl = {_longest(workload)} tokens are more than max_seq_len={limit}"


def _longest(workload: Workload) -> int:
    return workload.input_lengths.largest + workload.output_lengths.largest


def _format_problem(spec: EngineSpec, folder: Path) -> str:
    """Compare a checkpoint that is quantized already with what the case says it is."""
    if not is_quantized(folder):
        return ""
    try:
        config = read_quant_config(folder)
    except CheckpointError as error:
        return str(error)
    row = QUANTIZATIONS.get(spec.quant)
    if row is not None and config.quant_algo != row.quant_algo:
        return f"the checkpoint {folder} is {config.quant_algo}, and quant={spec.quant!r} means {row.quant_algo}"
    wanted = KV_CACHE_DTYPES[spec.kv_cache_dtype].kv_cache_quant_algo
    if wanted is not None and config.kv_cache_quant_algo != wanted:
        return (
            f"the checkpoint {folder} has scales for a KV cache of {config.kv_cache_quant_algo or 'no quantization'}, and "
            f"kv_cache_dtype={spec.kv_cache_dtype!r} needs {wanted}"
        )
    return ""
