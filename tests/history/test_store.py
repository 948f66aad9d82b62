"""A folder of result files as a database: what it reads, what it leaves out, and what SQL cannot do to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pytest_inferperf.errors import MissingExtra, ResultFileError, SettingsError
from pytest_inferperf.history import store as store_module
from pytest_inferperf.history.loading import PARQUET
from pytest_inferperf.history.store import Store, compact, open_store
from tests.history.conftest import Add, record


def ask(store: Path, sql: str) -> list[tuple[object, ...]]:
    found = open_store(str(store))
    try:
        return found.query(sql)[1]
    finally:
        found.close()


def test_views(store: Path, add: Add) -> None:
    add(1, record(100.0, day=1), environment={"driver": "570"})
    add(2, record(score=0.75, day=2))
    assert ask(store, "SELECT file, tests, passed, invalid FROM runs ORDER BY created") == [
        ("2026/run 001.json", 1, 1, 0),
        ("2026/run 002.json", 1, 1, 0),
    ]
    assert ask(
        store, 'SELECT model, "case", hardware, metric, value, sessions, "commit" FROM metrics ORDER BY metric'
    ) == [
        ("tiny", "NVFP4-isl16-osl8-c4", "Test GPU x2", "output_throughput", 100.0, 1, "000000000001"),
        ("tiny", "NVFP4-isl16-osl8-c4", "Test GPU x2", "ttft_ms.p99", 10.0, 1, "000000000001"),
    ]
    assert ask(store, "SELECT session, value FROM sessions WHERE metric = 'output_throughput'") == [(1, 100.0)]
    assert ask(store, 'SELECT gate, status, measured, "limit" FROM verdicts WHERE contains("case", \'isl16\')') == [
        ("output_throughput", "PASS", 100.0, 90.0)
    ]
    assert ask(store, 'SELECT "case", metric, score, questions, planned FROM accuracy') == [
        ("NVFP4-gsm8k-exact_match", "exact_match", 0.75, 2, 2)
    ]


def test_experiments_and_invalid_runs_are_marked(store: Path, add: Add) -> None:
    add(1, record(), environment={"--inferperf-inject": "slowdown:10%"})
    add(2, record(), environment={"--inferperf-set engine_options.x": "1"})
    add(3, record(), environment={"--inferperf-set rounds": "1"})
    add(4, record(invalid="throttled"))
    found = ask(store, "SELECT DISTINCT created, experiment, invalid FROM metrics ORDER BY created")
    assert [row[1:] for row in found] == [(True, ""), (True, ""), (False, ""), (False, "throttled")]


@pytest.mark.parametrize("compacted", [False, True])
def test_measurements_beside_others_are_marked(store: Path, add: Add, compacted: bool) -> None:
    add(1, record())
    add(2, record(shared=True))
    add(3, record(score=0.75, shared=True))
    if compacted:
        compact(str(store))
    found = ask(store, "SELECT DISTINCT created, shared FROM metrics ORDER BY created")
    assert [row[1] for row in found] == [False, True]
    assert ask(store, "SELECT shared FROM runs ORDER BY created") == [(0,), (1,), (0,)]


@pytest.mark.parametrize("fresh", [False, True])
def test_what_an_older_version_compacted_says_nothing_of_others(store: Path, add: Add, fresh: bool) -> None:
    add(1, record(shared=True))
    compact(str(store))
    old = store / PARQUET
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE kept AS SELECT * EXCLUDE (shared) FROM '{old}'")
        connection.execute(f"COPY kept TO '{old}' (FORMAT parquet)")
    if fresh:
        add(2, record(shared=True))
    found = ask(store, "SELECT DISTINCT created, shared FROM metrics ORDER BY created")
    assert [row[1] for row in found] == [None, *([True] if fresh else [])]


def test_what_cannot_be_read_is_skipped_and_named(store: Path, add: Add) -> None:
    add(1, record())
    cut = add(2, record())
    cut.write_bytes(cut.read_bytes()[:500])
    (store / "other.json").write_text("[1]")
    (store / "binary.json").write_bytes(b"\xff\xfe\x00")
    (store / "empty.json").write_text("")
    newer = add(3, record(), name="newer.json")
    newer.write_text(newer.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    (store / "gone.json").symlink_to(store / "nowhere.json")
    found = open_store(str(store))
    assert {item.file: item.reason for item in found.skipped} == {
        "2026/run 002.json": "cut short, or not JSON",
        "binary.json": "not UTF-8",
        "empty.json": "cut short, or not JSON",
        "newer.json": "schema_version 99 is newer than this package",
        "other.json": "not a result file",
    }
    assert found.query("SELECT file FROM runs")[1] == [("2026/run 001.json",)]


def test_names_with_stars_quotes_and_unicode(store: Path, add: Add) -> None:
    names = ["it's [1]*.json", "ünïcode/a b.json", "?.json"]
    for day, name in enumerate(names):
        add(day, record(), name=name)
    assert [row[0] for row in ask(store, "SELECT file FROM runs ORDER BY created")] == names


def test_an_empty_run_is_a_run(store: Path, add: Add) -> None:
    add(1)
    assert ask(store, "SELECT tests FROM runs") == [(0,)]


def test_no_store(store: Path) -> None:
    with pytest.raises(ResultFileError, match=r"no such file or folder. Name a folder of what --inferperf-json"):
        open_store(str(store / "none"))
    (store / "bad.json").write_text("{")
    with pytest.raises(ResultFileError, match=r"no results(.|\n)*skipped bad.json: cut short"):
        open_store(str(store))


def test_one_file_is_a_store(store: Path, add: Add) -> None:
    path = add(1, record())
    add(2, record())
    assert ask(path, "SELECT count(*) FROM runs") == [(1,)]


# Parquet.


def test_compacted_runs_stay_and_new_and_changed_ones_count(store: Path, add: Add) -> None:
    kept = add(1, record(100.0))
    add(2, record(200.0))
    assert compact(str(store)) == (2, ())
    kept.unlink()
    again = add(2, record(250.0))
    os.utime(again, ns=(1, 1))
    add(3, record(300.0))
    query = "SELECT value FROM metrics WHERE metric = 'output_throughput' ORDER BY created"
    expected = [(100.0,), (250.0,), (300.0,)]
    assert ask(store, query) == expected
    assert open_store(str(store), sealed=False).rows(query) == expected
    assert compact(str(store)) == (3, ())
    assert ask(store, query) == expected
    assert sorted(item.name for item in store.iterdir()) == ["2026", PARQUET]


def test_a_compacted_run_outlives_its_damaged_file(store: Path, add: Add) -> None:
    damaged = add(1, record(100.0), name="one.json")
    add(2, record(200.0))
    compact(str(store))
    damaged.write_bytes(damaged.read_bytes()[:500])
    runs, skipped = compact(str(store))
    assert runs == 2
    assert [item.file for item in skipped] == ["one.json"]
    damaged.unlink()
    assert ask(store, "SELECT count(*) FROM runs") == [(2,)]


def test_folders_that_look_like_patterns_or_columns(store: Path, add: Add) -> None:
    names = ["run1", "run[1]", "run?", "run*", "model=other"]
    for day, name in enumerate(names):
        path = add(day, record(), name=f"{name}/{day}.json")
        compact(str(path.parent))
        path.unlink()
    for day, name in enumerate(names):
        assert ask(store / name, "SELECT file, model FROM history") == [(f"{day}.json", "tiny")], name


def test_unchanged_files_are_not_read_again(store: Path, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    add(1, record())
    compact(str(store))
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read"))
    assert ask(store, "SELECT tests FROM runs") == [(1,)]


def test_a_parquet_file_that_cannot_be_written_changes_nothing(store: Path, add: Add) -> None:
    add(1, record())
    (store / PARQUET).mkdir()
    with pytest.raises(ResultFileError, match=f"{PARQUET}: cannot be"):
        compact(str(store))
    assert sorted(item.name for item in store.iterdir()) == ["2026", PARQUET]


def test_two_compactions_at_once_lose_nothing(store: Path, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    add(1, record())
    write = store_module._write

    def also(*args: Any) -> None:
        monkeypatch.setattr(store_module, "_write", write)
        theirs = add(2, record(), name="theirs.json")
        compact(str(store))
        theirs.unlink()
        write(*args)

    monkeypatch.setattr(store_module, "_write", also)
    with pytest.raises(ResultFileError, match=r"another compaction ran meanwhile, and this one lacks theirs\.json"):
        compact(str(store))
    assert sorted(item.name for item in store.iterdir()) == ["2026", PARQUET]
    assert compact(str(store)) == (2, ())


def test_a_changed_file_is_no_other_compaction(store: Path, add: Add) -> None:
    add(1, record(100.0))
    compact(str(store))
    os.utime(add(1, record(200.0)), ns=(1, 1))
    assert compact(str(store)) == (1, ())


def test_a_damaged_parquet_file_says_what_to_do(store: Path, add: Add) -> None:
    add(1, record())
    (store / PARQUET).write_bytes(b"PAR1 and no more")
    with pytest.raises(ResultFileError, match=r"cannot be read: (.|\n)*Delete it, and write it again"):
        open_store(str(store))


# What SQL cannot do.


@pytest.fixture
def opened(store: Path, add: Add) -> Store:
    add(1, record())
    return open_store(str(store))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{outside}')",
        "SELECT * FROM '{outside}'",
        "SELECT * FROM read_csv('{outside}')",
        "SELECT * FROM read_json('{inside}')",
        "SELECT * FROM glob('/*')",
        "COPY metrics TO '{outside}'",
        "ATTACH '{outside}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW metrics",
        "EXPLAIN ANALYZE COPY metrics TO '{outside}'",
        "SELECT 1; COPY metrics TO '{outside}'",
        "SELECT * FROM secret_rows",
        "SELECT getenv('HOME')",
        "nonsense",
        "",
    ],
)
def test_sql_reads_and_writes_nothing(opened: Store, tmp_path: Path, sql: str) -> None:
    secret_rows = [("a variable of the process",)]
    outside = tmp_path / "outside.csv"
    outside.write_text("a\nkept\n")
    with pytest.raises(SettingsError, match=r"^query: "):
        opened.query(sql.format(outside=outside, inside=tmp_path / "results/2026/run 001.json"))
    assert outside.read_text() == "a\nkept\n"
    assert opened.query("SELECT count(*) FROM metrics")[1] == [(2,)], secret_rows


def test_what_is_not_a_select_says_what_is(opened: Store) -> None:
    with pytest.raises(SettingsError, match=r"one SELECT is asked for. Tables: history, runs, metrics, sessions"):
        opened.query("DELETE FROM history")


def test_without_duckdb(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtra, match=r'needs the "history" extra \(duckdb is not installed\): pip install'):
        open_store(str(store))


def test_nothing_else_imports_duckdb(tmp_path: Path) -> None:
    code = "import sys; import pytest_inferperf.cli; assert 'duckdb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
