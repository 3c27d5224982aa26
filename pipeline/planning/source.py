"""What there is to segment: a folder, a list or a COCO JSON, streamed as manifest rows.

Rows come in tables of a few thousand, never all at once, so a listing of a hundred million keys
holds one page in memory. `file_name` is the path within the source (COCO's own term); for a list
of URIs it is the whole URI unless a column is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.config import IMAGE_SUFFIXES, RunConfig
from pipeline.errors import UserError
from pipeline.planning.s3_inventory import Inventory, is_dated, is_inventory, newest_manifest
from pipeline.schema import MANIFEST_SCHEMA, SHARD_SCHEMA
from pipeline.secrets import is_signed, refuse_user_info, without_query
from pipeline.sharding import name_hash
from pipeline.storage.entry import Entry, as_lost, as_user_error
from pipeline.storage.node_cache import local_copy
from pipeline.storage.storage import Storage, normalize

T = TypeVar("T")
CHUNK: Final = 10_000
LIST_SUFFIXES: Final = ("txt", "csv", "parquet")
URI_COLUMNS: Final = ("uri", "url", "path", "file_name", "image")


@dataclass(frozen=True)
class Source:
    """Where the images are and which of them count."""

    url: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    image_root: str | None = None
    uri_column: str | None = None
    name_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    output_url: str = ""  # excluded, when the run folder lies inside the source
    keep_signed_urls: bool = False

    @classmethod
    def of(cls, config: RunConfig) -> Source:
        return cls(
            url=normalize(config.source),
            include=config.include,
            exclude=config.exclude,
            image_root=config.image_root,
            uri_column=config.uri_column,
            name_column=config.name_column,
            keep_columns=config.keep_columns,
            options=config.source_options,
            output_url=normalize(config.out),
            keep_signed_urls=config.keep_signed_urls,
        )

    @property
    def kind(self) -> str:
        suffix = self.url.rpartition("/")[2].rpartition(".")[2].lower()
        if suffix in LIST_SUFFIXES:
            return "list"
        return "coco" if suffix == "json" else "folder"

    def tables(self, progress: Callable[[int], None] = lambda count: None) -> Iterator[pa.Table]:
        """The manifest rows, unsorted. Raises UserError if the source can't be read."""
        count = 0
        try:
            reader = {"folder": self._folder, "list": self._list, "coco": self._coco}[self.kind]
            for table in map(self._without_secrets, reader()):
                count += table.num_rows
                progress(count)
                yield table
        except (UserError, GeneratorExit):
            raise
        except FileNotFoundError as error:
            raise UserError(f"--source {self.url} does not exist") from error
        except Exception as error:
            as_sentence = as_lost if count else as_user_error
            raise as_sentence(error, f"can't list {self.url}") from error

    def _without_secrets(self, rows: pa.Table) -> pa.Table:
        """Rows whose names carry no signature. Raises UserError for one that must not be kept.

        A folder's keys are names, whatever they look like.
        """
        if self.kind == "folder":
            return rows
        for column in rows.column_names:
            if not pa.types.is_string(rows[column].type):
                continue
            urls = rows[column].to_pylist()
            signed = next((url for url in urls if url and is_signed(url)), None)
            if signed and (not self.keep_signed_urls or column in self.keep_columns):
                raise UserError(
                    f"{self.url} holds signed URLs ({column} {without_query(signed)}): let a role "
                    "or a profile read the bucket, and list plain URLs or name the images with "
                    "--name-column; or take them with --keep-signed-urls, in uri alone"
                )
            if signed and column == "file_name":
                rows = _renamed(rows, [without_query(name) for name in urls])
            if column in ("file_name", "uri"):
                for url in urls:
                    refuse_user_info(url, self.url)
        return rows

    def _folder(self) -> Iterator[pa.Table]:
        storage = Storage(self.url, self.options)
        if storage.is_local:
            path = Path(storage.url)
            if path.is_file():
                raise UserError(
                    f"{self.url} is one file: give its folder, a list (.txt .csv .parquet), a COCO "
                    ".json, or use `panoptic view` for one photo"
                )
            if not path.is_dir():
                raise FileNotFoundError(self.url)
        found = storage.list()
        if (first := next(found, None)) is None:
            return
        found = chain((first,), found)
        if is_dated(first.path):  # in key order the first, where S3 writes its inventories
            yield from self._newest_inventory(storage, found)
            return
        entries = (entry for entry in found if self._counts(entry.path, self.url))
        for chunk in _chunks(entries):
            yield _manifest_table(chunk, [storage.join(entry.path) for entry in chunk])

    def _counts(self, path: str, root: str) -> bool:
        """Whether a path under `root` is wanted and isn't the run folder's own."""
        own = self.output_url.startswith(root + "/") and f"{root}/{path}".startswith(
            self.output_url + "/"
        )
        return not own and self.wanted(path)

    def wanted(self, path: str) -> bool:
        """The default takes image suffixes in any case; `include` replaces it, `exclude` wins."""
        if any(_matches(path, pattern) for pattern in self.exclude):
            return False
        if self.include:
            return any(_matches(path, pattern) for pattern in self.include)
        return path.rpartition(".")[2].lower() in IMAGE_SUFFIXES

    def _coco(self) -> Iterator[pa.Table]:
        data = json.loads(local_copy(self.url, self.options).read_text())
        if is_inventory(data):
            yield from self._inventory(data)
            return
        if not isinstance(data, dict) or not isinstance(data.get("images"), list):
            raise UserError(f"{self.url} is not a COCO JSON: it has no list `images`")
        root = self._image_root()
        for chunk in _chunks(data["images"]):
            names = [image.get("file_name") for image in chunk]
            if None in names:
                raise UserError(f"{self.url}: an entry of `images` has no `file_name`")
            entries = [Entry(name, -1, None, None) for name in names]
            yield _manifest_table(entries, [f"{root}/{name}" for name in names])

    def _newest_inventory(self, storage: Storage, found: Iterable[Entry]) -> Iterator[pa.Table]:
        path = newest_manifest(found)
        if path is None:
            raise UserError(
                f"{self.url} has no complete inventory yet: S3 writes the first in a day or two"
            )
        yield from self._inventory(json.loads(storage.read(path)))

    def _inventory(self, data: dict[str, Any]) -> Iterator[pa.Table]:
        """Names are relative to `--image-root`, which then also says which keys count."""
        inventory = Inventory.of(data, self.url)
        root = normalize(self.image_root) if self.image_root else f"s3://{inventory.bucket}"
        bucket, _, folder = root.removeprefix("s3://").partition("/")
        if bucket != inventory.bucket or not root.startswith("s3://"):
            raise UserError(
                f"--image-root {root} is not in s3://{inventory.bucket}, which {self.url} lists"
            )
        start = len(folder) + 1 if folder else 0
        named = (
            entry._replace(path=entry.path[start:])
            for entry in inventory.entries(self.options)
            if not folder or entry.path.startswith(folder + "/")
        )
        for chunk in _chunks(entry for entry in named if self._counts(entry.path, root)):
            yield _manifest_table(chunk, [f"{root}/{entry.path}" for entry in chunk])

    def _list(self) -> Iterator[pa.Table]:
        path = str(local_copy(self.url, self.options))
        if self.url.lower().endswith(".txt"):
            with Path(path).open(encoding="utf-8") as lines:
                stripped = (line.strip() for line in lines)
                for chunk in _chunks(line for line in stripped if line):
                    yield self._listed(chunk, chunk, {})
            return
        reader = "read_csv" if self.url.lower().endswith(".csv") else "read_parquet"
        with duckdb.connect() as connection:
            relation = connection.sql(
                f"select * from {reader}(?, hive_partitioning = false)", params=[path]
            )
            uri_column = self._uri_column(relation.columns)
            name_column = self.name_column or uri_column
            for name in (name_column, *self.keep_columns):
                if name not in relation.columns:
                    known = ", ".join(relation.columns)
                    raise UserError(f"{self.url} has no column {name!r} (it has: {known})")
            for name in self.keep_columns:
                if name in SHARD_SCHEMA.names or name in MANIFEST_SCHEMA.names:
                    raise UserError(
                        f"--keep-columns {name!r} is the name of a column of the shards: rename it"
                    )
            for batch in relation.to_arrow_reader(CHUNK):
                kept = {name: batch[name] for name in self.keep_columns}
                uris = batch[uri_column].cast(pa.string()).to_pylist()
                yield self._listed(batch[name_column].cast(pa.string()).to_pylist(), uris, kept)

    def _uri_column(self, columns: list[str]) -> str:
        if self.uri_column:
            if self.uri_column not in columns:
                raise UserError(
                    f"{self.url} has no column {self.uri_column!r} (it has: {', '.join(columns)})"
                )
            return self.uri_column
        for name in URI_COLUMNS:
            if name in columns:
                return name
        raise UserError(
            f"{self.url}: which column holds the images? Name it with --uri-column "
            f"(it has: {', '.join(columns)})"
        )

    def _listed(self, names: list[str], uris: list[str], kept: dict[str, Any]) -> pa.Table:
        if None in names or None in uris:
            raise UserError(f"{self.url} has an empty name or URI: fill it or take the row out")
        root = self._image_root()
        full = [uri if "://" in uri or uri.startswith("/") else f"{root}/{uri}" for uri in uris]
        return _manifest_table([Entry(name, -1, None, None) for name in names], full, kept)

    def _image_root(self) -> str:
        return normalize(self.image_root) if self.image_root else self.url.rpartition("/")[0]


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _manifest_table(
    entries: Iterable[Entry], uris: list[str], kept: dict[str, Any] | None = None
) -> pa.Table:
    """Manifest rows of listed entries; a size below 0 is unknown."""
    entries = list(entries)
    columns: dict[str, Any] = {
        "hash": np.array([name_hash(entry.path) for entry in entries], np.uint64),
        "file_name": [entry.path for entry in entries],
        "uri": uris,
        "size": [entry.size if entry.size >= 0 else None for entry in entries],
        "etag": [entry.etag for entry in entries],
        "last_modified": [entry.last_modified for entry in entries],
        "attempts": np.zeros(len(entries), np.int32),
    }
    table = pa.table(columns, schema=MANIFEST_SCHEMA)
    for name, values in (kept or {}).items():
        table = table.append_column(name, values)
    return table


def _renamed(rows: pa.Table, names: list[str]) -> pa.Table:
    """Manifest rows under other file names, and their hashes."""
    for column, values in (
        ("file_name", pa.array(names, pa.string())),
        ("hash", pa.array(np.array([name_hash(name) for name in names], np.uint64))),
    ):
        at = rows.column_names.index(column)
        rows = rows.set_column(at, rows.schema.field(at), values)
    return rows


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path.rpartition("/")[2], pattern)
