"""What a build would find is said without building, and nothing is written."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from pytest_inferperf.engines.checkpoint import outlook
from pytest_inferperf.engines.checkpoint.cache import MANIFEST, ensure_checkpoint
from pytest_inferperf.engines.checkpoint.outlook import foresee_checkpoint
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec

Build = Callable[..., tuple[EngineSpec, Path]]


@pytest.fixture
def cached(built: Build, tmp_path: Path) -> tuple[EngineSpec, Path]:
    """A spec and its finished entry in the cache `tmp_path`."""
    spec, finished = built("NVFP4")

    def copy(spec: EngineSpec, source: Path, destination: Path, progress: Progress) -> None:
        shutil.copytree(finished, destination, dirs_exist_ok=True)

    return spec, ensure_checkpoint(spec, cache_dir=tmp_path, build=copy, progress=lambda _line: None)


def test_cached(cached: tuple[EngineSpec, Path], tmp_path: Path) -> None:
    spec, entry = cached
    found = foresee_checkpoint(spec, cache_dir=tmp_path)
    assert (found.state, found.text) == ("cached", f"cached: {entry.name}")


@pytest.mark.parametrize("change", [{"calib_size": 3}, {"quant": "FP8"}, {"kv_cache_dtype": "fp8"}])
def test_another_checkpoint_is_built(
    cached: tuple[EngineSpec, Path], tmp_path: Path, change: dict[str, object]
) -> None:
    spec, _ = cached
    found = foresee_checkpoint(replace(spec, **change), cache_dir=tmp_path)  # type: ignore[arg-type]
    assert (found.state, found.text) == ("build", f"to be built from {Path(spec.model).resolve()}")


@pytest.mark.parametrize("damage", ["no manifest", "cut short", "missing file", "odd manifest"])
def test_a_damaged_entry_is_built_again(cached: tuple[EngineSpec, Path], tmp_path: Path, damage: str) -> None:
    spec, entry = cached
    if damage == "no manifest":
        (entry / MANIFEST).unlink()
    elif damage == "odd manifest":
        (entry / MANIFEST).write_text('{"files": ["model.safetensors"]}')
    elif damage == "cut short":
        weights = entry / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        (entry / "config.json").unlink()
    assert foresee_checkpoint(spec, cache_dir=tmp_path).state == "build"


def test_large_weights_are_not_read(
    cached: tuple[EngineSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hashes are remembered from the build; without the memory, the entry that fits in all else is taken."""
    spec, entry = cached
    monkeypatch.setattr(outlook, "READ_AT_MOST", 1)
    assert foresee_checkpoint(spec, cache_dir=tmp_path).text == f"cached: {entry.name}"
    (tmp_path / "hashes.json").unlink()
    found = foresee_checkpoint(spec, cache_dir=tmp_path)
    assert (found.state, found.text) == ("cached", f"cached, weights not compared: {entry.name}")
    assert foresee_checkpoint(replace(spec, calib_size=3), cache_dir=tmp_path).state == "build"
    (entry / MANIFEST).write_text('{"files": {}}')
    assert foresee_checkpoint(spec, cache_dir=tmp_path).state == "build"


def test_plain_and_quantized_sources_are_used_in_place(built: Build, tmp_path: Path) -> None:
    plain, source = built("BF16")
    assert foresee_checkpoint(plain, cache_dir=tmp_path).text == f"used in place: {source.resolve()}"
    spec, finished = built("NVFP4")
    assert foresee_checkpoint(replace(spec, model=str(finished)), cache_dir=tmp_path).state == "in place"


def test_nothing_is_written(built: Build, tmp_path: Path) -> None:
    spec, _ = built("NVFP4")
    assert foresee_checkpoint(spec, cache_dir=tmp_path / "cache").state == "build"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A hub client that has nothing on this machine, and must not be asked for more."""
    module = ModuleType("huggingface_hub")

    def snapshot_download(model: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert local_files_only, "the network was used"
        raise FileNotFoundError(model)

    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_a_hub_model_is_downloaded(hub: ModuleType, tmp_path: Path) -> None:
    spec = EngineSpec(model="org/name", served_model_name="name", quant="NVFP4")
    found = foresee_checkpoint(spec, cache_dir=tmp_path)
    assert found.state == "download"
    assert found.text == "org/name to be downloaded from the hub, then quantized unless it already is"
    plain = foresee_checkpoint(replace(spec, quant="BF16"), cache_dir=tmp_path)
    assert plain.text == "org/name to be downloaded from the hub"


@pytest.mark.parametrize("lacks", ["", "model.safetensors", "config.json"])
def test_a_hub_model_that_is_here(
    hub: ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    snapshot = shutil.copytree(source, tmp_path / "snapshot")
    if lacks:
        (snapshot / lacks).unlink()
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(snapshot))
    spec = EngineSpec(model="org/name", served_model_name="name")
    assert foresee_checkpoint(spec, cache_dir=tmp_path).state == ("download" if lacks else "in place")


def test_neither_a_folder_nor_a_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        foresee_checkpoint(EngineSpec(model="./nowhere", served_model_name="x"), cache_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="huggingface_hub is not installed"):
        foresee_checkpoint(EngineSpec(model="org/name", served_model_name="x"), cache_dir=tmp_path)
