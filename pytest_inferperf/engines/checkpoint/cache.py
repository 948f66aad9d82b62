"""A content-addressed cache of built checkpoints: built once, whole or not there, and checked by hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_inferperf.engines.checkpoint.conformance import check_checkpoint
from pytest_inferperf.engines.checkpoint.device import expected_device
from pytest_inferperf.engines.checkpoint.entries import (
    MANIFEST,
    MANIFEST_VERSION,
    listed_files,
    new_work,
    put_in_place,
    remove_entry,
    sweep,
)
from pytest_inferperf.engines.checkpoint.sources import is_quantized, read_headers, read_json, resolve_source
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import CheckpointError, SettingsError, StorageError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.quant import BLOCK_SCALES, NO_LESSONS, NOT_MADE, QAT
from pytest_inferperf.model.results import slug
from pytest_inferperf.storage import is_address

if TYPE_CHECKING:
    from pytest_inferperf.engines.checkpoint.shared import SharedCheckpoint

__all__ = [
    "MANIFEST",
    "Build",
    "cache_key",
    "checkpoint_hash",
    "default_cache_dir",
    "ensure_checkpoint",
    "entry_name",
    "hash_file",
    "key_inputs",
]

BUILDER_VERSION = 2
"""Raised whenever the modules beside this one change what a build yields, so that older entries are not taken for it."""

TRAINER_VERSION = 1
"""The same for what `finetune` does, which other recipes do not depend on."""

_MEMO = "hashes.json"
_MODEL_SUFFIXES = (".safetensors", ".json", ".model", ".jinja", ".txt")
_PACKAGES = ("nvidia-modelopt", "torch", "transformers")

Build = Callable[[EngineSpec, Path, Path, Progress], None]
"""Builds a checkpoint: spec, source folder, empty destination folder, progress."""


def default_cache_dir() -> Path:
    """Return $INFERPERF_CACHE_DIR, else `inferperf` in $XDG_CACHE_HOME, else in ~/.cache.

    Raises `SettingsError` for an address.
    """
    if chosen := os.environ.get("INFERPERF_CACHE_DIR"):
        if is_address(chosen):
            raise SettingsError(
                "INFERPERF_CACHE_DIR names a folder of this machine. An address is given to --inferperf-cache-dir, or "
                "inferperf_cache_dir in the ini file; the folder holds the copies."
            )
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "inferperf"


def ensure_checkpoint(
    spec: EngineSpec, *, cache_dir: Path | None = None, shared: str = "", build: Build, progress: Progress
) -> Path:
    """Return the folder of the checkpoint that `spec` asks for, building it when it is not in the cache.

    Plain weights and sources that are quantized already are used in place. Of several processes that want one
    checkpoint, one builds and the others wait. `shared` is the address of a storage from which it is copied, and into
    which it is put after a build, so that of several machines one builds. Raises `CheckpointError`.
    """
    source = resolve_source(spec.model)
    quantized = is_quantized(source)
    if quantized or (spec.quant == "BF16" and not spec.recipe and spec.kv_cache_dtype == "auto"):
        check_checkpoint(source, spec)
        return source
    if spec.quant == "BF16":
        asked = f"recipe={spec.recipe!r}" if spec.recipe else f"kv_cache_dtype={spec.kv_cache_dtype!r}"
        raise CheckpointError(f"quant='BF16' with {asked}: plain weights are used as they are; name a quantization")
    if spec.quant == BLOCK_SCALES:
        raise CheckpointError(f"model {spec.model}: {NOT_MADE}")
    read_headers(source)
    root = (cache_dir or default_cache_dir()).expanduser().absolute()
    with _disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        inputs = key_inputs(spec, source, root)
        key = cache_key(inputs)
        entry = root / entry_name(spec, key)
        common = _shared(shared, spec, source, entry, inputs, progress) if shared else None
        if _is_good(entry, root, progress, repair=False):
            if common is not None:
                common.share()
            return entry
        with _locked(entry, progress):
            sweep(entry)
            if not _is_good(entry, root, progress, repair=True):
                make = partial(_build, spec, source, entry, inputs, build, progress)
                if common is None:
                    make()
                else:
                    _obtain(common, make)
    check_checkpoint(entry, spec, source=source)
    return entry


def _shared(
    address: str, spec: EngineSpec, source: Path, entry: Path, inputs: Mapping[str, Any], progress: Progress
) -> SharedCheckpoint:
    from pytest_inferperf.engines.checkpoint.shared import SharedCheckpoint

    check = partial(check_checkpoint, spec=spec, source=source)
    return SharedCheckpoint(address, entry, key=inputs, check=check, progress=progress)


def _obtain(common: SharedCheckpoint, make: Callable[[], None]) -> None:
    try:
        common.obtain(make)
    except StorageError as error:
        raise CheckpointError(
            f"{error} It is where machines share their checkpoints (inferperf_cache_dir); without it this machine builds "
            "its own."
        ) from None


def entry_name(spec: EngineSpec, key: str) -> str:
    """Name the folder of a built checkpoint."""
    return f"{slug(spec.served_model_name)}-{spec.precision}-{key}"


def key_inputs(spec: EngineSpec, source: Path, root: Path, *, read_at_most: int | None = None) -> dict[str, Any]:
    """Collect everything that decides what a build yields.

    With `read_at_most`, a model file of more bytes whose hash is not remembered is not read, and has "" for its hash.
    """
    memo = _Memo(root)
    files = {
        path.name: memo.hash(path, read_at_most=read_at_most)
        for path in sorted(source.iterdir())
        if path.is_file() and path.suffix in _MODEL_SUFFIXES and path.name != MANIFEST
    }
    calibration: dict[str, Any] | None = None
    if spec.calib_dataset:
        path = Path(spec.calib_dataset)
        if not path.is_file():
            raise CheckpointError(f"calib_dataset {path}: no such file")
        calibration = {"sha256": memo.hash(path), "size": spec.calib_size}
    trained: dict[str, Any] = {}
    if spec.recipe == QAT:
        if not spec.qat_dataset:
            raise CheckpointError(f"model {spec.model}: {NO_LESSONS}")
        path = Path(spec.qat_dataset)
        if not path.is_file():
            raise CheckpointError(f"qat_dataset {path}: no such file")
        trained["qat"] = {
            "sha256": memo.hash(path),
            "steps": spec.qat_steps,
            "learning_rate": spec.qat_learning_rate,
            "trainer": TRAINER_VERSION,
        }
    if read_at_most is None:
        memo.save()
    return {
        "files": files,
        "quant": spec.quant,
        "recipe": spec.recipe,
        "kv_cache_dtype": spec.kv_cache_dtype,
        "calibration": calibration,
        **trained,
        "device": expected_device(),
        "versions": {"builder": BUILDER_VERSION, **{name: _version(name) for name in _PACKAGES}},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def cache_key(inputs: Mapping[str, Any]) -> str:
    """Hash the inputs of a build into 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checkpoint_hash(folder: Path) -> str:
    """One hash over the files of a checkpoint: from its manifest, else computed."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        hashes = {name: entry["sha256"] for name, entry in read_json(manifest)["files"].items()}
    else:
        hashes = {
            path.name: hash_file(path)
            for path in sorted(folder.iterdir())
            if path.is_file() and path.suffix in _MODEL_SUFFIXES
        }
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


class _Memo:
    """Hashes of files that have not changed, so that large models are read once. Losing it costs time only."""

    def __init__(self, root: Path) -> None:
        self._path = root / _MEMO
        self._changed = False
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        self._known: dict[str, Any] = found if isinstance(found, dict) else {}

    def hash(self, path: Path, *, read_at_most: int | None = None) -> str:
        state = path.stat()
        stamp = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        name = str(path.absolute())
        known = self._known.get(name)
        if isinstance(known, list) and len(known) == 2 and known[0] == stamp:
            return str(known[1])
        if read_at_most is not None and state.st_size > read_at_most:
            return ""
        found = hash_file(path)
        self._known[name] = [stamp, found]
        self._changed = True
        return found

    def save(self) -> None:
        if not self._changed:
            return
        known = {name: value for name, value in self._known.items() if Path(name).exists()}
        temporary = self._path.with_name(f".{_MEMO}-{uuid.uuid4().hex}")
        # The cache may be read-only, filled by somebody else.
        with suppress(OSError):
            try:
                temporary.write_text(json.dumps(known), encoding="utf-8")
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def _locked(entry: Path, progress: Progress) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(entry.parent / f".{entry.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting: another process builds {entry.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_good(entry: Path, root: Path, progress: Progress, *, repair: bool) -> bool:
    """Whether the entry is whole; a damaged one is reported and, holding the lock, removed."""
    if not os.path.lexists(entry):
        return False
    problem = _damage(entry, root)
    if problem is None:
        return True
    if repair:
        progress(f"warning: checkpoint {entry} is damaged ({problem}); building it again")
        remove_entry(entry)
    return False


def _damage(entry: Path, root: Path) -> str | None:
    manifest = entry / MANIFEST
    try:
        files = listed_files(read_json(manifest))
    except CheckpointError as error:
        return str(error)
    memo = _Memo(root)
    for name, expected in files.items():
        path = entry / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected.get("size"):
            return f"{name} has {path.stat().st_size} bytes instead of {expected.get('size')}"
        if memo.hash(path) != expected.get("sha256"):
            return f"the hash of {name} differs"
    memo.save()
    return None


def _build(
    spec: EngineSpec, source: Path, entry: Path, inputs: Mapping[str, Any], build: Build, progress: Progress
) -> None:
    work = new_work(entry)
    try:
        build(spec, source, work, progress)
        checked = check_checkpoint(work, spec, source=source)
        files = {
            str(path.relative_to(work)): {"sha256": hash_file(path), "size": path.stat().st_size}
            for path in sorted(work.rglob("*"))
            if path.is_file()
        }
        manifest = {
            "version": MANIFEST_VERSION,
            "files": files,
            "key": dict(inputs),
            "quant_algo": checked.config.quant_algo,
            "kv_cache_quant_algo": checked.config.kv_cache_quant_algo,
            "bits_per_parameter": checked.bits_per_parameter,
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        put_in_place(work, entry)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress(f"quantize {spec.served_model_name} {spec.precision}: done")


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"the disk is full: no room for a checkpoint in {root}. Free some space, or set INFERPERF_CACHE_DIR to "
                "a folder on another disk"
            ) from error
        if error.errno in (errno.ENOLCK, errno.ENOTSUP):
            raise CheckpointError(
                f"the file system of the checkpoint cache {root} has no locks ({error.strerror}). Mount it with locks, "
                f"or share it as file://{root}, which needs none, with INFERPERF_CACHE_DIR on a disk of this machine"
            ) from error
        place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else root
        if not (place == root or place in root.parents or root in place.parents):
            raise CheckpointError(f"cannot read {place}: {error.strerror or error}") from error
        raise CheckpointError(
            f"cannot write to the checkpoint cache {root} ({error.strerror or error}); set INFERPERF_CACHE_DIR to a "
            "folder you can write to"
        ) from error
