"""A store in shared storage: read and compacted through fsspec, without an extension of DuckDB's."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pytest_inferperf import cli
from pytest_inferperf.errors import ResultFileError, SettingsError, StorageError
from pytest_inferperf.history import store as store_module
from pytest_inferperf.history.loading import PARQUET
from pytest_inferperf.history.store import compact, open_store
from pytest_inferperf.storage import Storage, open_storage
from tests.history.conftest import Add, record
from tests.object_store import ObjectStore

VALUES = "SELECT value FROM metrics WHERE metric = 'output_throughput' ORDER BY created"


@pytest.fixture(params=["s3", "file"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return open_storage(f"file://{tmp_path}/shared", what="test")
    return open_storage(f"{request.getfixturevalue('s3').address}/results", what="test")


def ask(bucket: Storage, sql: str = VALUES, *, sealed: bool = True) -> list[tuple[object, ...]]:
    store = open_store(bucket.address, sealed=sealed)
    try:
        return store.query(sql)[1] if sealed else store.rows(sql)
    finally:
        store.close()


def test_results_in_a_bucket(bucket: Storage, add: Add, no_extensions: None) -> None:
    bucket.upload("2026/one [1]*.json", add(1, record(100.0)))
    bucket.upload("2026/two.json", add(2, record(200.0)))
    bucket.write("cut.json", b"{")
    bucket.write("notes.txt", b"not ours")
    bucket.write(".hidden/three.json", add(3, record(300.0)).read_bytes())
    assert ask(bucket) == [(100.0,), (200.0,)]
    assert ask(bucket, "SELECT file FROM runs ORDER BY file") == [("2026/one [1]*.json",), ("2026/two.json",)]
    store = open_store(bucket.address)
    store.close()
    assert {item.file: item.reason for item in store.skipped} == {"cut.json": "cut short, or not JSON"}


def test_compacted_runs_stay_and_new_ones_count(bucket: Storage, add: Add, no_extensions: None) -> None:
    bucket.upload("one.json", add(1, record(100.0)))
    bucket.upload("two.json", add(2, record(200.0)))
    assert compact(bucket.address) == (2, ())
    bucket.remove("one.json")
    bucket.upload("three.json", add(3, record(300.0)))
    expected = [(100.0,), (200.0,), (300.0,)]
    assert ask(bucket) == expected
    assert ask(bucket, sealed=False) == expected
    assert compact(bucket.address) == (3, ())
    assert ask(bucket) == expected
    assert sorted(bucket.list()) == [PARQUET, "three.json", "two.json"]


def test_compacted_objects_are_not_read_again(bucket: Storage, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.upload("one.json", add(1, record(100.0)))
    compact(bucket.address)
    monkeypatch.setattr(Storage, "read", lambda self, name: pytest.fail(f"{name} was read"))
    assert ask(bucket) == [(100.0,)]


def test_a_compacted_run_outlives_its_damaged_file(bucket: Storage, add: Add) -> None:
    bucket.upload("one.json", add(1, record(100.0)))
    bucket.upload("two.json", add(2, record(200.0)))
    compact(bucket.address)
    bucket.write("one.json", b'{"schema_version": 1, "rec')
    for _ in range(2):
        runs, skipped = compact(bucket.address)
        assert runs == 2
        assert [item.file for item in skipped] == ["one.json"]
    bucket.remove("one.json")
    assert ask(bucket) == [(100.0,), (200.0,)]


def test_a_replaced_object_of_the_same_size_is_read_again(bucket: Storage, add: Add) -> None:
    bucket.write("latest.json", of_one_size(add(1, record(100.0))))
    compact(bucket.address)
    bucket.write("latest.json", of_one_size(add(1, record(200.0))))
    assert ask(bucket) == [(200.0,)]
    assert compact(bucket.address) == (1, ())
    assert ask(bucket) == [(200.0,)]


def test_objects_without_a_version_are_read_again(bucket: Storage, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Storage.list_versions
    monkeypatch.setattr(
        Storage, "list_versions", lambda self: {name: (size, 0) for name, (size, _) in real(self).items()}
    )
    bucket.write("latest.json", of_one_size(add(1, record(100.0))))
    compact(bucket.address)
    bucket.write("latest.json", of_one_size(add(1, record(200.0))))
    assert ask(bucket) == [(200.0,)]


def test_folders_that_look_like_patterns_or_columns(bucket: Storage, add: Add, no_extensions: None) -> None:
    names = ["run1", "run[1]", "run*", "model=other"]
    for day, name in enumerate(names):
        folder = bucket.within(name)
        folder.upload(f"{day}.json", add(day, record()))
        compact(folder.address)
        folder.remove(f"{day}.json")
    for day, name in enumerate(names):
        assert ask(bucket.within(name), "SELECT file, model FROM history") == [(f"{day}.json", "tiny")], name


def test_sql_reads_nothing_of_the_bucket(bucket: Storage, add: Add) -> None:
    bucket.upload("one.json", add(1, record(100.0)))
    compact(bucket.address)
    store = open_store(bucket.address)
    for source in (f"read_parquet('{bucket.address}/{PARQUET}')", f"read_text('{bucket.address}/one.json')"):
        with pytest.raises(SettingsError, match=r"^query: Permission Error"):
            store.query(f"SELECT * FROM {source}")
    store.close()


def test_commands_take_a_bucket(s3: ObjectStore, add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"{s3.address}/results"
    for day in range(20):
        open_storage(place, what="test").upload(f"{day}.json", add(day, record(100.0 if day < 10 else 50.0, day=day)))
    assert cli.main(["trend", place, "--metric", "output_throughput"]) == 0
    assert "WORSE -50.0 %" in capsys.readouterr().out
    assert cli.main(["history", "compact", f"{place}/"]) == 0
    assert f"20 runs in {place}/{PARQUET}" in capsys.readouterr().out
    assert cli.main(["history", place]) == 0
    assert "20 runs" in capsys.readouterr().out


def test_a_damaged_parquet_file_says_what_to_do(bucket: Storage, add: Add) -> None:
    bucket.upload("one.json", add(1, record(100.0)))
    bucket.write(PARQUET, b"PAR1 and no more")
    with pytest.raises(ResultFileError, match=r"cannot be read: (.|\n)*Delete it, and write it again"):
        open_store(bucket.address)


def test_a_parquet_file_with_a_damaged_page_says_what_to_do(bucket: Storage, add: Add, tmp_path: Path) -> None:
    bucket.upload("one.json", add(1, record(100.0)))
    compact(bucket.address)
    bucket.write(PARQUET, with_a_damaged_page(bucket.read(PARQUET) or b"", tmp_path))
    told = rf"{PARQUET}: cannot be (read|written): "
    with pytest.raises(ResultFileError, match=told):
        open_store(bucket.address)
    with pytest.raises(ResultFileError, match=told):
        compact(bucket.address)
    store = open_store(bucket.address, sealed=False)
    with pytest.raises(ResultFileError, match=told):
        store.rows("SELECT engine FROM history")
    store.close()


def test_two_compactions_at_once_lose_nothing(bucket: Storage, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.upload("ours.json", add(1, record(100.0)))
    compact_beside(bucket, add(2, record(200.0)), monkeypatch)
    with pytest.raises(ResultFileError, match=r"another compaction ran meanwhile, and this one lacks theirs\.json"):
        compact(bucket.address)
    assert compact(bucket.address) == (2, ())
    assert ask(bucket) == [(100.0,), (200.0,)]


def test_two_compactions_at_once_of_a_compacted_store(
    bucket: Storage, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("old.json", add(0, record(50.0)))
    compact(bucket.address)
    bucket.upload("ours.json", add(1, record(100.0)))
    compact_beside(bucket, add(2, record(200.0)), monkeypatch)
    # It is fine too where what the other one wrote is read in time.
    with suppress(ResultFileError):
        compact(bucket.address)
    assert compact(bucket.address) == (3, ())
    assert ask(bucket) == [(50.0,), (100.0,), (200.0,)]


def test_a_bucket_that_holds_nothing(s3: ObjectStore) -> None:
    with pytest.raises(ResultFileError, match=r"s3://bucket/results: no results"):
        open_store("s3://bucket/results")
    with pytest.raises(StorageError, match=r"s3://no-such/results: cannot be listed: no such bucket or folder"):
        open_store("s3://no-such/results")


def test_a_password_in_the_address_of_a_store_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trend", "s3://me:hunter2-secret@bucket/results"]) == 2
    shown = capsys.readouterr()
    assert "a store of results: the address holds a password or a signature" in shown.err
    assert "hunter2" not in shown.out + shown.err


def test_a_bucket_that_cannot_be_reached(lost_s3: ObjectStore) -> None:
    with pytest.raises(StorageError, match=r"s3://bucket/results: cannot be listed: EndpointConnectionError"):
        open_store("s3://bucket/results")


def test_a_bucket_that_is_lost_while_it_is_read(bucket: Storage, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.upload("one.json", add(1, record(100.0)))
    bucket.upload("two.json", add(2, record(200.0)))
    real = bucket.files.cat_file

    def lose(path: str) -> object:
        if path.endswith("two.json"):
            raise OSError(104, "Connection reset by peer")
        return real(path)

    # The file system is one for all who open the address.
    monkeypatch.setattr(bucket.files, "cat_file", lose)
    with pytest.raises(StorageError, match=r"two\.json: cannot be read: Connection reset by peer"):
        open_store(bucket.address)


def with_a_damaged_page(parquet: bytes, folder: Path) -> bytes:
    """Overwrite what the column `engine` holds; what says where it is stays whole."""
    (folder / "whole.parquet").write_bytes(parquet)
    with duckdb.connect() as connection:
        places: list[tuple[int, int]] = connection.execute(
            "SELECT least(data_page_offset, coalesce(nullif(dictionary_page_offset, 0), data_page_offset)), "
            "total_compressed_size FROM parquet_metadata(?) WHERE path_in_schema = 'engine'",
            [str(folder / "whole.parquet")],
        ).fetchall()
    start, size = places[0]
    return parquet[: start + 20] + b"\xff" * (size - 22) + parquet[start + size - 2 :]


def compact_beside(bucket: Storage, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the next compaction has read, let another one take a file that is deleted then."""
    write = store_module._write

    def also(*args: Any) -> None:
        monkeypatch.setattr(store_module, "_write", write)
        bucket.upload("theirs.json", theirs)
        compact(bucket.address)
        bucket.remove("theirs.json")
        write(*args)

    monkeypatch.setattr(store_module, "_write", also)


def of_one_size(path: Path) -> bytes:
    return path.read_bytes().ljust(20_000)


@pytest.fixture
def no_extensions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let DuckDB find no extension, wherever it looks."""
    real = duckdb.connect
    refused: dict[str, str | bool | int | float | list[str]] = {
        "custom_extension_repository": str(tmp_path / "nothing"),
        "extension_directory": str(tmp_path),
    }
    monkeypatch.setattr(duckdb, "connect", lambda name: real(name, config=refused))
