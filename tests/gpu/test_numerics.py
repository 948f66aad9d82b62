"""Our number formats on a CPU against ModelOpt's own on CUDA, bit for bit: random tensors, and the reference model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_inferperf.engines.checkpoint.nvfp4_reference import fake_quant
from pytest_inferperf.engines.checkpoint.quiet import import_modelopt
from pytest_inferperf.engines.numerics import fp8_fake_quant
from tests.gpu.bits import difference

MODEL = Path(__file__).parents[2] / "suites" / "embedded" / "model"
GENERATOR = torch.Generator().manual_seed(5)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


TENSORS = {
    "random": randn(64, 256),
    "small": randn(64, 256) * 1e-3,
    "large": randn(64, 256) * 1000,
    "ties": torch.randint(-28, 29, (64, 256), generator=GENERATOR) / 4.0,
    "mixed": randn(64, 256) * torch.tensor([1e-6, 1e-3, 1.0, 1e3]).repeat(64),
}


def quantizer(bits: tuple[int, int], amax: torch.Tensor, device: str) -> Any:
    """Return ModelOpt's own quantizer, as it stands in a quantized model."""
    import_modelopt()
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    blocks = {"block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}} if bits == (2, 1) else {}
    made = TensorQuantizer(QuantizerAttributeConfig(num_bits=bits, **blocks), amax=amax.clone())
    return made.to(device)


def inputs_of_reference_model() -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every linear's weight, and what goes into it for some text."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    seen: dict[str, torch.Tensor] = {}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, module in linears.items():
        module.register_forward_pre_hook(lambda _module, given, name=name: seen.update({name: given[0].detach()}))
    with torch.no_grad():
        model(torch.randint(0, model.config.vocab_size, (2, 48), generator=GENERATOR))
    for name, module in linears.items():
        yield f"{name}.weight", module.weight.detach()
        yield f"{name} input", seen[name]


def ours(bits: tuple[int, int], values: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    return fake_quant(values, amax) if bits == (2, 1) else fp8_fake_quant(values, amax / 448.0)


def wrong(bits: tuple[int, int], values: torch.Tensor, device: str) -> str:
    """Say how ours differs from ModelOpt's on a device, under the tensor's own largest value."""
    amax = values.abs().amax()
    theirs = quantizer(bits, amax, device)(values.to(device))
    return difference(ours(bits, values, amax), theirs)


def test_the_comparison_holds_on_this_machine() -> None:
    """What GPU checks do, with ModelOpt's own FP8 on a CPU; that of NVFP4 needs a GPU."""
    assert wrong((4, 3), TENSORS["ties"], "cpu") == ""


def test_every_weight_and_input_of_the_reference_model_is_looked_at() -> None:
    found = dict(inputs_of_reference_model())
    assert len(found) > 20
    assert all(bool(values.abs().amax() > 0) for values in found.values())


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [(2, 1), (4, 3)], ids=["NVFP4", "FP8"])
@pytest.mark.parametrize("name", TENSORS)
def test_random_tensors_are_equal_to_modelopt_on_cuda(name: str, bits: tuple[int, int]) -> None:
    assert wrong(bits, TENSORS[name], "cuda") == ""


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [(2, 1), (4, 3)], ids=["NVFP4", "FP8"])
def test_the_reference_model_is_equal_to_modelopt_on_cuda(bits: tuple[int, int]) -> None:
    problems = {name: wrong(bits, values, "cuda") for name, values in inputs_of_reference_model()}
    assert {name: text for name, text in problems.items() if text} == {}
