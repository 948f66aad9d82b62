"""Folders of a cache that several machines mount, also where one machine does not see the locks of another."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_inferperf.engines.checkpoint.cache import default_cache_dir, ensure_checkpoint
from pytest_inferperf.engines.checkpoint.entries import MANIFEST, new_work, put_in_place, sweep
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import CheckpointError, SettingsError
from pytest_inferperf.model.case import EngineSpec

Build = Callable[..., tuple[EngineSpec, Path]]


def test_leftovers_of_this_machine_go_and_those_of_others_when_they_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tmp_path / "tiny-NVFP4-0123"
    mine = new_work(entry)
    monkeypatch.setattr(socket, "gethostname", lambda: "node7.example")
    alive, dead = new_work(entry), new_work(entry)
    for folder in (alive, dead):
        (folder / "model.safetensors").write_bytes(b"half")
    for path in (dead / "model.safetensors", dead):
        os.utime(path, (1, 1))
    # What lies in it counts: a folder's own date stays while a file grows.
    os.utime(alive, (1, 1))
    monkeypatch.undo()
    sweep(entry)
    assert [folder.exists() for folder in (mine, alive, dead)] == [False, True, False]


def test_an_entry_of_a_machine_whose_lock_was_not_seen_stays(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    works = [new_work(entry), new_work(entry)]
    for number, work in enumerate(works):
        (work / MANIFEST).write_text(str(number))
        put_in_place(work, entry)
    assert (entry / MANIFEST).read_text() == "0"


def test_a_folder_that_is_no_entry_is_not_taken_for_one(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    (entry / "deeper").mkdir(parents=True)
    work = new_work(entry)
    (work / MANIFEST).write_text("0")
    with pytest.raises(OSError, match="not empty"):
        put_in_place(work, entry)


def test_two_builds_without_locks_both_end_with_the_entry(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a mount where the locks of one machine are not those of another (NFS with local_lock)."""
    spec, finished = built("NVFP4")
    builds = []

    def build(spec: EngineSpec, source: Path, destination: Path, progress: Progress) -> None:
        builds.append(destination)
        shutil.copytree(finished, destination, dirs_exist_ok=True)
        if len(builds) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(socket, "gethostname", lambda: "node7.example")
                ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lambda _line: None)
            assert (destination / "model.safetensors").is_file(), "the other machine removed a build that is alive"

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    entry = ensure_checkpoint(spec, cache_dir=tmp_path, build=build, progress=lambda _line: None)
    assert len(builds) == 2
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [entry]


def test_a_file_system_without_locks_says_what_to_do(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        CheckpointError, match=r"has no locks \(No locks available\)\. Mount it with locks, or share it as"
    ):
        ensure_checkpoint(built("NVFP4")[0], cache_dir=tmp_path, build=lambda *_: None, progress=lambda _line: None)


def test_the_variable_names_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERPERF_CACHE_DIR", "s3://bucket/checkpoints")
    with pytest.raises(
        SettingsError, match=r"INFERPERF_CACHE_DIR names a folder of this machine\. An address is given to"
    ):
        default_cache_dir()
