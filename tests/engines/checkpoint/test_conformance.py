"""A checkpoint that is not what it claims is refused, with tensor, found and expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_inferperf.engines.checkpoint.conformance import check_checkpoint
from pytest_inferperf.engines.checkpoint.formats import FORMATS
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec

Build = Callable[..., tuple[EngineSpec, Path]]
Q = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


def drop(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    return change


def put(name: str, value: torch.Tensor) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(f"{Q}.weight"), f"{Q}.weight is missing; the source model .* has it"),
        (drop(f"{Q}.weight_scale"), f"model.safetensors: {Q}.weight_scale is missing; {Q}.weight needs it"),
        (drop(f"{Q}.input_scale"), f"{Q}.input_scale is missing"),
        (drop("model.norm.weight"), "model.norm.weight is missing; the source model"),
        (
            put(f"{Q}.weight", torch.zeros(128, 128).to(torch.float8_e4m3fn)),
            rf"{Q}.weight: found dtype F8_E4M3, expected U8 \(NVFP4\)",
        ),
        (
            put(f"{Q}.weight", torch.zeros(128, 128, dtype=torch.bfloat16)),
            rf"{Q}.weight: found dtype BF16, expected U8 \(NVFP4\): {Q} is not in exclude_modules",
        ),
        (
            put(f"{Q}.weight", torch.zeros(128, 128, dtype=torch.uint8)),
            rf"{Q}.weight: found shape \[128, 128\], expected \[128, 64\] for a linear of \[128, 128\]",
        ),
        (
            put(f"{Q}.weight_scale", torch.ones(128, 8)),
            f"model.safetensors: {Q}.weight_scale: found dtype F32, expected F8_E4M3",
        ),
        (
            put(f"{Q}.weight_scale", torch.ones(128, 4).to(torch.float8_e4m3fn)),
            rf"{Q}.weight_scale: found shape \[128, 4\], expected \[128, 8\]",
        ),
        (
            put(f"{Q}.weight_scale_2", torch.tensor(float("nan"))),
            "weight_scale_2: found nan, expected a positive number",
        ),
        (put(f"{Q}.input_scale", torch.tensor(0.0)), "input_scale: found 0.0, expected a positive number"),
        (
            put(f"{Q}.pre_quant_scale", torch.ones(128)),
            "pre_quant_scale: found dtype F32, expected no such tensor in NVFP4",
        ),
        (
            put("lm_head.weight", torch.zeros(320, 64, dtype=torch.uint8)),
            "lm_head.weight: found dtype U8, expected plain weights: lm_head is in exclude_modules",
        ),
    ],
)
def test_damaged_tensor_is_named(copied: Build, source: Path, change: Callable[[Tensors], None], message: str) -> None:
    spec, folder = copied("NVFP4")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(folder, spec, source=source)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_nvfp4_in_name_only_is_refused(copied: Build, dtype: torch.dtype) -> None:
    # The shape of ModelOpt issue 868: the configuration says NVFP4, every weight is of another type.
    spec, folder = copied("NVFP4")
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        tensors[name] = torch.zeros(rows, columns * 2).to(dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"found dtype (F8_E4M3|BF16), expected U8 \(NVFP4\)"):
        check_checkpoint(folder, spec)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_configurations_must_agree(copied: Build) -> None:
    spec, folder = copied("NVFP4")
    edit(folder / "config.json", lambda data: data["quantization_config"].update(quant_algo="FP8"))
    with pytest.raises(
        CheckpointError, match=r"quant_algo is 'NVFP4' in hf_quant_config\.json and 'FP8' in config\.json"
    ):
        check_checkpoint(folder, spec)
    edit(folder / "config.json", lambda data: data.pop("quantization_config"))
    with pytest.raises(CheckpointError, match=r"hf_quant_config.json describes a quantization, config.json does not"):
        check_checkpoint(folder, spec)


def test_extra_excluded_module_is_refused(copied: Build) -> None:
    spec, folder = copied("NVFP4")
    for name, section, key in (
        ("hf_quant_config.json", "quantization", "exclude_modules"),
        ("config.json", "quantization_config", "ignore"),
    ):
        data = json.loads((folder / name).read_text())
        data[section][key].append("model.layers.0.router")
        (folder / name).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"exclude_modules lists 'model\.layers\.0\.router', which is not"):
        check_checkpoint(folder, spec)


def test_other_format_than_asked_for_is_refused(built: Build) -> None:
    _, folder = built("FP8", "fp8")
    with pytest.raises(CheckpointError, match="quant_algo is 'FP8', but quant='NVFP4' means 'NVFP4'"):
        check_checkpoint(folder, EngineSpec(model="m", served_model_name="m", quant="NVFP4"))
    spec = EngineSpec(model="m", served_model_name="m", quant="FP8", kv_cache_dtype="nvfp4")
    with pytest.raises(CheckpointError, match="kv_cache_quant_algo is 'FP8', but kv_cache_dtype='nvfp4'"):
        check_checkpoint(folder, spec)


def test_missing_kv_scale_is_named(copied: Build, source: Path) -> None:
    spec, folder = copied("FP8", "fp8")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.v_proj.v_scale"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.v_proj\.v_scale is missing"):
        check_checkpoint(folder, spec, source=source)


def test_file_cut_short_is_refused(copied: Build) -> None:
    spec, folder = copied("NVFP4")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors: not a whole safetensors file \(.* ends at byte"):
        check_checkpoint(folder, spec)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        check_checkpoint(folder, spec)


@pytest.mark.parametrize(
    ("quant", "bits"),
    [("FP8", 8.0), ("NVFP4", 4.5), ("W4A16_NVFP4", 4.5), ("W4A8_NVFP4_FP8", 4.25), ("INT4_AWQ", 4.25)],
)
def test_bits_per_parameter_are_those_of_the_format(built: Build, quant: str, bits: float) -> None:
    spec, folder = built(quant, "nvfp4" if quant == "W4A16_NVFP4" else "auto")
    checked = check_checkpoint(folder, spec)
    assert checked.bits_per_parameter == pytest.approx(bits, rel=0.01)
    assert checked.config.quant_algo in FORMATS
