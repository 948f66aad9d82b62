"""NVFP4 on a CPU: ModelOpt's own numbers, a straight-through gradient, and a fast twin that is equal bit by bit."""

from __future__ import annotations

import pytest
import torch

from pytest_inferperf.engines.checkpoint.nvfp4_reference import BACKEND, fake_quant, install, with_backend
from pytest_inferperf.engines.checkpoint.quiet import import_modelopt
from pytest_inferperf.engines.numerics import nvfp4_fake_quant

GENERATOR = torch.Generator().manual_seed(3)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


TENSORS = {
    "random": randn(40, 256),
    "tiny": randn(40, 256) * 1e-7,
    "large": randn(40, 256) * 1000,
    "ties": torch.randint(-28, 29, (60, 256), generator=GENERATOR) / 4.0,
    "zeros": torch.zeros(4, 64),
    "mixed": randn(40, 256) * torch.tensor([1e-9, 1e-3, 1.0, 1e3]).repeat(64),
    "odd width": randn(10, 37),
    "three dimensions": randn(3, 5, 48),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("amax", ["own", 0.01, 2.0, 6.0 * 448])
def test_fast_rounding_equals_modelopt_bit_by_bit(name: str, amax: float | str) -> None:
    values = TENSORS[name]
    # An amax below the largest value saturates.
    limit = values.abs().max().clamp(min=1e-6) if isinstance(amax, str) else torch.tensor(amax)
    assert torch.equal(nvfp4_fake_quant(values, limit / (6.0 * 448.0)), fake_quant(values, limit))


@pytest.mark.parametrize("name", TENSORS)
def test_training_rounds_to_the_same_values(name: str) -> None:
    values = TENSORS[name]
    limit = values.abs().max()
    assert torch.equal(fake_quant(values.clone().requires_grad_(), limit), fake_quant(values, limit))


def test_values_lie_on_the_grid() -> None:
    values = torch.tensor([[0.2, 0.25, 0.3, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.75, -5.1, 0, 0, 0, 0]])
    found = fake_quant(values, torch.tensor(6.0 * 448))
    assert found.tolist() == [[0, 0, 0.5, 1, 1, 2, 2, 4, 4, 6, -1, -6, 0, 0, 0, 0]]


def test_gradient_passes_straight_through() -> None:
    values = randn(4, 32).requires_grad_()
    weights = randn(4, 32)
    total = (fake_quant(values, values.detach().abs().max()) * weights).sum()
    (gradient,) = torch.autograd.grad(total, values)
    assert torch.equal(gradient, weights)


def test_backend_is_set_on_nvfp4_quantizers_only() -> None:
    mtq = import_modelopt()
    install()
    install()
    changed = with_backend(mtq.W4A8_NVFP4_FP8_CFG)
    backends = {
        tuple(entry["cfg"]["num_bits"]): entry["cfg"].get("backend")
        for entry in changed["quant_cfg"]
        if isinstance(entry.get("cfg"), dict) and isinstance(entry["cfg"].get("num_bits"), (tuple, list))
    }
    assert backends == {(2, 1): BACKEND, (4, 3): None}
    assert not any("backend" in str(entry) for entry in mtq.W4A8_NVFP4_FP8_CFG["quant_cfg"])
