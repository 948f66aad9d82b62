"""What is wrong with a request for a checkpoint is said before anything is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf.engines.checkpoint.build import build_checkpoint, quantization_config, read_calibration
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec

SPEC = EngineSpec(model="m", served_model_name="tiny", quant="NVFP4")


def test_unknown_configuration_lists_near_names() -> None:
    with pytest.raises(
        CheckpointError, match=r"recipe='NVFP4_AWQ_LIT_CFG' is not .*\nDid you mean 'NVFP4_AWQ_LITE_CFG'"
    ):
        quantization_config(replace(SPEC, recipe="NVFP4_AWQ_LIT_CFG"))
    with pytest.raises(CheckpointError, match=r"quant='FP9_DEFAULT_CFG' is not .*\nDid you mean 'FP8_DEFAULT_CFG'"):
        quantization_config(replace(SPEC, quant="FP9_DEFAULT_CFG"))


def test_calibrating_recipe_without_data_names_the_keyword(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"NVFP4_DEFAULT_CFG needs calibration data: .* calib_dataset="):
        build_checkpoint(SPEC, source=source, destination=tmp_path, progress=lambda _line: None)


def test_progress_says_how_far_calibration_is(
    source: Path, calibration: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    lines: list[str] = []
    spec = replace(SPEC, calib_dataset=str(calibration), calib_size=2)
    build_checkpoint(spec, source=source, destination=tmp_path, progress=lines.append)
    assert lines[0] == f"quantize tiny NVFP4: loading {source}"
    assert lines[1:] == ["quantize tiny NVFP4: calibrating 2/2", "quantize tiny NVFP4: exporting"]
    assert (tmp_path / "tokenizer.json").is_file()
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.pt*"))


def test_recipe_of_another_format_is_refused(source: Path, calibration: Path, tmp_path: Path) -> None:
    spec = replace(SPEC, recipe="FP8_DEFAULT_CFG", calib_dataset=str(calibration))
    with pytest.raises(
        CheckpointError, match=r"quant_algo is 'FP8', .*\(recipe FP8_DEFAULT_CFG makes another format\)"
    ):
        build_checkpoint(spec, source=source, destination=tmp_path, progress=lambda _line: None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r'holds no texts; write one \{"text"'),
        ('{"text": "a"}\n{"text"\n', "line 2: not JSON"),
        ('{"text": "a"}\n\n{"txt": "b"}\n', 'line 3: needs a non-empty "text", got \'{"txt": "b"}\''),
        ('["a"]\n', 'line 1: needs a non-empty "text"'),
    ],
)
def test_bad_calibration_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "calibration.jsonl"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_calibration(str(path), 10)


def test_missing_calibration_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.jsonl: No such file"):
        read_calibration(str(tmp_path / "absent.jsonl"), 10)


def test_only_the_first_lines_are_read(calibration: Path) -> None:
    assert len(read_calibration(str(calibration), 3)) == 3
    assert len(read_calibration(str(calibration), 300)) == 4
