"""The comparison that GPU checks rest on, by tensors on a CPU."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.bits import difference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8])
def test_one_bit_is_found(dtype: torch.dtype) -> None:
    values = torch.arange(64, dtype=torch.float32).reshape(8, 8).to(dtype)
    assert difference(values, values.clone()) == ""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    planted = values.clone()
    planted.view(kinds[planted.element_size()])[3, 5] ^= 1
    assert difference(values, planted).startswith("1 of 64 elements differ, the first at 29: ")


def test_zeros_of_either_sign_are_not_the_same_bits() -> None:
    assert difference(torch.zeros(2), torch.tensor([0.0, -0.0])).endswith("the first at 1: 0.0 against -0.0")


def test_not_a_number_equals_itself() -> None:
    assert difference(torch.tensor([float("nan")]), torch.tensor([float("nan")])) == ""


def test_another_type_or_shape_is_a_difference() -> None:
    assert (
        difference(torch.zeros(2), torch.zeros(2, dtype=torch.float16)) == "torch.float32 [2] against torch.float16 [2]"
    )
    assert difference(torch.zeros(2), torch.zeros(1, 2)) == "torch.float32 [2] against torch.float32 [1, 2]"
