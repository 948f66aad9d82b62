"""Bit for bit: where two tensors differ, in words."""

from __future__ import annotations

import torch

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Say how many elements differ in any bit, and the first of them; "" for none. The sign of a zero counts."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return f"{ours.dtype} {list(ours.shape)} against {theirs.dtype} {list(theirs.shape)}"
    kind = _INTEGERS[ours.element_size()]
    mine, others = ours.detach().cpu().contiguous(), theirs.detach().cpu().contiguous()
    wrong = (mine.view(kind) != others.view(kind)).flatten().nonzero().flatten()
    if not len(wrong):
        return ""
    first = int(wrong[0])
    return (
        f"{len(wrong)} of {mine.numel()} elements differ, the first at {first}: "
        f"{float(mine.flatten()[first])!r} against {float(others.flatten()[first])!r}"
    )
