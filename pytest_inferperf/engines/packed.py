"""Run an exported checkpoint: unpack its weights exactly, and quantize activations as its format says.

The numbers are those of the deployed format; the arithmetic is simulated in a wider type. Imports torch: only functions
of `engines/` import this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import CacheLayerMixin

from pytest_inferperf.engines.checkpoint.conformance import QuantConfig
from pytest_inferperf.engines.checkpoint.formats import FORMATS, Format
from pytest_inferperf.engines.checkpoint.sources import read_headers, weight_files
from pytest_inferperf.errors import CheckpointError

__all__ = [
    "KvLayer",
    "PackedModel",
    "QuantizedLinear",
    "fp8_fake_quant",
    "load_packed",
    "nvfp4_fake_quant",
    "unpack_weight",
]

FP8_MAX = 448.0
NVFP4_BLOCK = 16
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def nvfp4_fake_quant(inputs: torch.Tensor, scale_2: torch.Tensor, *, block: int = NVFP4_BLOCK) -> torch.Tensor:
    """Round to NVFP4 with dynamic block scales under a fixed global scale: equal to `NVFP4QTensor`, and faster."""
    width = inputs.shape[-1]
    padded = inputs if width % block == 0 else nn.functional.pad(inputs, (0, -width % block))
    blocks = padded.float().reshape(*padded.shape[:-1], -1, block)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / (6.0 * scale_2)
    scale = torch.where(scale == 0, 1.0, scale).clamp_(2**-9, FP8_MAX).to(torch.float8_e4m3fn).float() * scale_2
    scaled = blocks / scale
    # The E2M1 grid has steps of 1/2 below 2, of 1 below 4, of 2 up to 6. Adding 2^22 times the power of two below a
    # value (at least 1) leaves exactly that many bits, and rounds ties to even, as the format does.
    power = (scaled.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(1.0, 4.0)
    magic = power.mul_(2.0**22).copysign_(scaled)
    rounded = scaled.add_(magic).sub_(magic).clamp_(-6.0, 6.0)
    return rounded.mul_(scale).flatten(-2)[..., :width].to(inputs.dtype)


def fp8_fake_quant(inputs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Round to FP8 E4M3 under a fixed scale, saturating."""
    scaled = (inputs.float() / scale).clamp_(-FP8_MAX, FP8_MAX)
    return (scaled.to(torch.float8_e4m3fn).float() * scale).to(inputs.dtype)


def _fp8_per_token(inputs: torch.Tensor, _scale: torch.Tensor) -> torch.Tensor:
    scale = inputs.float().abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12) / FP8_MAX
    return fp8_fake_quant(inputs, scale)


def _int8_fake_quant(inputs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return ((inputs.float() / scale).round_().clamp_(-128, 127) * scale).to(inputs.dtype)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "nvfp4": nvfp4_fake_quant,
    "fp8": fp8_fake_quant,
    "fp8_per_token": _fp8_per_token,
    "int8": _int8_fake_quant,
}


def unpack_weight(tensors: Mapping[str, torch.Tensor], layout: Format, group_size: int | None) -> torch.Tensor:
    """Turn one packed weight (`weight`, `weight_scale`, `weight_scale_2`) into float32, exactly."""
    packed, scale = tensors["weight"], tensors["weight_scale"].float()
    values: torch.Tensor
    if layout.decode == "e2m1":
        table = torch.tensor(_E2M1, device=packed.device)
        values = table[torch.stack((packed & 0x0F, packed >> 4), dim=-1).flatten(-2).long()]
    elif layout.decode == "int4":
        signed = torch.stack((packed & 0x0F, packed >> 4), dim=1).flatten(0, 1).to(torch.int8)
        values = torch.where(signed > 7, signed - 16, signed).float()
    else:
        values = packed.float()
    if layout.has_global_scale:
        scale = scale * tensors["weight_scale_2"].float()
    if layout.block is not None:
        block = group_size or layout.block
        return values * scale.repeat_interleave(block, dim=-1)[:, : values.shape[-1]]
    return values * (scale.reshape(-1, 1) if layout.per_channel_scale else scale.reshape(()))


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
        self._round = _ACTIVATIONS.get(activation)
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


class KvLayer(CacheLayerMixin):  # type: ignore[misc,no-untyped-call,unused-ignore]
    """The keys and values of one layer, in one growing buffer, kept in the format of the KV cache."""

    is_sliding = False

    def __init__(self, *, algo: str | None, scales: tuple[torch.Tensor, torch.Tensor] | None, capacity: int) -> None:
        self.keys = self.values = None
        self.is_initialized = True
        self._algo = algo
        self._scales = scales
        self._capacity = capacity
        self._length = 0
        self._buffers: list[torch.Tensor] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: `update` makes the buffers."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append; return everything stored so far, as attention sees it."""
        keys, values = key_states, value_states
        start, self._length = self._length, self._length + keys.shape[-2]
        if not self._buffers or self._length > self._buffers[0].shape[-2]:
            self._grow(keys)
        found = []
        for index, (buffer, states) in enumerate(zip(self._buffers, (keys, values), strict=True)):
            if self._algo == "FP8" and self._scales is not None:
                scaled = (states.float() / self._scales[index]).clamp_(-FP8_MAX, FP8_MAX)
                buffer[:, :, start : self._length] = scaled.to(torch.float8_e4m3fn)
                found.append((buffer[:, :, : self._length].float() * self._scales[index]).to(states.dtype))
                continue
            if self._algo == "NVFP4" and self._scales is not None:
                # The exported scale is amax / 448 for either format (ModelOpt 0.47); NVFP4 divides by 6 as well.
                states = nvfp4_fake_quant(states, self._scales[index] / 6.0)
            buffer[:, :, start : self._length] = states
            found.append(buffer[:, :, : self._length])
        return found[0], found[1]

    def _grow(self, keys: torch.Tensor) -> None:
        batch, heads, _, width = keys.shape
        room = max(self._capacity, self._length)
        dtype = torch.float8_e4m3fn if self._algo == "FP8" else keys.dtype
        fresh = [torch.empty((batch, heads, room, width), dtype=dtype, device=keys.device) for _ in range(2)]
        for old, new in zip(self._buffers, fresh, strict=False):
            new[:, :, : old.shape[-2]] = old
        self._buffers = fresh

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only these rows of the batch."""
        self._buffers = [
            buffer.view(torch.uint8)[rows].view(buffer.dtype) if buffer.dtype == torch.float8_e4m3fn else buffer[rows]
            for buffer in self._buffers
        ]

    def get_seq_length(self) -> int:
        """Tokens stored."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what attention sees once `query_length` more tokens are stored."""
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A model with the weights of a checkpoint, and what a KV cache for it needs."""

    model: Any
    kv_algo: str | None
    kv_scales: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None
    """One pair per layer; None without a quantized KV cache."""

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
    from safetensors import safe_open
    from transformers import AutoConfig

    layout = _layout(folder, config)
    headers = read_headers(folder)
    modules = {name.removesuffix(".weight_scale") for name in headers if name.endswith(".weight_scale")}
    weights: dict[str, torch.Tensor] = {}
    extras: dict[str, dict[str, torch.Tensor]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                module, _, leaf = name.rpartition(".")
                if (module in modules and leaf != "bias") or leaf in ("k_scale", "v_scale"):
                    extras.setdefault(module, {})[leaf] = file.get_tensor(name)
                else:
                    weights[name] = file.get_tensor(name).to(dtype)
    for module in sorted(modules):
        if layout is not None:
            weights[f"{module}.weight"] = unpack_weight(extras[module], layout, config.group_size).to(dtype)
    hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if hasattr(hf_config, "quantization_config"):
        del hf_config.quantization_config
    with warnings.catch_warnings():
        # Advice of transformers about a configuration that this function just read from the checkpoint.
        warnings.simplefilter("ignore")
        model, loading = _architecture(folder, hf_config).from_pretrained(
            None, config=hf_config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    for problem, names in (
        ("is missing; the architecture has it", sorted(loading["missing_keys"])),
        ("is not part of the architecture", sorted(loading["unexpected_keys"])),
        ("has the wrong shape", sorted(str(item[0]) for item in loading["mismatched_keys"])),
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
