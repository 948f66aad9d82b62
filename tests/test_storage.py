"""Shared storage by address: what is written is whole, what is refused says why, and no name leaves its folder."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_inferperf.errors import MissingExtra, SettingsError, StorageError
from pytest_inferperf.storage import Storage, check_address, is_address, open_storage
from tests.object_store import ObjectStore

pytestmark = pytest.mark.newest

KINDS = ["memory", "file", "s3"]


@pytest.fixture
def memory() -> Iterator[str]:
    import fsspec

    yield "memory://tests/results"
    with suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/tests", recursive=True)


@pytest.fixture(params=KINDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty folder in each kind of storage."""
    if request.param == "s3":
        address = f"{request.getfixturevalue('s3').address}/results"
    else:
        address = f"file://{tmp_path}/store" if request.param == "file" else request.getfixturevalue("memory")
    return open_storage(address, what="test")


def test_what_is_written_is_read(storage: Storage, tmp_path: Path) -> None:
    assert storage.read("a/b.json") is None
    assert storage.size("a/b.json") is None
    storage.write("a/b.json", b"one")
    storage.write("a/b.json", b"two and more")
    local = tmp_path / "file"
    local.write_bytes(b"three")
    storage.upload("c d [1]*.json", local)
    assert storage.read("a/b.json") == b"two and more"
    assert storage.size("a/b.json") == 12
    assert storage.list() == {"a/b.json": 12, "c d [1]*.json": 5}
    assert storage.list("b.json") == {"a/b.json": 12}
    assert storage.within("a").read("b.json") == b"two and more"
    found = storage.read_all(["a/b.json", "c d [1]*.json", "gone"])
    assert found == {"a/b.json": b"two and more", "c d [1]*.json": b"three", "gone": None}


def test_a_replaced_object_has_another_version(storage: Storage) -> None:
    storage.write("same", b"one")
    storage.write("other", b"one")
    before = storage.list_versions()
    time.sleep(0.05)  # the clock of a file system has steps of some ms
    storage.write("same", b"two")
    after = storage.list_versions("same")
    assert after["same"][0] == before["same"][0] == 3
    assert after["same"][1] != before["same"][1]
    assert storage.list_versions("other") == {"other": before["other"]}
    assert all(0 < version < 1 << 63 for _, version in before.values())


def test_an_object_is_made_once(storage: Storage) -> None:
    assert storage.create("lease", b"mine")
    assert not storage.create("lease", b"yours")
    assert storage.read("lease") == b"mine"
    storage.remove("lease")
    storage.remove("lease")
    assert storage.create("lease", b"yours")


class Refusal(Exception):
    """An answer of S3 that is an error, as botocore has it."""

    def __init__(self, response: dict[str, object]) -> None:
        super().__init__("refused")
        self.response = response


class Answers:
    """What a storage of S3's protocol answers to writes on a condition, one after the other; the last one for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, str]) -> None:
        import s3fs

        self.asked = 0
        real = s3fs.S3FileSystem._call_s3

        async def call(files: s3fs.S3FileSystem, method: str, *arguments: object, **keywords: object) -> object:
            if "IfNoneMatch" not in keywords:
                return await real(files, method, *arguments, **keywords)
            status, code = answers[min(self.asked, len(answers) - 1)]
            self.asked += 1
            if status == 200:
                return {}
            from s3fs.errors import translate_boto_error

            # No <Condition>, which AWS alone adds.
            said: dict[str, object] = {
                "Error": {"Code": code, "Message": "refused"},
                "ResponseMetadata": {"HTTPStatusCode": status},
            }
            raise translate_boto_error(Refusal(said))

        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
        monkeypatch.setattr("pytest_inferperf.storage._CREATE_PAUSES_S", (0.0, 0.0))


@pytest.mark.parametrize("code", ["PreconditionFailed", "412"])
def test_a_storage_that_is_not_aws_says_that_an_object_is_there(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    answers = Answers(monkeypatch, (412, code))
    assert not open_storage(s3.address, what="test").create("lease", b"mine")
    assert answers.asked == 1


def test_two_writes_that_meet_are_tried_again(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    conflict = (409, "ConditionalRequestConflict")
    storage = open_storage(s3.address, what="test")
    answers = Answers(monkeypatch, conflict, (200, ""))
    assert storage.create("lease", b"mine")
    assert answers.asked == 2
    answers = Answers(monkeypatch, conflict)
    with pytest.raises(StorageError, match=r"^s3://bucket/lease: cannot be written: .*refused"):
        storage.create("lease", b"mine")
    assert answers.asked == 3
    storage.write("lease", b"theirs")
    assert not storage.create("lease", b"mine")


def test_another_refusal_is_an_error_at_once(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, (400, "InvalidArgument"))
    with pytest.raises(StorageError, match="cannot be written"):
        open_storage(s3.address, what="test").create("lease", b"mine")
    assert answers.asked == 1


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_make_an_object_at_once_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    storage = open_storage(f"file://{tmp_path}/store", what="test")
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError("Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    barrier = threading.Barrier(4)

    def make(number: int, name: str) -> bool:
        barrier.wait(30)
        return storage.create(name, b"%d" % number)

    with ThreadPoolExecutor(4) as pool:
        for name in map(str, range(40)):
            made = list(pool.map(make, range(4), [name] * 4))
            assert made.count(True) == 1
            assert storage.read(name) == b"%d" % made.index(True)
    assert sorted(storage.list()) == sorted(map(str, range(40)))


def test_a_download_has_its_hash_and_an_end(storage: Storage, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    storage.write("weights", data)
    digest = storage.download("weights", tmp_path / "whole", limit=len(data))
    assert digest == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "whole").read_bytes() == data
    storage.download("weights", tmp_path / "part", limit=1000)
    assert (tmp_path / "part").read_bytes() == data[:1000]
    with pytest.raises(StorageError, match=r"gone: cannot be read: no such bucket or folder"):
        storage.download("gone", tmp_path / "gone", limit=1)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//x", ".", "", "a\\x", "a\nx", "a/"])
def test_no_name_leaves_its_folder(storage: Storage, name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"leads out of the folder, or is no name"):
        storage.write(name, b"x")
    with pytest.raises(StorageError, match=r"leads out of the folder, or is no name"):
        storage.read(name)
    with pytest.raises(StorageError, match=r"leads out of the folder, or is no name"):
        storage.within(name)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s4://bucket/x", r"^here: s4:// is unknown\. Did you mean 's3'\? Protocols: abfs, az, file, gs, memory, s3\."),
        ("simplecache::s3://bucket/x", r"^here: simplecache:: is unknown"),
        ("s3://", r"names no bucket or folder, such as s3://bucket/results"),
        ("file:///", r"names no bucket or folder, such as file:///mnt/results"),
        ("file://results", r"a path after file:// starts with a slash: file:///mnt/results"),
        ("s3://bucket/../other", r"'\.\.' cannot be part of an address"),
        ("file:///mnt/a/../b", r"'\.\.' cannot be part of an address"),
        ("s3://bucket//x", r"'' cannot be part of an address"),
    ],
)
def test_addresses_that_cannot_be(address: str, message: str) -> None:
    assert is_address(address)
    with pytest.raises(SettingsError, match=message):
        check_address(address, what="here")


@pytest.mark.parametrize(
    "address",
    ["s3://me:hunter2-secret@bucket/x", "s3://me:hunter2/secret@bucket", "abfs://c@a.example/x?sig=hunter2-secret"],
)
def test_credentials_in_an_address_are_refused_and_not_shown(address: str) -> None:
    with pytest.raises(SettingsError, match=r"^here: the address holds a password or a signature") as caught:
        check_address(address, what="here")
    assert "hunter2" not in str(caught.value)
    assert "environment variables, a profile, or the role of the machine" in str(caught.value)


def test_addresses_that_can_be() -> None:
    assert check_address("s3://bucket/a b/c/", what="here") == "s3://bucket/a b/c"
    assert check_address("file:///mnt/x", what="here") == "file:///mnt/x"
    assert not is_address("results/a:b")
    assert not is_address("/mnt/results")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("fsspec", r'needs the "storage" extra \(fsspec is not installed\): pip install "pytest-inferperf\[storage\]"'),
        ("s3fs", r'needs the "storage" extra \(s3fs is not installed\): .*s3:// needs s3fs too: pip install s3fs$'),
    ],
)
def test_a_missing_package_names_the_extra(missing: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(MissingExtra, match=message):
        check_address("s3://bucket/x", what="here")


def test_fsspec_is_not_imported_before_it_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys; from pytest_inferperf.storage import check_address; check_address('s3://bucket/x', what='x'); "
        "assert not {'fsspec', 's3fs'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# Faults.


def test_an_upload_that_is_cut_short_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"file://{tmp_path}/store", what="test")
    storage.write("a.json", b"old")

    def cut(source: str, target: str, **_: object) -> None:
        Path(target).write_bytes(b"ha")
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage.files, "put_file", cut)
    local = tmp_path / "new"
    local.write_bytes(b"half of it is lost")
    with pytest.raises(StorageError, match=r"store/a\.json: cannot be written: Input/output error\.$"):
        storage.upload("a.json", local)
    assert storage.read("a.json") == b"old"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a.json"]


def test_a_multipart_upload_that_is_cut_short_leaves_no_object(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    storage = open_storage(f"{s3.address}/checkpoints", what="test")
    real = s3fs.S3FileSystem._call_s3

    async def cut(self: s3fs.S3FileSystem, method: str, *arguments: object, **keywords: object) -> object:
        if method == "upload_part" and keywords["PartNumber"] == 2:
            raise OSError(104, "Connection reset by peer")
        return await real(self, method, *arguments, **keywords)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", cut)
    local = tmp_path / "weights"
    with local.open("wb") as file:
        file.truncate(120 << 20)
    with pytest.raises(StorageError, match=r"weights: cannot be written: Connection reset by peer"):
        storage.upload("weights", local)
    assert storage.size("weights") is None


def test_a_store_that_is_gone(lost_s3: ObjectStore) -> None:
    storage = open_storage(lost_s3.address, what="test")
    with pytest.raises(StorageError, match=r"^s3://bucket/a: cannot be read: EndpointConnectionError: Could not con"):
        storage.read("a")
    with pytest.raises(StorageError, match=r"^s3://bucket/a: cannot be written: EndpointConnectionError"):
        storage.write("a", b"x")


def test_a_bucket_that_does_not_exist(s3: ObjectStore) -> None:
    storage = open_storage("s3://no-such-bucket/results", what="test")
    with pytest.raises(StorageError, match=r"results/a: cannot be written: no such bucket or folder"):
        storage.create("a", b"x")


def test_permission_denied(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    async def refuse(self: s3fs.S3FileSystem, method: str, *arguments: object, **keywords: object) -> object:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refuse)
    storage = open_storage(s3.address, what="test")
    message = r"permission denied \(Access Denied\); check the credentials of this machine"
    with pytest.raises(StorageError, match=rf"^s3://bucket/a: cannot be written: {message}"):
        storage.write("a", b"x")
    with pytest.raises(StorageError, match=rf"^s3://bucket/a: cannot be read: {message}"):
        storage.read("a")


def test_files_have_the_mode_of_other_files(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path}/store", what="test")
    storage.write("a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert stat.S_IMODE((tmp_path / "store/a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)
