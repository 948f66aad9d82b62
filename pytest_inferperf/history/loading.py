"""What is in a store of result files: a folder, a file, or a bucket is listed, read into DuckDB, and named as baselines are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_inferperf.baselines.entries import accuracy_key, performance_key
from pytest_inferperf.baselines.result_file import case_from_json
from pytest_inferperf.errors import MissingExtra, ResultFileError
from pytest_inferperf.history.tables import ENTRIES, PROBLEMS, READ_JSON, SHARED, VIEWS, sql_text
from pytest_inferperf.storage import Storage, is_address, open_storage

if TYPE_CHECKING:
    import duckdb

__all__ = ["PARQUET", "Listed", "Loaded", "Skipped", "connect", "first_line", "known_files", "load", "reading"]

PARQUET = "inferperf-history.parquet"
"""What `inferperf history compact` writes into the root of the store."""

# In `mtime_ns` a store at an address has the version of each object.
_LISTED = "CREATE TABLE listed (path VARCHAR, file VARCHAR, size BIGINT, mtime_ns BIGINT)"
_CHUNK = 5_000
"""Result files parsed at a time: what they hold as text has to fit into memory."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file of the store that could not be read."""

    file: str
    reason: str


_Read = Callable[[Sequence[str]], Mapping[str, "bytes | str | None"]]
"""Reads many files at once: what they hold, or why one cannot be read; None for what is gone."""

Listed = tuple[str, int, int]
"""One JSON file of a store on this machine, as it is now: its name, relative to the root with slashes, its size, and when
it was changed, in ns. A plain tuple: there may be 100,000, and the garbage collector looks at anything else again and
again."""


def connect() -> duckdb.DuckDBPyConnection:
    """Return an empty database in memory. Raises `MissingExtra` without DuckDB."""
    try:
        import duckdb
    except ImportError:
        raise MissingExtra("A store of results", "history", "duckdb") from None
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    # A name in SQL must not find a variable of this process.
    connection.execute("SET python_enable_replacements = false")
    return connection


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A store that was read: the table or view `history` of its connection, and the views of `VIEWS`."""

    connection: duckdb.DuckDBPyConnection
    skipped: list[Skipped]
    known: set[Listed]
    """What the Parquet file holds."""

    parquet: str
    """The Parquet file that `history` is in part; empty where there is none."""


def load(root: str, *, sealed: bool) -> Loaded:
    """Read a store: all of it where it is to be sealed. Raises as `open_store`, but for one that holds nothing."""
    connection = connect()
    try:
        if is_address(root):
            return _load_remote(connection, open_storage(root, what="a store of results"), sealed=sealed)
        return _load_local(connection, root, sealed=sealed)
    except BaseException:
        connection.close()
        raise


def _load_local(connection: duckdb.DuckDBPyConnection, root: str, *, sealed: bool) -> Loaded:
    folder = Path(root)
    if folder.is_file():
        stat = folder.stat()
        listed = [(folder.name, stat.st_size, stat.st_mtime_ns)]
        folder = folder.parent
        parquet = None
    elif folder.is_dir():
        listed = _walk(str(folder))
        parquet = folder / PARQUET
    else:
        raise ResultFileError(f"{root}: no such file or folder. Name a folder of what --inferperf-json=FILE writes.")
    known: set[Listed] = set()
    if parquet is not None and parquet.exists():
        known = known_files(connection, str(parquet))
    fresh = [item for item in listed if item not in known]
    names = {f"{folder}/{item[0]}": item for item in fresh}
    skipped = _read_json(connection, list(names), _read_files)
    connection.execute(_LISTED)
    _insert(connection, "listed", [(path, *item) for path, item in names.items()])
    used = str(parquet) if known else ""
    _make_history(connection, used, sealed=sealed)
    named = [Skipped(file=names[item.file][0], reason=item.reason) for item in skipped]
    return Loaded(connection=connection, skipped=named, known=known, parquet=used)


def _load_remote(connection: duckdb.DuckDBPyConnection, storage: Storage, *, sealed: bool) -> Loaded:
    """Read a store in shared storage through fsspec: DuckDB would download extensions for that."""
    import duckdb

    listed = storage.list_versions()
    parquet = f"{storage.address}/{PARQUET}" if PARQUET in listed else ""
    if parquet:
        connection.register_filesystem(storage.files)
    try:
        known = known_files(connection, parquet) if parquet else set()
        fresh = [
            (name, size, version)
            for name, (size, version) in listed.items()
            # One without a version may have been replaced.
            if name.endswith(".json") and _is_shown(name) and not (version and (name, size, version) in known)
        ]
        skipped = _read_json(connection, [item[0] for item in fresh], storage.read_all)
        connection.execute(_LISTED)
        _insert(connection, "listed", [(item[0], *item) for item in fresh])
        _make_history(connection, parquet, sealed=sealed)
    except duckdb.Error as error:
        raise ResultFileError(f"{storage.address}: cannot be read: {first_line(error)}") from None
    return Loaded(connection=connection, skipped=skipped, known=known, parquet=parquet)


def _is_shown(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def _walk(root: str) -> list[Listed]:
    found = []
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if name.endswith(".json") and entry.is_file():
                    stat = entry.stat()
                    found.append((prefix + name, stat.st_size, stat.st_mtime_ns))
                elif entry.is_dir(follow_symlinks=False):
                    folders.append((f"{prefix}{name}/", entry.path))
    return found


def known_files(connection: duckdb.DuckDBPyConnection, parquet: str) -> set[Listed]:
    """Return the files that a Parquet file holds. Raises `ResultFileError` where it is damaged."""
    with reading(parquet):
        return set(connection.execute(f"SELECT file, size, mtime_ns FROM {_parquet_sql(parquet)}").fetchall())


@contextmanager
def reading(parquet: str) -> Iterator[None]:
    """Say what to do about a Parquet file that cannot be read, if there is one."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        if not parquet:
            raise
        raise ResultFileError(
            f"{parquet}: cannot be read: {first_line(error)} Delete it, and write it again: inferperf history compact"
        ) from None


def _parquet_sql(path: str) -> str:
    """Name one Parquet file, however its folders are called: `run[1]` is no pattern, `model=tiny` no column."""
    plain = "".join(f"[{character}]" if character in "*?[" else character for character in path)
    return f"read_parquet({sql_text(plain)}, hive_partitioning = false)"


def _read_json(connection: duckdb.DuckDBPyConnection, paths: Sequence[str], read: _Read) -> list[Skipped]:
    """Make the table `entries` of all paths, and return those that hold no result."""
    skipped: list[Skipped] = []
    # Also without files, so that the table is there.
    for start in range(0, max(len(paths), 1), _CHUNK):
        chunk = paths[start : start + _CHUNK]
        connection.execute("CREATE OR REPLACE TABLE texts (filename VARCHAR, content BLOB)")
        # Three times as fast as DuckDB for files of this size, and one that cannot be read is named.
        read_now = read(chunk)
        found = {path: content for path, content in read_now.items() if isinstance(content, bytes)}
        skipped += [
            Skipped(file=path, reason=f"cannot be read: {content or 'it is gone'}")
            for path, content in read_now.items()
            if not isinstance(content, bytes)
        ]
        if found:
            connection.execute("INSERT INTO texts SELECT unnest(?), unnest(?)", [list(found), list(found.values())])
        connection.execute(READ_JSON)
        skipped += [Skipped(file=file, reason=reason) for file, reason in connection.execute(PROBLEMS).fetchall()]
        connection.execute(ENTRIES if not start else ENTRIES.replace("CREATE TABLE entries AS", "INSERT INTO entries"))
        connection.execute("DROP TABLE parsed")
    connection.execute("DROP TABLE texts")
    return skipped


def _read_files(paths: Sequence[str]) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for path in paths:
        try:
            found[path] = Path(path).read_bytes()
        except OSError as problem:
            found[path] = problem.strerror or str(problem)
    return found


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert many rows; through JSON, which is parsed at once where values are bound one by one."""
    if not rows:
        return
    data = json.dumps([{"a": list(map(str, row))} for row in rows])
    width = len(rows[0])
    columns = ", ".join(f"a[{number}]" for number in range(1, width + 1))
    connection.execute(
        f"INSERT INTO {table} SELECT {columns} FROM "
        '(SELECT unnest(from_json(?, \'[{"a":["VARCHAR"]}]\'), recursive := true))',
        [data],
    )


def _make_history(connection: duckdb.DuckDBPyConnection, parquet: str, *, sealed: bool) -> None:
    """Join what was read with what was compacted: a file that was read anew counts as it is now."""
    _name_cases(connection)
    # One that can no longer be read counts as it was: a sync that was cut off must not cost a run.
    connection.execute("DELETE FROM listed WHERE path NOT IN (SELECT file FROM entries)")
    fresh = (
        'SELECT e.* REPLACE (l.file AS file), c.model, c.name AS "case", l.size, l.mtime_ns FROM entries e '
        "JOIN listed l ON l.path = e.file LEFT JOIN cases c USING (case_json)"
    )
    (anew,) = connection.execute("SELECT count(*) FROM listed").fetchall()[0]
    parts = [fresh] if anew or not parquet else []
    if parquet:
        still = " WHERE file NOT IN (SELECT file FROM listed)" if anew else ""
        parts += [f"SELECT * FROM {_parquet_sql(parquet)}{still}", SHARED]
    with reading(parquet):
        connection.execute(f"CREATE {'TABLE' if sealed else 'VIEW'} history AS {' UNION ALL BY NAME '.join(parts)}")
    for name, sql in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {sql}")


def _name_cases(connection: duckdb.DuckDBPyConnection) -> None:
    """Name each case as baseline files do; what makes no sense as a case is named by its test."""
    rows = []
    for text, metric in connection.execute(
        "SELECT case_json, any_value(accuracy.metric) FROM entries WHERE case_json IS NOT NULL GROUP BY case_json"
    ).fetchall():
        try:
            case = case_from_json(json.loads(text))
        except (KeyError, TypeError, ValueError):
            continue
        if case.workload is not None:
            name = performance_key(case)
        elif case.task is not None:
            name = f"{case.engine.precision}-{accuracy_key(case, metric or '')}".rstrip("-")
        else:
            name = case.engine.precision
        rows.append((text, case.engine.served_model_name, name))
    connection.execute("CREATE TABLE cases (case_json VARCHAR, model VARCHAR, name VARCHAR)")
    _insert(connection, "cases", rows)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, as a sentence."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
