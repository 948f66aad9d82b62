"""Shared storage by address: a bucket, or a folder that is mounted elsewhere too, through fsspec.

What is written is there whole or not at all. Object storage has no locks; all it promises is that an object can be made
on condition that there is none of its name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_inferperf.errors import MissingExtra, SettingsError, StorageError, choices

__all__ = ["PROTOCOLS", "Protocol", "Storage", "check_address", "is_address", "open_storage"]

_BLOCK_BYTES = 16 << 20
"""What one request reads of a large object."""

_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
"""How storages call what tells two objects of one name and size apart, the best first."""

_SIDE_BY_SIDE = 16
"""Small objects read at a time: each is one round trip."""

_CREATE_PAUSES_S = (0.2, 0.5, 1.0)
"""How long to wait for the end of another's write to one name, before trying again."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One kind of storage."""

    package: str = ""
    """What fsspec needs besides itself."""

    objects: bool = True
    """Whether what is written appears whole or not at all, without a rename."""


PROTOCOLS = {
    "s3": Protocol(package="s3fs"),
    "gs": Protocol(package="gcsfs"),
    "abfs": Protocol(package="adlfs"),
    "az": Protocol(package="adlfs"),
    "file": Protocol(objects=False),
    "memory": Protocol(),
}

_EXAMPLES = {"file": "file:///mnt/results"}
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://|::)")


def is_address(text: str) -> bool:
    """Whether a text is meant as an address, not as a path."""
    return _ADDRESS.match(text) is not None


def check_address(text: str, *, what: str) -> str:
    """Return an address without a slash at its end, checked without the network.

    Raises `SettingsError`, which starts with `what`, for one that cannot be, that holds credentials, or that leads out of
    its bucket; `MissingExtra` where what reads it is not installed.
    """
    scheme, slashes, rest = text.partition("://")
    user, at, _ = rest.rpartition("@")
    if (at and ":" in user) or "?" in rest:
        raise SettingsError(
            f"{what}: the address holds a password or a signature, and addresses are shown in reports. Leave it out, and "
            "give the credentials as the tools of the storage take them: environment variables, a profile, or the role of "
            "the machine."
        )
    if scheme not in PROTOCOLS or not slashes:
        named = f"{text.partition('::')[0]}::" if "::" in text.partition("://")[0] else f"{scheme}://"
        raise SettingsError(f"{what}: {named} is unknown. {choices(scheme, PROTOCOLS, what='Protocols')}")
    place = rest.rstrip("/")
    parts = place.split("/")
    if scheme == "file" and not rest.startswith("/"):
        raise SettingsError(f"{what}: {text}: a path after file:// starts with a slash: {_EXAMPLES[scheme]}.")
    if not place or (scheme == "file" and not parts[1:]):
        raise SettingsError(
            f"{what}: {text}: names no bucket or folder, such as {_EXAMPLES.get(scheme, f'{scheme}://bucket/results')}."
        )
    wrong = [part for part in parts[scheme == "file" :] if not _is_plain(part)]
    if wrong:
        raise SettingsError(f"{what}: {text}: {wrong[0]!r} cannot be part of an address.")
    package = PROTOCOLS[scheme].package
    for missing in ("fsspec", package):
        if missing and importlib.util.find_spec(missing) is None:
            hint = f"{scheme}:// needs {package} too: pip install {package}" if package else ""
            raise MissingExtra(f"{what}: {text}", "storage", missing, hint=hint)
    return f"{scheme}://{place}"


def open_storage(address: str, *, what: str) -> Storage:
    """Open a folder in shared storage; nothing is read yet.

    Raises as `check_address`, and `StorageError` for a package that cannot be used.
    """
    address = check_address(address, what=what)
    import fsspec

    try:
        # A listing that is remembered would hide what another machine wrote.
        files, root = fsspec.url_to_fs(address, use_listings_cache=False)
    except Exception as error:
        raise StorageError(f"{address}: cannot be opened: {_cause(error)}.") from error
    return Storage(address, files, root, objects=PROTOCOLS[address.partition(":")[0]].objects)


class Storage:
    """A folder in shared storage. Names in it are relative and have slashes; every error is a `StorageError`."""

    def __init__(self, address: str, files: Any, root: str, *, objects: bool) -> None:
        self.address = address
        self.files = files
        """The file system, as fsspec has it."""

        self._root = root
        self._objects = objects

    def within(self, name: str) -> Storage:
        """Return the storage of a folder in it."""
        return Storage(f"{self.address}/{name}", self.files, self._at(name), objects=self._objects)

    def read(self, name: str) -> bytes | None:
        """Return what an object holds; None where there is none."""
        with self._errors(name, "read"):
            try:
                found: bytes = self.files.cat_file(self._at(name))
            except FileNotFoundError:
                return None
        return found

    def read_all(self, names: Sequence[str]) -> dict[str, bytes | None]:
        """Return what many objects hold, read side by side; None for those that are gone."""
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            return dict(zip(names, pool.map(self.read, names), strict=True))

    def size(self, name: str) -> int | None:
        """Return the bytes of an object; None where there is none."""
        with self._errors(name, "read"):
            try:
                return int(self.files.info(self._at(name))["size"])
            except FileNotFoundError:
                return None

    def list(self, suffix: str = "") -> dict[str, int]:
        """Return the names of all objects that end so, however deep, and their sizes in bytes."""
        return {name: size for name, (size, _) in self.list_versions(suffix).items()}

    def list_versions(self, suffix: str = "") -> dict[str, tuple[int, int]]:
        """Return what `list` does, and of each object a number that changes when it is replaced.

        The number is from 1 to 2^63 - 1; 0 where the storage tells nothing of the kind.
        """
        with self._errors("", "listed"):
            found = self.files.find(self._root, detail=True)
        prefix = self._root.rstrip("/") + "/"
        return {
            path.removeprefix(prefix): (int(info["size"]), _version(info))
            for path, info in sorted(found.items())
            if path.startswith(prefix) and path.endswith(suffix)
        }

    def write(self, name: str, data: bytes) -> None:
        """Put an object there whole, in the place of one of its name."""
        with self._errors(name, "written"), self._whole(name) as target:
            self.files.pipe_file(target, data)

    def create(self, name: str, data: bytes) -> bool:
        """Put an object there where none of its name is, and say whether that went."""
        with self._errors(name, "written"):
            for pause_s in (*_CREATE_PAUSES_S, None):
                try:
                    if self._objects:
                        self.files.pipe_file(self._at(name), data, mode="create")
                    else:
                        self._make_folder(name)
                        _make_file(Path(self._at(name)), data)
                except FileExistsError:
                    return False
                except OSError as error:
                    code, status = _answer(error)
                    if code == "PreconditionFailed" or status == 412:
                        return False
                    if code != "ConditionalRequestConflict":
                        raise
                    if pause_s is None:
                        if self.size(name) is not None:
                            return False
                        raise
                    time.sleep(pause_s)
                else:
                    break
        return True

    def upload(self, name: str, path: Path) -> None:
        """Put a file there whole, in the place of an object of its name."""
        with self._errors(name, "written"), self._whole(name) as target:
            self.files.put_file(str(path), target)

    def download(self, name: str, path: Path, *, limit: int) -> str:
        """Write an object into a new file, and return its SHA-256.

        It ends after `limit` bytes, whatever is there. An `OSError` is one of this machine's disk.
        """
        digest = hashlib.sha256()
        with path.open("xb") as file:
            with self._errors(name, "read"):
                source = self.files.open(self._at(name), "rb", block_size=_BLOCK_BYTES)
            with source:
                left = limit
                while left > 0:
                    with self._errors(name, "read"):
                        block = source.read(min(left, _BLOCK_BYTES))
                    if not block:
                        break
                    digest.update(block)
                    file.write(block)
                    left -= len(block)
        return digest.hexdigest()

    def remove(self, name: str) -> None:
        """Remove an object; one that is gone already is no error."""
        with self._errors(name, "removed"), suppress(FileNotFoundError):
            self.files.rm_file(self._at(name))

    @contextmanager
    def _whole(self, name: str) -> Iterator[str]:
        """Give where to write: in a folder a temporary file, which is renamed."""
        target = self._at(name)
        if self._objects:
            yield target
            return
        self._make_folder(name)
        folder, _, leaf = target.rpartition("/")
        temporary = f"{folder}/.{leaf}.{secrets.token_hex(8)}.tmp"
        try:
            yield temporary
            Path(temporary).replace(target)
        finally:
            with suppress(FileNotFoundError):
                self.files.rm_file(temporary)

    def _make_folder(self, name: str) -> None:
        if not self._objects:
            self.files.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)

    def _at(self, name: str) -> str:
        if not name or not all(map(_is_plain, name.split("/"))):
            raise StorageError(f"{self.address}: {name!r} leads out of the folder, or is no name.")
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def _errors(self, name: str, act: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # every storage has its own
            shown = f"{self.address}/{name}".rstrip("/")
            raise StorageError(f"{shown}: cannot be {act}: {_cause(error)}.") from error


def _make_file(path: Path, data: bytes) -> None:
    """Make a file, whole, where there is none; fsspec looks first and writes then. Raises `FileExistsError`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a mount without hard links: exclusive, though for a moment not whole
            with path.open("xb") as file:
                file.write(data)
    finally:
        temporary.unlink(missing_ok=True)


def _answer(error: OSError) -> tuple[str, int]:
    """Return the code and the HTTP status of what S3 answered; "" and 0 where it did not.

    s3fs knows a condition that is not met only by an element which AWS alone adds to its answer.
    """
    answer = getattr(error.__cause__, "response", None)
    if not isinstance(answer, dict):
        return "", 0
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(answer.get("Error", {}).get("Code", "")), status


def _version(info: Mapping[str, Any]) -> int:
    for key in _VERSIONS:
        if info.get(key):
            digest = hashlib.sha256(str(info[key]).encode()).digest()
            return int.from_bytes(digest[:8], "big") >> 1 or 1
    return 0


def _is_plain(part: str) -> bool:
    """Whether a part of a name stays in its folder."""
    return part not in ("", ".", "..") and "\\" not in part and part.isprintable()


def _cause(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = getattr(error, "strerror", None) or (lines[0] if lines else "")
    if isinstance(error, FileNotFoundError):
        text = f"no such bucket or folder ({text})"
    elif isinstance(error, PermissionError):
        text = f"permission denied ({text}); check the credentials of this machine"
    elif not isinstance(error, OSError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text.rstrip(".")
