"""Checkpoints of a whole cluster, in shared storage: built on one machine, copied and checked by the others.

A checkpoint is a folder: its files, each an object named by its SHA-256, and the manifest, which is put there last. Two
machines that put one there at once never mix: no object changes, and of two manifests the first one counts.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pytest_inferperf.engines.checkpoint.entries import (
    MANIFEST,
    listed_files,
    new_work,
    put_in_place,
    remove_entry,
)
from pytest_inferperf.engines.checkpoint.leases import Watch, take_lease
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import CheckpointError, StorageError
from pytest_inferperf.storage import open_storage

__all__ = ["SharedCheckpoint"]

POLL_S = 5.0
"""How often a machine that waits looks whether the checkpoint is there."""

_SIDE_BY_SIDE = 4
"""Files copied at a time."""

_KINDS = frozenset({".safetensors", ".json", ".model", ".jinja", ".txt", ".tiktoken", ".vocab", ".md"})
"""What a checkpoint in shared storage may hold: nothing that runs when it is loaded."""

_NAME_BYTES = 255
"""What file systems take as the name of one file."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class SharedCheckpoint:
    """One checkpoint in shared storage, and the entry of the local cache that becomes its copy.

    Its methods raise `StorageError` where the storage does not answer, or refuses.
    """

    def __init__(
        self, address: str, entry: Path, *, key: Mapping[str, Any], check: Callable[[Path], object], progress: Progress
    ) -> None:
        self._storage = open_storage(address, what="inferperf_cache_dir").within(entry.name)
        self._entry = entry
        self._key = json.loads(json.dumps(key))
        self._check = check
        self._progress = progress
        self._refused: bytes | None = None
        """The manifest of what was found damaged."""

        self._torn: set[str] = set()
        """Objects that do not hold what their names say."""

    def obtain(self, build: Callable[[], None]) -> None:
        """Make the entry: copy it, or build it where nobody did, and share it. The local lock is held."""
        watch, waits_for = Watch(self._storage), ""
        while not self._fetch():
            # Also the proof that we may write there, before hours of work.
            lease = take_lease(self._storage)
            if lease is not None:
                with lease:
                    if not self._fetch():
                        build()
                        self.share(just_built=True)
                return
            owner = watch.look()
            if owner and owner != waits_for:
                waits_for = owner
                self._progress(f"waiting: {owner} builds {self._storage.address}")
            if owner:
                time.sleep(POLL_S)

    def share(self, *, just_built: bool = False) -> None:
        """Put the entry into shared storage, where it is not there already; what fails is a warning.

        One that was just built, so that nobody reads it yet, gives way to that of a machine which was first.
        """
        try:
            if self._share():
                return
            if just_built:
                self._progress(f"another machine built {self._entry.name} at the same time; its checkpoint is taken")
                if not self._fetch():
                    self._share()
            else:
                self._progress(
                    f"warning: {self._storage.address} holds other bytes than {self._entry}, built from the same; delete "
                    "the folder to use what the other machines use"
                )
        except StorageError as error:
            self._progress(f"warning: the checkpoint {self._entry.name} stays on this machine alone: {error}")

    def _share(self) -> bool:
        """Put the entry there, and say whether this is what is there now, not that of another machine."""
        ours = (self._entry / MANIFEST).read_bytes()
        there = self._storage.read(MANIFEST)
        if there is not None and there != self._refused:
            return there == ours
        files = listed_files(json.loads(ours))
        foreign = sorted(name for name in files if PurePosixPath(name).suffix not in _KINDS)
        if foreign:
            raise StorageError(f"{foreign[0]} is of a kind that is not taken from shared storage.")
        objects = {str(item["sha256"]): (name, int(item["size"])) for name, item in files.items()}

        def put(digest: str) -> None:
            name, size = objects[digest]
            # What is there is left by an upload that did not come to its end, or by another machine.
            if digest in self._torn or self._storage.size(digest) != size:
                self._storage.upload(digest, self._entry / name)

        self._progress(f"sharing {self._entry.name} ({_gib(files)})")
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            list(pool.map(put, objects))
        if there is None:
            return self._storage.create(MANIFEST, ours)
        self._storage.write(MANIFEST, ours)
        return True

    def _fetch(self) -> bool:
        """Copy the checkpoint into its entry, and say whether there is one that is whole."""
        manifest = self._storage.read(MANIFEST)
        if manifest is None or manifest == self._refused:
            return False
        problem = ""
        work = new_work(self._entry)
        try:
            files = self._read_manifest(manifest)
            self._progress(f"copying {self._storage.address} ({_gib(files)})")
            with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
                list(pool.map(lambda name: self._copy(work / name, name, files[name]), files))
            self._check(work)
            (work / MANIFEST).write_bytes(manifest)
            if self._entry.exists():
                remove_entry(self._entry)
            put_in_place(work, self._entry)
        except CheckpointError as error:
            problem = str(error).replace(f"{work}/", "")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if problem:
            self._refused = manifest
            self._progress(f"warning: {self._storage.address} is damaged ({problem}); building it again")
        return not problem

    def _copy(self, path: Path, name: str, expected: Mapping[str, Any]) -> None:
        digest, size = expected["sha256"], expected["size"]
        there = self._storage.size(digest)
        found = ""
        if there == size:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = self._storage.download(digest, path, limit=size)
        if found != digest:
            self._torn.add(digest)
            is_cut = f"{name} has {there} bytes instead of {size}" if there != size else f"the hash of {name} differs"
            raise CheckpointError(f"{name} is missing" if there is None else is_cut)

    def _read_manifest(self, raw: bytes) -> Mapping[str, Mapping[str, Any]]:
        """Read a manifest that anybody may have written. Raises `CheckpointError`."""
        try:
            manifest = json.loads(raw)
        except (ValueError, RecursionError):
            manifest = None
        if not isinstance(manifest, dict):
            raise CheckpointError(f"{MANIFEST} is no JSON object")
        files = listed_files(manifest)
        if manifest.get("key") != self._key:
            raise CheckpointError(f"{MANIFEST} is of another checkpoint")
        for name, item in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name or not name.isprintable():
                raise CheckpointError(f"{name!r} leads out of the folder")
            if any(len(part.encode()) > _NAME_BYTES for part in path.parts):
                raise CheckpointError(f"{name[:40]}… is longer than a file's name can be")
            if any(str(folder) in files for folder in path.parents):
                raise CheckpointError(f"{name} is in a folder that is also a file")
            if path.suffix not in _KINDS or name == MANIFEST:
                raise CheckpointError(f"{name} is of a kind that is not taken from shared storage")
            digest, size = item.get("sha256"), item.get("size")
            if not (isinstance(digest, str) and _SHA256.fullmatch(digest) and type(size) is int and size >= 0):
                raise CheckpointError(f"{MANIFEST} says of {name} no hash or no size")
        return files


def _gib(files: Mapping[str, Mapping[str, Any]]) -> str:
    return f"{sum(int(item['size']) for item in files.values()) / 2**30:.1f} GiB"
