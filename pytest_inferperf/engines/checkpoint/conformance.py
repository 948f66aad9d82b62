"""Is a checkpoint what its name says? Read from headers and configuration files, before any engine loads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pytest_inferperf.engines.checkpoint.block_scales import BLOCK, check_block_scales, is_block_scaled
from pytest_inferperf.engines.checkpoint.formats import FORMATS, KV_SCALES, Format
from pytest_inferperf.engines.checkpoint.sources import Tensor, read_headers, read_json, read_scalar
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.quant import BLOCK_SCALES, KV_CACHE_DTYPES, QUANTIZATIONS

__all__ = ["Conformance", "QuantConfig", "check_checkpoint", "read_quant_config"]

BITS_TOLERANCE = 0.02
"""Relative: per-tensor scalars and padding of blocks are not part of a format's nominal size."""

_PLAIN_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """The quantization section of a checkpoint, the same in both files of a ModelOpt export."""

    quant_algo: str | None
    kv_cache_quant_algo: str | None
    group_size: int | None
    exclude_modules: tuple[str, ...]

    def excludes(self, module: str) -> bool:
        """Whether the list of excluded modules covers `module`."""
        return any(fnmatchcase(module, pattern) for pattern in self.exclude_modules)


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """What the check found out on its way."""

    config: QuantConfig
    quantized: tuple[str, ...]
    """Names of the quantized linear modules."""

    bits_per_parameter: float | None
    """Over the quantized weights with their block scales; None for plain weights."""


def read_quant_config(folder: Path) -> QuantConfig:
    """Read hf_quant_config.json and config.json and require that they agree; of DeepSeek's own format, config.json alone.

    Raises `CheckpointError` naming both values.
    """
    path = folder / "hf_quant_config.json"
    embedded = read_json(folder / "config.json").get("quantization_config")
    if not path.is_file() and not embedded:
        return QuantConfig(quant_algo=None, kv_cache_quant_algo=None, group_size=None, exclude_modules=())
    if not path.is_file() and embedded is not None and is_block_scaled(folder, embedded):
        return QuantConfig(
            quant_algo=BLOCK_SCALES,
            kv_cache_quant_algo=None,
            group_size=BLOCK,
            exclude_modules=tuple(embedded.get("modules_to_not_convert") or ()),
        )
    section = read_json(path).get("quantization") if path.is_file() else None
    if section is None and path.is_file():
        raise CheckpointError(f'{path}: no "quantization" section')
    if section is None or embedded is None:
        present, absent = ("config.json", path.name) if section is None else (path.name, "config.json")
        raise CheckpointError(f"{folder}: {present} describes a quantization, {absent} does not")
    if embedded.get("quant_method") != "modelopt":
        raise CheckpointError(
            f"{folder / 'config.json'}: quant_method is {embedded.get('quant_method')!r}; only ModelOpt exports are run"
        )
    found = QuantConfig(
        quant_algo=section.get("quant_algo"),
        kv_cache_quant_algo=section.get("kv_cache_quant_algo"),
        group_size=section.get("group_size"),
        exclude_modules=tuple(section.get("exclude_modules") or ()),
    )
    for name, here, there in (
        ("quant_algo", found.quant_algo, embedded.get("quant_algo")),
        ("exclude_modules", sorted(found.exclude_modules), sorted(embedded.get("ignore") or ())),
        ("a quantized KV cache", found.kv_cache_quant_algo is not None, bool(embedded.get("kv_cache_scheme"))),
        *_group_sizes(found, embedded),
    ):
        if here != there:
            raise CheckpointError(f"{folder}: {name} is {here!r} in {path.name} and {there!r} in config.json")
    return found


def _group_sizes(found: QuantConfig, embedded: Mapping[str, Any]) -> list[tuple[str, object, object]]:
    groups = (embedded.get("config_groups") or {}).values()
    sizes = {group.get("weights", {}).get("group_size") for group in groups} - {None}
    return [("group_size", found.group_size, size) for size in sizes]


def check_checkpoint(folder: Path, spec: EngineSpec, *, source: Path | None = None) -> Conformance:
    """Check a checkpoint against what `spec` asks for, and against the model it was made from.

    Args:
        folder: The checkpoint.
        spec: What it should be.
        source: The unquantized model, whose tensors must all be there; None where it is not at hand.

    Raises `CheckpointError` naming tensor, found, expected and file.

    """
    config = read_quant_config(folder)
    _check_request(folder, config, spec)
    tensors = read_headers(folder)
    original = read_headers(source) if source is not None and source != folder else {}
    for name in sorted(set(original) - set(tensors)):
        if not _is_tied(folder, name):
            raise CheckpointError(f"{folder}: {name} is missing; the source model {source} has it")
    if config.quant_algo is None:
        _check_plain(tensors)
        _check_kv_scales(folder, tensors, config)
        return Conformance(config=config, quantized=(), bits_per_parameter=None)
    if config.quant_algo == BLOCK_SCALES:
        names, bits = check_block_scales(folder, tensors, config.exclude_modules)
        _check_kv_scales(folder, tensors, config)
        return Conformance(config=config, quantized=tuple(names), bits_per_parameter=bits)
    layout = FORMATS.get(config.quant_algo)
    if layout is None:
        raise CheckpointError(
            f"{folder}: quant_algo {config.quant_algo!r} cannot be checked; known: {', '.join(sorted(FORMATS))}"
        )
    quantized = _quantized_modules(folder, tensors, config, layout)
    shapes = {
        name: _check_linear(tensors, original, name, layout, config.group_size, awq=layout.allows_pre_quant_scale)
        for name in quantized
    }
    _check_kv_scales(folder, tensors, config)
    bits = _bits_per_parameter(tensors, shapes, layout)
    expected = layout.bits_per_parameter(config.group_size)
    if abs(bits / expected - 1) > BITS_TOLERANCE:
        raise CheckpointError(
            f"{folder}: {bits:.3f} bits per quantized parameter, {config.quant_algo} takes {expected:.3f}"
        )
    return Conformance(config=config, quantized=tuple(quantized), bits_per_parameter=bits)


def _check_request(folder: Path, config: QuantConfig, spec: EngineSpec) -> None:
    row = QUANTIZATIONS.get(spec.quant)
    if row is not None and config.quant_algo != row.quant_algo:
        raise CheckpointError(
            f"{folder}: quant_algo is {config.quant_algo!r}, but quant={spec.quant!r} means {row.quant_algo!r}"
            + (f" (recipe {spec.recipe} makes another format)" if spec.recipe else "")
        )
    if row is None and config.quant_algo in (None, BLOCK_SCALES):
        found = config.quant_algo or "plain weights"
        raise CheckpointError(f"{folder}: {found}, but quant={spec.quant!r} was asked for")
    wanted = KV_CACHE_DTYPES[spec.kv_cache_dtype]
    if wanted.name != "auto" and config.kv_cache_quant_algo != wanted.kv_cache_quant_algo:
        raise CheckpointError(
            f"{folder}: kv_cache_quant_algo is {config.kv_cache_quant_algo!r}, "
            f"but kv_cache_dtype={spec.kv_cache_dtype!r} means {wanted.kv_cache_quant_algo!r}"
        )


def _is_tied(folder: Path, name: str) -> bool:
    return name == "lm_head.weight" and bool(read_json(folder / "config.json").get("tie_word_embeddings"))


def _check_plain(tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        if tensor.name.endswith(".weight") and tensor.dtype not in _PLAIN_DTYPES:
            raise _mismatch(tensor, f"dtype {tensor.dtype}", "plain weights")


def _mismatch(tensor: Tensor, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{tensor.file}: {tensor.name}: found {found}, expected {expected}")


def _quantized_modules(folder: Path, tensors: Mapping[str, Tensor], config: QuantConfig, layout: Format) -> list[str]:
    """Split the matrices into quantized and plain ones, exactly as the list of excluded modules says."""
    quantized: list[str] = []
    plain: set[str] = set()
    for tensor in tensors.values():
        module, _, leaf = tensor.name.rpartition(".")
        if leaf != "weight" or len(tensor.shape) != 2:
            continue
        excluded = config.excludes(module)
        if tensor.dtype in _PLAIN_DTYPES:
            plain.add(module)
            # Embeddings are matrices, not linear layers: older exports do not list them.
            if not excluded and "embed" not in module:
                raise _mismatch(
                    tensor,
                    f"dtype {tensor.dtype}",
                    f"{layout.weight_dtype} ({config.quant_algo}): {module} is not in exclude_modules",
                )
        elif excluded:
            raise _mismatch(tensor, f"dtype {tensor.dtype}", f"plain weights: {module} is in exclude_modules")
        else:
            quantized.append(module)
    for tensor in tensors.values():
        module, _, leaf = tensor.name.rpartition(".")
        if leaf == "weight_scale" and f"{module}.weight" not in tensors:
            raise CheckpointError(f"{tensor.file}: {module}.weight is missing, its weight_scale is there")
    for pattern in config.exclude_modules:
        # A pattern with a wildcard may describe modules that this model does not have.
        if set(pattern) & set("*?[") or pattern in plain or _is_tied(folder, f"{pattern}.weight"):
            continue
        raise CheckpointError(
            f"{folder / 'hf_quant_config.json'}: exclude_modules lists {pattern!r}, "
            "which is not an unquantized matrix of the checkpoint"
        )
    if not quantized:
        raise CheckpointError(f"{folder}: quant_algo is {config.quant_algo!r}, but no weight is quantized")
    return sorted(quantized)


def _check_linear(
    tensors: Mapping[str, Tensor],
    original: Mapping[str, Tensor],
    module: str,
    layout: Format,
    group_size: int | None,
    *,
    awq: bool,
) -> tuple[int, int]:
    """Check the tensors of one quantized linear; return its unpacked shape."""
    weight = tensors[f"{module}.weight"]
    if weight.dtype != layout.weight_dtype:
        raise _mismatch(weight, f"dtype {weight.dtype}", f"{layout.weight_dtype} ({layout.quant_algo})")
    rows, columns = weight.shape
    shape = rows * layout.out_per_row, columns * layout.in_per_column
    reference = original.get(weight.name)
    if reference is not None and reference.shape != shape:
        raise _mismatch(
            weight,
            f"shape {list(weight.shape)}",
            f"{list(layout.packed_shape(reference.shape[0], reference.shape[1]))} "
            f"for a linear of {list(reference.shape)}",
        )
    _check_scale(
        tensors,
        weight,
        f"{module}.weight_scale",
        dtypes=layout.scale_dtypes,
        shape=layout.scale_shape(*shape, group_size),
    )
    for name, wanted in (("weight_scale_2", layout.has_global_scale), ("input_scale", layout.has_input_scale)):
        if wanted:
            _check_scale(tensors, weight, f"{module}.{name}", dtypes=("F32",), shape=())
        elif f"{module}.{name}" in tensors:
            extra = tensors[f"{module}.{name}"]
            raise _mismatch(extra, f"dtype {extra.dtype}", f"no such tensor in {layout.quant_algo}")
    smoothing = tensors.get(f"{module}.pre_quant_scale")
    if smoothing is not None:
        if not awq:
            raise _mismatch(smoothing, f"dtype {smoothing.dtype}", f"no such tensor in {layout.quant_algo}")
        _check_scale(tensors, weight, smoothing.name, dtypes=_PLAIN_DTYPES, shape=(shape[1],))
    return shape


def _check_scale(
    tensors: Mapping[str, Tensor], weight: Tensor, name: str, *, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    scale = tensors.get(name)
    if scale is None:
        raise CheckpointError(f"{weight.file}: {name} is missing; {weight.name} needs it")
    if scale.dtype not in dtypes:
        raise _mismatch(scale, f"dtype {scale.dtype}", " or ".join(dtypes))
    # Some exports store a scalar as a tensor of one element.
    if scale.shape != shape and not (shape == () and scale.numel == 1):
        raise _mismatch(scale, f"shape {list(scale.shape)}", str(list(shape)))
    if shape == () and scale.dtype == "F32":
        value = read_scalar(scale)
        if not (math.isfinite(value) and value > 0):
            raise _mismatch(scale, repr(value), "a positive number")


def _check_kv_scales(folder: Path, tensors: Mapping[str, Tensor], config: QuantConfig) -> None:
    if config.kv_cache_quant_algo is None:
        for tensor in tensors.values():
            if tensor.name.rpartition(".")[2] in dict(KV_SCALES).values():
                raise _mismatch(tensor, f"dtype {tensor.dtype}", "no KV cache scale: kv_cache_quant_algo is null")
        return
    for projection, scale in KV_SCALES:
        weights = [tensor for tensor in tensors.values() if tensor.name.endswith(f".{projection}.weight")]
        if not weights:
            raise CheckpointError(
                f"{folder}: kv_cache_quant_algo is {config.kv_cache_quant_algo!r}, but no {projection} was found"
            )
        for weight in weights:
            module = weight.name.removesuffix(".weight")
            _check_scale(tensors, weight, f"{module}.{scale}", dtypes=("F32",), shape=())


def _bits_per_parameter(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], layout: Format) -> float:
    leaves = ("weight",) if layout.block is None else ("weight", "weight_scale")
    stored = sum(tensors[f"{module}.{leaf}"].nbytes * 8 for module in shapes for leaf in leaves)
    return stored / sum(rows * columns for rows, columns in shapes.values())
