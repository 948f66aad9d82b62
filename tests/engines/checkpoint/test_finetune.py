"""Quantization-aware training of a tiny model: what it learns, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pytest_inferperf.engines.checkpoint.build import build_checkpoint
from pytest_inferperf.engines.checkpoint.conformance import check_checkpoint
from pytest_inferperf.engines.checkpoint.finetune import _IGNORED, _loss, _row, _snap, finetune
from pytest_inferperf.engines.checkpoint.texts import Text, read_texts
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lessons") / "lessons.jsonl"
    rows = [{"prompt": f"{letter} is ", "text": f"{letter}{letter}\n"} for letter in "abcdefgh"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def spec(source: Path, calibration: Path, lessons: Path) -> EngineSpec:
    return EngineSpec(
        model=str(source),
        served_model_name="tiny",
        quant="NVFP4",
        recipe="qat",
        kv_cache_dtype="fp8",
        calib_dataset=str(calibration),
        qat_dataset=str(lessons),
        qat_steps=20,
        qat_learning_rate=1e-3,
    )


def build(spec: EngineSpec, folder: Path) -> list[str]:
    lines: list[str] = []
    folder.mkdir()
    build_checkpoint(spec, source=Path(spec.model), destination=folder, progress=lines.append)
    return lines


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def test_the_loss_falls_and_the_export_is_what_ptq_exports_with_other_weights(
    spec: EngineSpec, source: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    build(replace(spec, recipe=""), tmp_path / "ptq")
    lines = build(spec, tmp_path / "qat")
    told = [line for line in lines if "training" in line]
    losses = [float(re.findall(r"loss ([\d.]+)", line)[0]) for line in told]
    assert [line.split(":")[1].split(",")[0] for line in told] == [" training 10/20", " training 20/20"]
    assert all(line.startswith("quantize tiny NVFP4+qat+kv_fp8: ") for line in told)
    assert losses[1] < losses[0]
    trained, plain = weights(tmp_path / "qat"), weights(tmp_path / "ptq")
    assert {(name, item.dtype, item.shape) for name, item in trained.items()} == {
        (name, item.dtype, item.shape) for name, item in plain.items()
    }
    packed = [name for name, item in plain.items() if item.dtype == torch.uint8]
    assert packed
    assert all(not torch.equal(trained[name], plain[name]) for name in packed)
    check_checkpoint(tmp_path / "qat", spec, source=source)


def test_it_is_the_same_every_time(spec: EngineSpec, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    short = replace(spec, qat_steps=3)
    first, second = (tmp_path / name for name in ("first", "second"))
    torch.manual_seed(1)
    build(short, first)
    torch.manual_seed(2)
    build(short, second)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


class Letters:
    """A tokenizer of one token a letter."""

    eos_token_id = 99

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [*([98] if add_special_tokens else []), *(ord(letter) - ord("a") for letter in text)]}


def test_a_prompt_is_read_and_not_learned() -> None:
    row = _row(Letters(), Text(prompt="ab", text="cd"), 100)
    assert row is not None
    assert (row.tokens, row.start) == ([98, 0, 1, 2, 3, 99], 3)
    whole = _row(Letters(), Text(text="cd"), 100)
    assert whole is not None
    assert (whole.tokens, whole.start) == ([98, 2, 3, 99], 1)


def test_a_text_that_is_cut_off_before_its_lesson_is_left_out() -> None:
    assert _row(Letters(), Text(prompt="abcdef", text="g"), 7) is None
    assert _row(Letters(), Text(prompt="abcdef", text="g"), 8) is not None


def test_padding_and_prompts_leave_the_loss_alone(reference: Any) -> None:
    """The loss of two rows together is the mean over the tokens that each has to learn."""
    rows = [_row(Letters(), Text(prompt="abc", text="d"), 100), _row(Letters(), Text(text="efghijk"), 100)]
    assert all(rows)
    together = float(_loss(reference, rows).detach())  # type: ignore[arg-type]
    counts = [len(row.tokens) - row.start for row in rows if row]
    alone = [float(_loss(reference, [row]).detach()) for row in rows if row]
    assert together == pytest.approx(sum(a * b for a, b in zip(alone, counts, strict=True)) / sum(counts), rel=1e-4)
    assert torch.nn.CrossEntropyLoss().ignore_index == _IGNORED


def test_a_learning_rate_that_breaks_the_model_is_named(
    spec: EngineSpec, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(CheckpointError, match=r"the loss is nan at step \d of 20; lower qat_learning_rate=1e\+30"):
        build(replace(spec, qat_learning_rate=1e30), tmp_path / "broken")


def test_texts_with_nothing_to_learn_are_refused() -> None:
    texts = [Text(prompt="abcdef", text="g")]
    with pytest.raises(CheckpointError, match="none of its 1 texts holds a token to learn within the first 4 tokens"):
        finetune(None, Letters(), texts, steps=1, learning_rate=1e-3, limit=4, progress=lambda _line: None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"qat_dataset .* holds no texts"),
        ('{"text": "a"}\n{"prompt": 1, "text": "a"}\n', r'qat_dataset .*, line 2: "prompt" is text, got'),
        ('{"prompt": "a"}\n', r'qat_dataset .*, line 1: needs a non-empty "text"'),
    ],
)
def test_bad_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "lessons.jsonl"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_texts(str(path), keyword="qat_dataset")


class Grid(torch.nn.Module):
    """Rounds to quarters."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight * 4).round() / 4


def test_weights_end_on_the_grid_that_they_were_rounded_to() -> None:
    """A weight beside the middle between two points would otherwise be cast across it by the export."""
    rounded, plain = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    rounded.weight_quantizer = Grid()
    for layer in (rounded, plain):
        torch.nn.init.constant_(layer.weight, 0.37501)
    _snap(torch.nn.Sequential(rounded, plain))
    assert rounded.weight.tolist() == [[0.5, 0.5]]
    assert torch.equal(plain.weight, torch.full((1, 2), 0.37501))
