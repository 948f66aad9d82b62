"""Opens a folder or bucket of result files in DuckDB, in place.

For the SQL of users everything is read before it is asked: from then on the connection reads and writes no file.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import ResultFileError, SettingsError
from pytest_inferperf.history.loading import PARQUET, Listed, Skipped, connect, first_line, known_files, load, reading
from pytest_inferperf.history.tables import VIEWS, sql_text
from pytest_inferperf.storage import Storage, is_address, open_storage

if TYPE_CHECKING:
    import duckdb

__all__ = ["Store", "compact", "open_store"]


class Store:
    """An open store. Its SQL knows `history` and the views of `VIEWS`, and no file."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, *, root: str, skipped: Sequence[Skipped], parquet: str
    ) -> None:
        self._connection = connection
        self._parquet = parquet
        self.root = root
        self.skipped = tuple(skipped)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run SQL of this package.

        Raises `ResultFileError` for a Parquet file that is damaged where it was not read yet.
        """
        with reading(self._parquet):
            return self._connection.execute(sql, list(parameters)).fetchall()

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run one SELECT of a user, and return its column names and rows.

        Raises `SettingsError` for anything else, with what DuckDB says about it.
        """
        import duckdb

        try:
            statements = self._connection.extract_statements(sql)
        except duckdb.Error as error:
            raise SettingsError(f"query: {first_line(error)}") from None
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise SettingsError(
                f"query: one SELECT is asked for. Tables: history, {', '.join(VIEWS)}. "
                'Such as: inferperf query "SELECT metric, count(*) FROM metrics GROUP BY metric"'
            )
        try:
            cursor = self._connection.execute(sql)
            return [item[0] for item in cursor.description or ()], cursor.fetchall()
        except duckdb.Error as error:
            raise SettingsError(f"query: {first_line(error)}") from None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def open_store(root: str, *, sealed: bool = True) -> Store:
    """Read the store at a folder, a result file, or an address such as `s3://bucket/results`.

    A sealed store touches no file and no network after this call, whatever SQL says, and what users ask goes to a sealed
    one. SQL of this package alone may ask another, which reads of the Parquet file only what it needs.

    Raises `MissingExtra` without DuckDB, `ResultFileError` for a store that is not there or holds nothing, and as
    `open_storage`.
    """
    loaded = load(root, sealed=sealed)
    store = Store(loaded.connection, root=root, skipped=loaded.skipped, parquet=loaded.parquet)
    (count,) = store.rows("SELECT count(*) FROM history")[0]
    if not count:
        store.close()
        named = "".join(f"\n  skipped {item.file}: {item.reason}" for item in store.skipped)
        raise ResultFileError(
            f"{root}: no results. A store is a folder of the files that --inferperf-json=FILE writes.{named}"
        )
    if sealed:
        _lock(loaded.connection)
    return store


def compact(root: str) -> tuple[int, tuple[Skipped, ...]]:
    """Write `PARQUET` into the root of a store, and return how many runs it holds, and what was skipped.

    The JSON files stay. Those in the Parquet file, unchanged, are not read again; what they held stays when they are
    deleted. The file is replaced whole. Raises as `open_store`, and `ResultFileError` where another compaction wrote
    meanwhile what this one would lose.
    """
    loaded = load(root, sealed=False)
    connection = loaded.connection
    target = f"{root.rstrip('/')}/{PARQUET}"
    try:
        with reading(loaded.parquet):
            (runs,) = connection.execute("SELECT count(DISTINCT file) FROM history").fetchall()[0]
        if not runs:
            raise ResultFileError(f"{root}: no results to compact.")
        if is_address(root):
            storage = open_storage(root, what="a store of results")
            with tempfile.TemporaryDirectory(prefix="inferperf-") as folder:
                written = Path(folder) / PARQUET
                _write(connection, written, target)
                _refuse_loss(loaded.known, written, target, storage)
                storage.upload(PARQUET, written)
            return runs, tuple(loaded.skipped)
        # A file that is written in place is not whole all the time.
        written = Path(f"{root.rstrip('/')}/.{PARQUET}.{secrets.token_hex(8)}.tmp")
        try:
            _write(connection, written, target)
            _refuse_loss(loaded.known, written, target)
            written.replace(target)
        except OSError as error:
            raise _not_written(target, error) from None
        finally:
            written.unlink(missing_ok=True)
    finally:
        connection.close()
    return runs, tuple(loaded.skipped)


def _write(connection: duckdb.DuckDBPyConnection, path: Path, target: str) -> None:
    import duckdb

    order = 'model, "case", hardware, created, file'
    history = f"SELECT * FROM history ORDER BY {order}"
    try:
        connection.execute(f"COPY ({history}) TO {sql_text(str(path))} (FORMAT parquet, COMPRESSION zstd)")
    except duckdb.Error as error:
        raise _not_written(target, error) from None


def _not_written(target: str, error: Exception) -> ResultFileError:
    return ResultFileError(f"{target}: cannot be written: {first_line(error)} Nothing was changed.")


def _refuse_loss(before: set[Listed], written: Path, target: str, storage: Storage | None = None) -> None:
    """Refuse to replace a Parquet file that holds what neither it held `before` nor the new one holds.

    What it held before and the new one lacks has been replaced; anything else may be nowhere else.
    """
    if not (storage.size(PARQUET) is not None if storage else Path(target).exists()):
        return
    # DuckDB may remember the file as the connection that read it saw it.
    with connect() as anew:
        ours = known_files(anew, str(written))
        if storage:
            anew.register_filesystem(storage.files)
        lost = sorted(known_files(anew, target) - before - ours)
    if lost:
        raise ResultFileError(
            f"{target}: another compaction ran meanwhile, and this one lacks {lost[0][0]}, which that one wrote. Nothing "
            "was changed. Run it again: inferperf history compact"
        )


def _lock(connection: duckdb.DuckDBPyConnection) -> None:
    """From here on the connection touches no file and no network, and SQL cannot change that."""
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
