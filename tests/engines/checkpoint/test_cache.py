"""Checkpoints are built once, whole or not at all, and damage is noticed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.checkpoint import cache, device
from pytest_inferperf.engines.checkpoint.cache import (
    MANIFEST,
    cache_key,
    checkpoint_hash,
    default_cache_dir,
    ensure_checkpoint,
    key_inputs,
)
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec

Build = Callable[..., tuple[EngineSpec, Path]]


class Copier:
    """A build that copies a finished checkpoint, and counts."""

    def __init__(self, finished: Path) -> None:
        self.finished = finished
        self.count = 0

    def __call__(self, spec: EngineSpec, source: Path, destination: Path, progress: Progress) -> None:
        self.count += 1
        shutil.copytree(self.finished, destination, dirs_exist_ok=True)


@pytest.fixture
def lines() -> list[str]:
    return []


def test_second_request_is_served_from_the_cache(built: Build, tmp_path: Path, lines: list[str]) -> None:
    spec, finished = built("NVFP4")
    build = Copier(finished)
    first = ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append)
    second = ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append)
    assert first == second
    assert build.count == 1
    assert first.name.startswith("tiny-NVFP4-")
    assert (first / MANIFEST).is_file()
    assert len(checkpoint_hash(first)) == 64


def test_another_calibration_size_is_another_entry(built: Build, tmp_path: Path, lines: list[str]) -> None:
    spec, finished = built("NVFP4")
    build = Copier(finished)
    first = ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append)
    second = ensure_checkpoint(replace(spec, calib_size=3), cache_dir=tmp_path, build=build, progress=lines.append)
    assert first != second
    assert build.count == 2


def test_corrupted_entry_is_built_again(built: Build, tmp_path: Path, lines: list[str]) -> None:
    spec, finished = built("NVFP4")
    build = Copier(finished)
    entry = ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append)
    weights = entry / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append) == entry
    assert build.count == 2
    assert weights.read_bytes() == good
    assert any("the hash of model.safetensors differs); building it again" in line for line in lines)


def test_plain_and_quantized_sources_are_used_in_place(built: Build, tmp_path: Path, lines: list[str]) -> None:
    _, finished = built("NVFP4")
    plain, source = built("BF16")
    build = Copier(finished)
    assert ensure_checkpoint(plain, cache_dir=tmp_path, build=build, progress=lines.append) == source.resolve()
    ready = EngineSpec(model=str(finished), served_model_name="ready", quant="NVFP4")
    assert ensure_checkpoint(ready, cache_dir=tmp_path, build=build, progress=lines.append) == finished.resolve()
    assert build.count == 0
    wrong = EngineSpec(model=str(finished), served_model_name="ready", quant="BF16")
    with pytest.raises(CheckpointError, match="but quant='BF16' means None"):
        ensure_checkpoint(wrong, cache_dir=tmp_path, build=build, progress=lines.append)


def test_full_disk_names_the_folder_and_the_variable(built: Build, tmp_path: Path) -> None:
    spec, _ = built("NVFP4")

    def build(spec: EngineSpec, source: Path, destination: Path, progress: Progress) -> None:
        (destination / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=rf"the disk is full: .* in {tmp_path}\. .*INFERPERF_CACHE_DIR"):
        ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lambda _line: None)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_wrong_export_never_enters_the_cache(built: Build, tmp_path: Path) -> None:
    spec, _ = built("NVFP4")
    _, other = built("FP8", "fp8")
    with pytest.raises(CheckpointError, match="quant_algo is 'FP8', but quant='NVFP4'"):
        ensure_checkpoint(spec, cache_dir=tmp_path, build=Copier(other), progress=lambda _line: None)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"calib_size": 2},
        {"recipe": "NVFP4_MLP_ONLY_CFG"},
        {"kv_cache_dtype": "fp8"},
        {"quant": "W4A16_NVFP4"},
        {"calib_dataset": "other"},
    ],
)
def test_what_changes_the_weights_changes_the_key(
    source: Path, calibration: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(calibration.read_text() + "\n")
    if "calib_dataset" in changes:
        changes = {"calib_dataset": str(other)}
    spec = EngineSpec(model=str(source), served_model_name="tiny", quant="NVFP4", calib_dataset=str(calibration))
    keys = [cache_key(key_inputs(item, source, tmp_path)) for item in (spec, replace(spec, **changes), spec)]
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_weights_built_on_a_gpu_are_others(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EngineSpec(model=str(source), served_model_name="tiny", quant="NVFP4")
    here = cache_key(key_inputs(spec, source, tmp_path))
    monkeypatch.setattr(device, "find_gpus", lambda: (object(),))
    assert cache_key(key_inputs(spec, source, tmp_path)) != here


@pytest.mark.parametrize("changes", [{"qat_steps": 3}, {"qat_learning_rate": 0.1}, {"qat_dataset": "other"}])
def test_what_changes_the_training_changes_the_key_of_trained_weights_only(
    source: Path, calibration: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(calibration.read_text() + "\n")
    if "qat_dataset" in changes:
        changes = {"qat_dataset": str(other)}
    plain = EngineSpec(
        model=str(source),
        served_model_name="tiny",
        quant="NVFP4",
        calib_dataset=str(calibration),
        qat_dataset=str(calibration),
    )
    trained = replace(plain, recipe="qat")

    def key(spec: EngineSpec) -> str:
        return cache_key(key_inputs(spec, source, tmp_path))

    assert len({key(plain), key(trained), key(replace(trained, **changes))}) == 3
    assert key(plain) == key(replace(plain, **changes))


def test_missing_training_texts_are_named(source: Path, tmp_path: Path) -> None:
    spec = EngineSpec(
        model=str(source), served_model_name="t", quant="NVFP4", recipe="qat", qat_dataset="/absent.jsonl"
    )
    with pytest.raises(CheckpointError, match=r"qat_dataset /absent\.jsonl: no such file"):
        key_inputs(spec, source, tmp_path)


def test_key_follows_content_and_versions_not_names(
    source: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EngineSpec(model=str(source), served_model_name="tiny", quant="NVFP4", calib_dataset=str(calibration))
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)

    def key(spec: EngineSpec = spec) -> str:
        return cache_key(key_inputs(spec, copy, tmp_path))

    first = cache_key(key_inputs(spec, source, tmp_path))
    moved = tmp_path / "moved.jsonl"
    shutil.copyfile(calibration, moved)
    served = replace(spec, served_model_name="other", calib_dataset=str(moved), engine_options=(("use_cache", False),))
    assert key() == key(served) == first
    weights = copy / "model.safetensors"
    before = weights.stat()
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    # A date that was set back hides nothing.
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert key() != first
    weights.write_bytes(good)
    assert key() == first
    (copy / "README.md").write_text("hello")
    assert key() == first
    assert set(key_inputs(spec, copy, tmp_path)["versions"]) == {"builder", "nvidia-modelopt", "torch", "transformers"}
    for name in ("_version", "BUILDER_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, (lambda _package: "99") if name == "_version" else 99)
            assert key() != first


def test_two_names_of_one_model_have_entries_of_their_own(built: Build, tmp_path: Path, lines: list[str]) -> None:
    spec, finished = built("NVFP4")
    build = Copier(finished)
    first = ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append)
    second = ensure_checkpoint(
        replace(spec, served_model_name="a/b: c"), cache_dir=tmp_path, build=build, progress=lines.append
    )
    assert first.parent == second.parent == tmp_path
    assert first != second


def test_cache_root_that_cannot_be_made_names_the_variable(built: Build, tmp_path: Path, lines: list[str]) -> None:
    spec, finished = built("NVFP4")
    file = tmp_path / "file"
    file.touch()
    for root in (file, file / "deeper"):
        with pytest.raises(
            CheckpointError, match=rf"cannot write to the checkpoint cache {root} .*INFERPERF_CACHE_DIR"
        ):
            ensure_checkpoint(spec, cache_dir=root, build=Copier(finished), progress=lines.append)


def test_read_only_cache_still_serves(
    built: Build, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, finished = built("NVFP4")
    build = Copier(finished)
    entry = ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append)
    (tmp_path / "hashes.json").unlink()

    def refuse(self: Path, *_args: object, **_kwargs: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    assert ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append) == entry
    with pytest.raises(CheckpointError, match=r"cannot write to the checkpoint cache .*Read-only file system"):
        ensure_checkpoint(replace(spec, calib_size=1), cache_dir=tmp_path, build=build, progress=lines.append)


def test_symlinks_are_followed_and_a_damaged_one_is_replaced(built: Build, tmp_path: Path, lines: list[str]) -> None:
    spec, finished = built("NVFP4")
    link = tmp_path / "link"
    link.symlink_to(spec.model)
    root = tmp_path / "cache"
    build = Copier(finished)
    entry = ensure_checkpoint(spec, cache_dir=root, build=build, progress=lines.append)
    assert (
        ensure_checkpoint(replace(spec, model=str(link)), cache_dir=root, build=build, progress=lines.append) == entry
    )
    # Moved to a larger disk.
    elsewhere = tmp_path / "elsewhere"
    entry.rename(elsewhere)
    entry.symlink_to(elsewhere)
    assert ensure_checkpoint(spec, cache_dir=root, build=build, progress=lines.append) == entry
    assert build.count == 1
    (elsewhere / MANIFEST).unlink()
    assert ensure_checkpoint(spec, cache_dir=root, build=build, progress=lines.append) == entry
    assert not entry.is_symlink()
    shutil.rmtree(entry)
    entry.symlink_to("nowhere")
    assert ensure_checkpoint(spec, cache_dir=root, build=build, progress=lines.append) == entry
    assert (entry / MANIFEST).is_file()
    assert build.count == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1, "files": {"config.json": 1}}', '{"version": 1}'])
def test_damaged_manifest_is_built_again(built: Build, tmp_path: Path, lines: list[str], content: str) -> None:
    spec, finished = built("NVFP4")
    build = Copier(finished)
    entry = ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append)
    (entry / MANIFEST).write_text(content)
    assert ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append) == entry
    assert build.count == 2


@pytest.mark.parametrize("quant", ["BF16", "NVFP4"])
def test_pickled_or_cut_weights_are_refused_before_a_build(
    source: Path, calibration: Path, tmp_path: Path, lines: list[str], quant: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    spec = EngineSpec(model=str(folder), served_model_name="x", quant=quant, calib_dataset=str(calibration))
    build = Copier(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
        ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle, which may run code .* as safetensors"):
        ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lines.append)
    assert build.count == 0


SCRIPT = """
import sys, time, shutil
sys.path[:0] = [{root!r}]
from pathlib import Path
from pytest_inferperf.engines.checkpoint.cache import ensure_checkpoint
from pytest_inferperf.model.case import EngineSpec

def build(spec, source, destination, progress):
    with open({log!r}, "a") as log:
        log.write("built\\n")
    shutil.copytree({finished!r}, destination, dirs_exist_ok=True)
    print("building", flush=True)
    time.sleep({pause})

spec = EngineSpec(model={model!r}, served_model_name="tiny", quant="NVFP4", calib_dataset={calib!r})
print(ensure_checkpoint(spec, cache_dir=Path({cache!r}), build=build, progress=lambda line: None))
"""


def script(spec: EngineSpec, finished: Path, folder: Path, *, pause: float) -> list[str]:
    code = SCRIPT.format(
        root=str(Path(__file__).parents[3]),
        log=str(folder / "builds"),
        finished=str(finished),
        pause=pause,
        model=spec.model,
        calib=spec.calib_dataset,
        cache=str(folder / "cache"),
    )
    return [sys.executable, "-c", code]


def test_two_processes_build_once(built: Build, tmp_path: Path) -> None:
    spec, finished = built("NVFP4")
    command = script(spec, finished, tmp_path, pause=0.7)
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].split()[-1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert (tmp_path / "builds").read_text() == "built\n"


def test_killed_build_leaves_nothing_that_looks_finished(built: Build, tmp_path: Path, lines: list[str]) -> None:
    spec, finished = built("NVFP4")
    with subprocess.Popen(script(spec, finished, tmp_path, pause=60), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        os.kill(process.pid, signal.SIGKILL)
    cache = tmp_path / "cache"
    left = [path.name for path in cache.iterdir() if path.is_dir()]
    assert len(left) == 1
    assert left[0].startswith(".building-")
    build = Copier(finished)
    began = time.monotonic()
    entry = ensure_checkpoint(spec, cache_dir=cache, build=build, progress=lines.append)
    assert time.monotonic() - began < 20
    assert build.count == 1
    assert [path for path in cache.iterdir() if path.is_dir()] == [entry]


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INFERPERF_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "inferperf"
    monkeypatch.setenv("INFERPERF_CACHE_DIR", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"


@pytest.mark.parametrize(
    ("model", "message"),
    [("/no/such/folder", "no such folder"), ("somebody/some-model", r"could not be downloaded|not installed")],
)
def test_missing_model_is_a_clear_error(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = EngineSpec(model=model, served_model_name="x")
    with pytest.raises(CheckpointError, match=message):
        ensure_checkpoint(spec, cache_dir=tmp_path, build=Copier(tmp_path), progress=lambda _line: None)
