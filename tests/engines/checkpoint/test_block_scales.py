"""DeepSeek's own FP8, with a scale for each block of weights: read as it is released, and refused where it is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.checkpoint.cache import ensure_checkpoint
from pytest_inferperf.engines.checkpoint.conformance import check_checkpoint, read_quant_config
from pytest_inferperf.engines.checkpoint.outlook import foresee_checkpoint
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec

SPEC = EngineSpec(model="m", served_model_name="m", quant="FP8_BLOCK_SCALES", backend="tensorrt_llm")
Q = "model.layers.0.self_attn.q_a_proj"
# The section as it stands in DeepSeek-R1's config.json.
SECTION = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "I8": 1}
Headers = dict[str, tuple[str, list[int]]]
TENSORS: Headers = {
    "lm_head.weight": ("BF16", [64, 256]),
    "model.embed_tokens.weight": ("BF16", [64, 256]),
    "model.layers.0.input_layernorm.weight": ("BF16", [256]),
    f"{Q}.weight": ("F8_E4M3", [192, 256]),
    f"{Q}.weight_scale_inv": ("F32", [2, 2]),
    # Narrower and shorter than a block.
    "model.layers.0.mlp.down_proj.weight": ("F8_E4M3", [256, 96]),
    "model.layers.0.mlp.down_proj.weight_scale_inv": ("F32", [2, 1]),
    "model.layers.0.mlp.gate.weight": ("BF16", [8, 256]),
}


def write(folder: Path, tensors: Headers = TENSORS, section: dict[str, Any] = SECTION) -> Path:
    folder.mkdir(exist_ok=True)
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + BYTES[dtype] * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(end))
    (folder / "config.json").write_text(json.dumps({"quantization_config": section} if section else {}))
    return folder


def test_it_is_read_as_it_is_released_and_used_in_place(tmp_path: Path) -> None:
    folder = write(tmp_path / "deepseek")
    config = read_quant_config(folder)
    assert (config.quant_algo, config.kv_cache_quant_algo, config.group_size) == ("FP8_BLOCK_SCALES", None, 128)
    found = check_checkpoint(folder, SPEC)
    assert found.quantized == ("model.layers.0.mlp.down_proj", Q)
    # 192 x 256 + 256 x 96 bytes, and 6 scales of 4 bytes.
    assert found.bits_per_parameter == pytest.approx(8 + 6 * 32 / 73728)

    spec = EngineSpec(model=str(folder), served_model_name="m", quant="FP8_BLOCK_SCALES")
    assert ensure_checkpoint(spec, cache_dir=tmp_path / "cache", build=refuse, progress=print) == folder
    assert foresee_checkpoint(spec, cache_dir=tmp_path / "cache").state == "in place"


def refuse(*_args: Any) -> None:
    raise AssertionError("nothing is built")


def put(name: str, dtype: str, shape: list[int]) -> Callable[[Headers], None]:
    def change(tensors: Headers) -> None:
        tensors[name] = dtype, shape

    return change


def drop(name: str) -> Callable[[Headers], None]:
    def change(tensors: Headers) -> None:
        del tensors[name]

    return change


def plain(tensors: Headers) -> None:
    for name, (_, shape) in list(tensors.items()):
        tensors[name] = "BF16", shape
        if name.endswith("_inv"):
            del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(f"{Q}.weight_scale_inv"), rf"{Q}\.weight_scale_inv is missing; {Q}\.weight needs it"),
        (drop(f"{Q}.weight"), rf"{Q}\.weight is missing, its weight_scale_inv is there"),
        (put(f"{Q}.weight_scale_inv", "F32", [192, 2]), r"found F32 \[192, 2\], expected F32 \[2, 2\]"),
        (put(f"{Q}.weight_scale_inv", "BF16", [2, 2]), r"found BF16 \[2, 2\], expected F32 \[2, 2\]"),
        (put(f"{Q}.weight", "BF16", [192, 256]), r"q_a_proj\.weight: found dtype BF16, expected F8_E4M3"),
        (put(f"{Q}.weight", "I8", [192, 256]), r"q_a_proj\.weight: found dtype I8, expected F8_E4M3"),
        (put("k_proj.k_scale", "F32", [1, 1]), r"no KV cache scale: kv_cache_quant_algo is null"),
        (plain, "FP8_BLOCK_SCALES in config.json, but no weight is quantized"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, change: Callable[[Headers], None], message: str) -> None:
    tensors = dict(TENSORS)
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(write(tmp_path / "damaged", tensors), SPEC)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weight_block_size": [1, 128]},
            r"weight_block_size is \[1, 128\]; FP8_BLOCK_SCALES is run with \[128, 128\]",
        ),
        ({"fmt": "e5m2"}, "fmt is 'e5m2'"),
        ({"activation_scheme": "static"}, "activation_scheme is 'static'"),
        ({"weight_block_size": None}, r"config\.json describes a quantization, hf_quant_config\.json does not"),
        ({"modules_to_not_convert": ["model.layers.0.self_attn"]}, f"{Q} is in modules_to_not_convert"),
    ],
)
def test_another_format_under_the_same_method_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(write(tmp_path / "other", section={**SECTION, **changes}), SPEC)


def test_it_is_not_the_fp8_of_modelopt(tmp_path: Path) -> None:
    spec = EngineSpec(model="m", served_model_name="m", quant="FP8", backend="tensorrt_llm")
    with pytest.raises(CheckpointError, match="quant_algo is 'FP8_BLOCK_SCALES', but quant='FP8' means 'FP8'"):
        check_checkpoint(write(tmp_path / "deepseek"), spec)


def test_it_is_not_made_of_plain_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "plain", {"model.weight": ("BF16", [2, 2])}, {})
    spec = EngineSpec(model=str(folder), served_model_name="m", quant="FP8_BLOCK_SCALES")
    with pytest.raises(CheckpointError, match=r"is read and never made, and these weights are plain"):
        ensure_checkpoint(spec, cache_dir=tmp_path / "cache", build=refuse, progress=print)


def test_the_transformers_backend_does_not_guess_at_it(tmp_path: Path) -> None:
    import torch

    from pytest_inferperf.engines.packed import load_packed

    folder = write(tmp_path / "deepseek")
    with pytest.raises(CheckpointError, match="the transformers backend cannot run quant_algo 'FP8_BLOCK_SCALES'"):
        load_packed(folder, read_quant_config(folder), dtype=torch.float32, device="cpu")
