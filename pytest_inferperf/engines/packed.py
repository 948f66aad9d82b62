"""Run an exported checkpoint: unpack its weights exactly, and quantize activations as its format says.

The numbers are those of the deployed format; the arithmetic is simulated in a wider type. Imports torch: only functions
of `engines/` import this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_inferperf.engines.checkpoint.conformance import QuantConfig
from pytest_inferperf.engines.checkpoint.formats import FORMATS, Format
from pytest_inferperf.engines.checkpoint.sources import read_headers, read_json, weight_files
from pytest_inferperf.engines.kv_cache import KvLayer
from pytest_inferperf.engines.numerics import ACTIVATIONS, unpack_weight
from pytest_inferperf.errors import CheckpointError

__all__ = ["PackedModel", "QuantizedLinear", "load_packed"]


class _Memo:
    """Remembers the last quantized activation: q, k and v (and gate and up) read the same one."""

    def __init__(self) -> None:
        self.key: tuple[float, int] | None = None
        self.inputs: torch.Tensor | None = None
        self.outputs: torch.Tensor | None = None


class QuantizedLinear(nn.Module):
    """A linear layer with unpacked weights whose input is quantized as the checkpoint says."""

    def __init__(
        self,
        linear: nn.Linear,
        *,
        activation: str,
        input_scale: torch.Tensor | None,
        pre_quant_scale: torch.Tensor | None,
        memo: _Memo,
    ) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.input_scale = None if input_scale is None else input_scale.float().reshape(())
        self.pre_quant_scale = pre_quant_scale
        self._round = ACTIVATIONS.get(activation)
        self._key = (
            float(input_scale) if input_scale is not None else 0.0,
            -1 if pre_quant_scale is None else id(self),
        )
        self._memo = memo

    def quantize_input(self, inputs: torch.Tensor) -> torch.Tensor:
        """Smooth and round one activation."""
        memo = self._memo
        if memo.inputs is inputs and memo.key == self._key and memo.outputs is not None:
            return memo.outputs
        outputs = inputs if self.pre_quant_scale is None else inputs * self.pre_quant_scale
        if self._round is not None:
            scale = self.input_scale if self.input_scale is not None else outputs
            outputs = self._round(outputs, scale)
        # The reference keeps `inputs` alive, so that no other tensor can take its identity.
        memo.key, memo.inputs, memo.outputs = self._key, inputs, outputs
        return outputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply the layer."""
        return nn.functional.linear(self.quantize_input(inputs), self.weight, self.bias)


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A model with the weights of a checkpoint, and what a KV cache for it needs."""

    model: Any
    kv_algo: str | None
    kv_scales: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None
    """One pair per layer; None without a quantized KV cache."""

    @property
    def device(self) -> Any:
        """Where the weights are."""
        return self.model.device

    @property
    def full_attention(self) -> bool:
        """Whether every layer attends to all earlier tokens, so that one mask serves all layers."""
        kinds = getattr(self.model.config, "layer_types", None)
        if kinds is not None:
            return set(kinds) == {"full_attention"}
        return getattr(self.model.config, "sliding_window", None) is None

    def cache(self, capacity: int) -> Any:
        """Make an empty KV cache with room for `capacity` tokens."""
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=self.model.config)
        if any(type(layer).__name__ != "DynamicLayer" for layer in cache.layers):
            if self.kv_algo is not None:
                raise CheckpointError(
                    f"kv_cache_quant_algo {self.kv_algo}: this engine quantizes the KV cache of full attention only"
                )
            return cache
        pairs = self.kv_scales or (None,) * len(cache.layers)
        cache.layers = [KvLayer(algo=self.kv_algo, scales=pair, capacity=capacity) for pair in pairs]
        return cache


def load_packed(folder: Path, config: QuantConfig, *, dtype: torch.dtype, device: str) -> PackedModel:
    """Load a checkpoint: packed weights are read from disk and unpacked into `dtype`.

    Raises `CheckpointError` naming a tensor that the architecture has and the checkpoint lacks.
    """
    from safetensors import SafetensorError, safe_open

    layout = _layout(folder, config)
    headers = read_headers(folder)
    modules = {name.removesuffix(".weight_scale") for name in headers if name.endswith(".weight_scale")}
    weights: dict[str, torch.Tensor] = {}
    extras: dict[str, dict[str, torch.Tensor]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    module, _, leaf = name.rpartition(".")
                    if (module in modules and leaf != "bias") or leaf in ("k_scale", "v_scale"):
                        extras.setdefault(module, {})[leaf] = file.get_tensor(name)
                    else:
                        weights[name] = file.get_tensor(name).to(dtype)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: {error}") from error
    for module in sorted(modules):
        if layout is not None:
            weights[f"{module}.weight"] = unpack_weight(extras[module], layout, config.group_size).to(dtype)
    hf_config = _hf_config(folder)
    architecture = _architecture(folder, hf_config)
    with warnings.catch_warnings():
        # Advice of transformers about a configuration that this function just read from the checkpoint.
        warnings.simplefilter("ignore")
        try:
            model, loading = architecture.from_pretrained(
                None,
                config=hf_config,
                state_dict=weights,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"{folder / 'config.json'}: {architecture.__name__} cannot be made from it "
                f"({type(error).__name__}: {error})"
            ) from error
    for problem, names in (
        ("is missing; the architecture has it", sorted(loading["missing_keys"])),
        ("is not part of the architecture", sorted(loading["unexpected_keys"])),
        ("has another shape than config.json gives it in", sorted(str(item[0]) for item in loading["mismatched_keys"])),
    ):
        if names:
            raise CheckpointError(f"{folder}: {names[0]} {problem} {type(model).__name__}")
    memo = _Memo()
    for module in sorted(modules):
        parent, _, leaf = module.rpartition(".")
        owner = model.get_submodule(parent)
        scales = extras[module]
        smooth = scales.get("pre_quant_scale")
        setattr(
            owner,
            leaf,
            QuantizedLinear(
                getattr(owner, leaf),
                activation=layout.activation if layout else "none",
                input_scale=_to(scales.get("input_scale"), device, torch.float32),
                pre_quant_scale=_to(smooth, device, dtype),
                memo=memo,
            ),
        )
    model.eval().requires_grad_(False)
    return PackedModel(
        model=model.to(device),
        kv_algo=config.kv_cache_quant_algo,
        kv_scales=_kv_scales(folder, extras, config, layers=hf_config.num_hidden_layers, device=device),
    )


def _hf_config(folder: Path) -> Any:
    from transformers import AutoConfig

    path = folder / "config.json"
    try:
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers validates with errors of its own
        if "auto_map" in read_json(path):
            raise CheckpointError(
                f"{path}: auto_map asks for code inside the checkpoint, which is never run, and transformers itself "
                f"does not know model_type {read_json(path).get('model_type')!r}"
            ) from error
        raise CheckpointError(f"{path}: {type(error).__name__}: {error}") from error
    if hasattr(found, "quantization_config"):
        del found.quantization_config
    return found


def _architecture(folder: Path, hf_config: Any) -> Any:
    """The class that transformers itself has for the checkpoint; code inside a checkpoint is never run."""
    import transformers

    names = list(hf_config.architectures or ())
    for name in names:
        if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) and hasattr(transformers, name):
            return getattr(transformers, name)
    raise CheckpointError(
        f"{folder / 'config.json'}: architectures {names} name no causal language model of transformers "
        f"{transformers.__version__}"
    )


def _layout(folder: Path, config: QuantConfig) -> Format | None:
    if config.quant_algo is None:
        return None
    if config.quant_algo not in FORMATS:
        raise CheckpointError(
            f"{folder}: the transformers backend cannot run quant_algo {config.quant_algo!r}; "
            f"it runs {', '.join(sorted(FORMATS))}"
        )
    return FORMATS[config.quant_algo]


def _to(tensor: torch.Tensor | None, device: str, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(device=device, dtype=dtype)


def _kv_scales(
    folder: Path, extras: Mapping[str, Mapping[str, torch.Tensor]], config: QuantConfig, *, layers: int, device: str
) -> tuple[tuple[torch.Tensor, torch.Tensor], ...] | None:
    if config.kv_cache_quant_algo is None:
        return None
    if config.kv_cache_quant_algo not in ("FP8", "NVFP4"):
        raise CheckpointError(f"{folder}: the transformers backend has no KV cache {config.kv_cache_quant_algo!r}")

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index in range(layers):
            found = {
                leaf: scales[leaf].float().reshape(()).to(device)
                for name, scales in extras.items()
                for leaf in ("k_scale", "v_scale")
                if leaf in scales and f".{index}." in f".{name}."
            }
            if len(found) != 2:
                raise CheckpointError(f"{folder}: layer {index} has no k_scale and v_scale for its KV cache")
            yield found["k_scale"], found["v_scale"]

    return tuple(pairs())
