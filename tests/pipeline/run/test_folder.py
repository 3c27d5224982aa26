"""Objects of a run folder."""

from __future__ import annotations

import sys

import pyarrow as pa

from pipeline.run.folder import parquet_bytes, read_parquet


def test_a_table_is_read_as_it_was_written() -> None:
    table = pa.table({"path": ["a", "b"], "rows": [1, None]}).replace_schema_metadata({"k": "v"})
    assert read_parquet(parquet_bytes(table)).equals(table, check_metadata=True)


def test_no_thread_holds_the_bytes_once_they_are_read() -> None:
    """Else it lets go of them while the process ends, and aborts it."""
    data = parquet_bytes(pa.table({"path": ["a"] * 1_000}))
    held = sys.getrefcount(data)
    for _ in range(500):
        table = read_parquet(data)
        del table
        assert sys.getrefcount(data) == held
