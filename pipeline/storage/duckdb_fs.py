"""Objects of any store as files for DuckDB: local files by path, others through fsspec."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

import duckdb
import fsspec

from pipeline.storage.storage import Storage

SCHEME: Final = "panoptic"


def url_of(connection: duckdb.DuckDBPyConnection, storage: Storage, path: str) -> str:
    """The name of the object `path` for DuckDB's `read_parquet` on this connection."""
    if storage.is_local:
        return storage.key(path)
    if not connection.filesystem_is_registered(SCHEME):
        connection.register_filesystem(_Files(storage.fsspec))
    bucket = storage.url.partition("://")[2].partition("/")[0] + "/" if storage.is_s3 else ""
    return f"{SCHEME}://{bucket}{storage.key(path).lstrip('/')}"


def path_literal(path: str) -> str:
    """A path as an SQL string; `*`, `?` and `[`, patterns in DuckDB, become `[*]`, ..."""
    return "'" + re.sub(r"([*?\[])", r"[\1]", path).replace("'", "''") + "'"


class _Files(fsspec.AbstractFileSystem):
    """A file system under the scheme `SCHEME`, which DuckDB does not read by itself."""

    protocol = SCHEME  # type: ignore[assignment]
    cachable = False

    def __init__(self, inner: fsspec.AbstractFileSystem, **options: Any) -> None:
        super().__init__(**options)
        self._inner = inner

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # type: ignore[override]
        return self._inner.open(self._strip_protocol(path), mode)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return self._inner.info(self._strip_protocol(path))

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(0, UTC)  # objects never change, and a HEAD costs a request

    def glob(self, path: str, **options: Any) -> list[str]:  # type: ignore[override]
        return [path]  # paths hold no pattern
