"""Build one quantized checkpoint: load, calibrate, quantize with ModelOpt, export. Runs in a process of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_inferperf.engines.checkpoint.conformance import check_checkpoint
from pytest_inferperf.engines.checkpoint.device import check_device
from pytest_inferperf.engines.checkpoint.quiet import import_modelopt, quiet
from pytest_inferperf.engines.checkpoint.sources import read_json
from pytest_inferperf.engines.checkpoint.texts import read_texts
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import CheckpointError, choices
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, QAT, QUANTIZATIONS

if TYPE_CHECKING:
    import torch

__all__ = ["build_checkpoint", "config_name", "quantization_config", "read_calibration"]

MAX_CALIBRATION_TOKENS = 2048
"""Longer calibration texts are cut: calibration needs typical activations, not whole documents."""

CALIBRATION_BATCH = 16


def config_name(spec: EngineSpec) -> str:
    """Name the ModelOpt configuration that `spec` asks for."""
    if spec.recipe and spec.recipe != QAT:
        return spec.recipe
    row = QUANTIZATIONS.get(spec.quant)
    return spec.quant if row is None else row.modelopt_config or ""


def quantization_config(spec: EngineSpec) -> dict[str, Any]:
    """Return ModelOpt's configuration for `spec`, KV cache included, runnable on this machine.

    Raises `CheckpointError` for a name ModelOpt does not know.
    """
    import torch

    from pytest_inferperf.engines.checkpoint import nvfp4_reference

    mtq = import_modelopt()

    name = config_name(spec)
    known = sorted(mtq.config.choices)
    if name not in known:
        keyword = "recipe" if spec.recipe and spec.recipe != QAT else "quant"
        raise CheckpointError(
            f"{keyword}={name!r} is not a configuration of the installed ModelOpt.\n"
            f"{choices(name, known, what='ModelOpt configurations')}"
        )
    config: dict[str, Any] = {**getattr(mtq, name)}
    config["quant_cfg"] = list(config["quant_cfg"])
    kv_config = KV_CACHE_DTYPES[spec.kv_cache_dtype].modelopt_config
    if kv_config is not None:
        config["quant_cfg"] += list(getattr(mtq, kv_config)["quant_cfg"])
    if not torch.cuda.is_available():
        nvfp4_reference.install()
        config = nvfp4_reference.with_backend(config)
    return config


def read_calibration(path: str, size: int) -> list[str]:
    """Read the first `size` texts of a JSONL calibration file, each after its prompt where it has one.

    Raises `CheckpointError` naming the file and the line.
    """
    return [item.prompt + item.text for item in read_texts(path, keyword="calib_dataset", size=size)]


def build_checkpoint(spec: EngineSpec, *, source: Path, destination: Path, progress: Progress) -> None:
    """Quantize the model in `source` as `spec` says and export it into `destination`, tokenizer included.

    Raises `CheckpointError` when the export is not what `spec` asked for, and for another device than the cache files it
    under.
    """
    import torch

    check_device("cuda" if torch.cuda.is_available() else "cpu", torch=torch.__version__)
    mtq = import_modelopt()

    label = f"quantize {spec.served_model_name} {spec.precision}"
    with quiet():
        config = quantization_config(spec)
        calibrates = mtq.config.need_calibration(config)
    if calibrates and not spec.calib_dataset:
        raise CheckpointError(
            f"{config_name(spec)}{_with_kv(spec)} needs calibration data: give the inferperf mark calib_dataset=, "
            f'a JSONL file with one {{"text": "…"}} per line'
        )
    texts = read_calibration(spec.calib_dataset, spec.calib_size) if calibrates else []
    trains = spec.recipe == QAT
    lessons = read_texts(spec.qat_dataset, keyword="qat_dataset") if trains else []
    progress(f"{label}: loading {source}")
    model, tokenizer, dtype = _load(source, wide=trains)
    batches = _batches(tokenizer, texts, limit=_limit(model)) if texts else []

    def calibrate(quantized: torch.nn.Module) -> None:
        done = 0
        for batch in batches:
            quantized(torch.tensor(batch, device=model.device), use_cache=False)
            done += len(batch)
            progress(f"{label}: calibrating {done}/{len(texts)}")

    with quiet():
        mtq.quantize(model, config, forward_loop=calibrate if batches else None)
        if trains:
            from pytest_inferperf.engines.checkpoint.finetune import finetune

            finetune(
                model,
                tokenizer,
                lessons,
                steps=spec.qat_steps,
                learning_rate=spec.qat_learning_rate,
                limit=_limit(model),
                progress=lambda line: progress(f"{label}: {line}"),
            )
        excluded = _excluded(model)
        progress(f"{label}: exporting")
        _export(model, dtype, destination)
    tokenizer.save_pretrained(str(destination))
    _copy_side_files(source, destination)
    check_checkpoint(destination, spec, source=source)
    listed = read_json(destination / "hf_quant_config.json")["quantization"].get("exclude_modules") or []
    unlisted = [name for name in excluded if not _listed(name, listed)]
    if unlisted:
        raise CheckpointError(
            f"{destination / 'hf_quant_config.json'}: {unlisted[0]} was not quantized but is missing in exclude_modules"
        )


def _with_kv(spec: EngineSpec) -> str:
    return "" if spec.kv_cache_dtype == "auto" else f" with kv_cache_dtype={spec.kv_cache_dtype!r}"


def _listed(name: str, patterns: list[str]) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _load(source: Path, *, wide: bool) -> tuple[Any, Any, torch.dtype]:
    """Load model and tokenizer, the model in float32 on a CPU: many CPUs have no fast bfloat16.

    `wide` takes float32 anywhere: in bfloat16 the small steps of training are rounded away.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        stored = config.dtype or torch.bfloat16
        cuda = torch.cuda.is_available()
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=stored if cuda and not wide else torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                device_map="cuda" if cuda else None,
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers, safetensors and tokenizers each raise their own
        raise CheckpointError(f"cannot load {source}: {type(error).__name__}: {error}") from error
    model.train(False)
    if not cuda:
        torch.set_num_threads(threads_for(sum(item.numel() for item in model.parameters())))
    return model, tokenizer, stored


def threads_for(parameters: int) -> int:
    """Choose a thread count: the layers of a small model are too short to share, and waiting for each other costs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if parameters < 20_000_000 else cores


def _limit(model: Any) -> int:
    return min(MAX_CALIBRATION_TOKENS, int(getattr(model.config, "max_position_embeddings", MAX_CALIBRATION_TOKENS)))


def _batches(tokenizer: Any, texts: list[str], *, limit: int) -> list[list[list[int]]]:
    """Group texts of equal length, so that no padding token reaches the statistics."""
    by_length: dict[int, list[list[int]]] = {}
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])[:limit]
        if ids:
            by_length.setdefault(len(ids), []).append(ids)
    return [
        group[start : start + CALIBRATION_BATCH]
        for _, group in sorted(by_length.items())
        for start in range(0, len(group), CALIBRATION_BATCH)
    ]


def _excluded(model: torch.nn.Module) -> list[str]:
    """Names of the linear layers whose weights stay as they are."""
    return [
        name
        for name, module in model.named_modules()
        if hasattr(module, "weight_quantizer")
        and type(module).__name__.endswith("Linear")
        and not _is_enabled(module.weight_quantizer)
    ]


def _is_enabled(quantizer: Any) -> bool:
    # W4A8_AWQ chains two quantizers in a list-like module, which has no switch of its own.
    parts = quantizer if hasattr(quantizer, "__iter__") else [quantizer]
    return any(part.is_enabled for part in parts)


def _export(model: Any, dtype: torch.dtype, destination: Path) -> None:
    # Layers that are not quantized, and scales of activations before quantization, go to disk in the type of the source.
    # Quantizer statistics stay float32.
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dtype == torch.float32:
                setattr(module, name, torch.nn.Parameter(parameter.data.to(dtype), requires_grad=False))
        scale = getattr(module, "_pre_quant_scale", None)
        if isinstance(scale, torch.Tensor):
            module._pre_quant_scale = scale.to(dtype)
    model.config.dtype = dtype
    try:
        export_hf_checkpoint(model, dtype=dtype, export_dir=str(destination))
    except (NotImplementedError, AssertionError, ValueError, RuntimeError) as error:
        if isinstance(error.__cause__, OSError) or "No space left" in str(error):
            raise OSError(28, "No space left on device") from error
        raise CheckpointError(f"ModelOpt cannot export this model: {type(error).__name__}: {error}") from error


def _copy_side_files(source: Path, destination: Path) -> None:
    for name in ("generation_config.json", "chat_template.jinja"):
        if (source / name).is_file() and not (destination / name).exists():
            shutil.copyfile(source / name, destination / name)
