"""A scratch DuckDB database on local disk, for tables that are larger than memory.

Listings, manifests and truth are written as Parquet to a temporary folder, and DuckDB sorts and
joins them under a memory limit, so the driver's memory does not grow with the number of images.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.processes import is_gone, me
from pipeline.scratch import temporary_folder
from pipeline.sharding import shard_start
from pipeline.storage.duckdb_fs import path_literal

MEMORY_LIMIT = "1GB"  # of DuckDB; Python and Arrow come on top
READ_ROWS = 50_000
PASS_ROWS = 100_000  # are sorted or grouped at a time
MOST_PASSES = 64  # each reads the hashes of all rows
SCRATCH = "panoptic-"


class Staging:
    """A context manager: a scratch DuckDB database on local disk, with views of Parquet files."""

    def __enter__(self) -> Staging:
        temporary_folder()  # raises UserError if there is none
        _sweep()
        self._folder = tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{me()}-")
        self.path = Path(self._folder.name)
        self.connection = duckdb.connect(str(self.path / "scratch.duckdb"))
        self.connection.execute(f"set memory_limit = '{MEMORY_LIMIT}'")
        self.connection.execute("set TimeZone = 'UTC'")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the files, before a job of days begins. May be called twice."""
        self.connection.close()
        self._folder.cleanup()

    def stage(self, name: str, tables: Iterator[pa.Table]) -> int:
        """Create the view `name` of the tables' rows, if there are any; returns their number."""
        rows = 0
        writer: pq.ParquetWriter | None = None
        path = self.path / f"{name}.parquet"
        try:
            for table in tables:
                if writer is None:
                    writer = pq.ParquetWriter(path, table.schema, compression="zstd")
                writer.write_table(table.cast(writer.schema))
                rows += table.num_rows
        finally:
            if writer is not None:
                writer.close()
        if writer is not None:
            self.connection.execute(f"create view {name} as from {parquet(path)}")
        return rows

    def types(self, view: str) -> dict[str, str]:
        """DuckDB's type of each column, by name."""
        rows = self.connection.execute(f"describe {view}").fetchall()
        return {row[0]: row[1] for row in rows}

    def count(self, query: str) -> int:
        [(count,)] = self.connection.execute(query).fetchall()
        return int(count)

    def refuse_duplicates(self, view: str) -> None:
        """Raises UserError for a repeated file_name."""
        for within in self._shares(view):
            repeated = self.connection.execute(
                f"select any_value(file_name), count(*) from {view} where {within} "
                "group by hash, file_name having count(*) > 1 limit 1"
            ).fetchall()
            for name, count in repeated:
                raise UserError(
                    f"{name!r} is listed {count} times: a name can have only one row, take the "
                    "others out or name a column of unique names with --name-column"
                )

    def in_order(self, view: str) -> Iterator[pa.Table]:
        """The rows of a view, sorted by hash and file_name, as in a manifest."""
        for within in self._shares(view):
            yield from self.tables(f"from {view} where {within} order by hash, file_name")

    def _shares(self, view: str) -> Iterator[str]:
        """SQL conditions for equal ranges of hashes, in order, of about `PASS_ROWS` rows each."""
        passes = min(MOST_PASSES, -(-self.count(f"select count(*) from {view}") // PASS_ROWS))
        for index in range(passes):
            low, next_low = shard_start(index, passes), shard_start(index + 1, passes)
            yield f"hash between {low}::ubigint and {next_low - 1}::ubigint"

    def tables(self, query: str) -> Iterator[pa.Table]:
        for batch in self.connection.sql(query).to_arrow_reader(READ_ROWS):
            yield pa.Table.from_batches([batch])


def parquet(path: Path, *, numbered: bool = False) -> str:
    """The SQL call that reads one Parquet file; patterns and `a=b` in the path have no meaning.

    numbered: with a column file_row_number.
    """
    options = f"hive_partitioning = false, file_row_number = {str(numbered).lower()}"
    return f"read_parquet({path_literal(str(path))}, {options})"


def quoted(name: str) -> str:
    """A column name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _sweep() -> None:
    """Delete the scratch folders of killed processes, which may hold gigabytes."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*-*"):
        if is_gone(folder.name.removeprefix(SCRATCH).rpartition("-")[0]):
            shutil.rmtree(folder, ignore_errors=True)
