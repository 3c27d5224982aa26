"""Objects of any store as files of DuckDB: local ones by their path, others through fsspec."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import duckdb
import fsspec

from pipeline.storage.storage import Storage

SCHEME: Final = "panoptic"


def url_of(connection: duckdb.DuckDBPyConnection, storage: Storage, path: str) -> str:
    """What `read_parquet` on this connection takes for an object of the storage."""
    if storage.is_local:
        return storage.key(path)
    if not connection.filesystem_is_registered(SCHEME):
        connection.register_filesystem(_Files(storage.fsspec))
    bucket = storage.url.partition("://")[2].partition("/")[0] + "/" if storage.is_s3 else ""
    return f"{SCHEME}://{bucket}{storage.key(path).lstrip('/')}"


class _Files(fsspec.AbstractFileSystem):
    """The run's file system under a scheme of its own, so that DuckDB leaves it to fsspec."""

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
        return datetime.fromtimestamp(0, UTC)  # shards never change, and asking costs a request

    def glob(self, path: str, **options: Any) -> list[str]:  # type: ignore[override]
        return [path]  # the paths are exact: nothing to look for
