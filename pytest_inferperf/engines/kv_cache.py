"""The KV cache of the embedded engine: one growing buffer per layer, in the number format of the checkpoint. Imports torch."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from pytest_inferperf.engines.numerics import FP8_MAX, nvfp4_fake_quant

__all__ = ["KvLayer"]


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

    def forget(self, length: int) -> None:
        """Keep only the first `length` tokens of every row."""
        self._length = length

    def get_seq_length(self) -> int:
        """Tokens stored."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what attention sees once `query_length` more tokens are stored."""
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1
