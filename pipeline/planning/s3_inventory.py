"""S3 Inventory (a bucket's daily list of its keys, as CSV or Parquet files) as a listing.

A listing of 100 million keys takes 100,000 requests and hours; an inventory is a few hundred files.
An inventory is up to two days old: an image that has changed since then becomes an error row
(`changed`, `not_found`), and a refresh with the next inventory computes it again.

S3 writes each inventory under a new dated key in the folder of its configuration. A source may be
that folder, which means its newest inventory; to a run all inventories of a folder are one source.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, Final
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.storage.entry import Entry, bare_etag
from pipeline.storage.storage import Storage

SOURCE_BUCKET: Final = "sourceBucket"  # a key that a COCO JSON doesn't have
ROWS: Final = 10_000
CSV_BLOCK: Final = 4 << 20
# Column of the CSV files -> column of the Parquet files.
COLUMNS: Final = {
    "Key": "key",
    "Size": "size",
    "ETag": "e_tag",
    "LastModifiedDate": "last_modified_date",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
}


_DATED: Final = re.compile(r"(?:^|/)\d{4}-\d\d-\d\dT\d\d-\d\dZ/manifest\.(?:json|checksum)$")


def is_dated(path: str) -> bool:
    """Whether `path` is the `manifest.json` or `manifest.checksum` of one day's inventory."""
    return _DATED.search(path) is not None


def undated(source: Any) -> Any:
    """The folder of the configuration if `source` is a dated manifest, else `source`."""
    return _DATED.sub("", source) if isinstance(source, str) else source


def newest_manifest(entries: Iterable[Entry]) -> str | None:
    """The path of the newest `manifest.json` in a configuration's folder; None if there is none.

    entries: in key order, in which dated manifests come before all other files.
    """
    dated = takewhile(lambda entry: is_dated(entry.path), entries)
    manifests = [entry.path for entry in dated if entry.path.endswith(".json")]
    return max(manifests, default=None)


def is_inventory(data: Any) -> bool:
    """Whether a JSON object is the `manifest.json` of an inventory."""
    return isinstance(data, dict) and SOURCE_BUCKET in data and "fileFormat" in data


@dataclass(frozen=True)
class Inventory:
    """The content of an inventory's `manifest.json`."""

    bucket: str  # the listed bucket
    files: tuple[tuple[str, str | None], ...]  # key in `destination`, MD5
    destination: str  # the bucket that holds the files
    format: str
    columns: tuple[str, ...]  # of the CSV files, in order

    @classmethod
    def of(cls, data: Mapping[str, Any], url: str) -> Inventory:
        """Raises UserError for an inventory in ORC or without the needed columns."""
        kind = str(data["fileFormat"])
        if kind not in ("CSV", "Parquet"):
            raise UserError(
                f"{url} is an inventory in {kind}: configure one in CSV or Parquet (Apache ORC is "
                "not read)"
            )
        columns = tuple(name.strip() for name in str(data.get("fileSchema", "")).split(","))
        if kind == "CSV" and not {"Key", "Size", "ETag", "LastModifiedDate"} <= set(columns):
            raise UserError(
                f"{url}: the inventory has the columns {', '.join(columns)}; it also needs the "
                "optional fields Size, ETag and LastModifiedDate: add them to its configuration"
            )
        return cls(
            bucket=str(data["sourceBucket"]).rpartition(":")[2],
            files=tuple((file["key"], file.get("MD5checksum")) for file in data["files"]),
            destination=str(data["destinationBucket"]).rpartition(":")[2],
            format=kind,
            columns=columns,
        )

    def entries(self, options: Mapping[str, str]) -> Iterator[Entry]:
        """Every current object, by its key in `bucket`. Raises UserError for a damaged file."""
        storage = Storage(f"s3://{self.destination}", options)
        for key, md5 in self.files:
            data = storage.read(key)
            if md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
                raise UserError(
                    f"{storage.join(key)} is not the file that the inventory's manifest names: its "
                    "MD5 differs"
                )
            rows = self._csv(data) if self.format == "CSV" else self._parquet(data, key)
            yield from filter(None, map(_entry, rows))

    def _csv(self, data: bytes) -> Iterator[dict[str, Any]]:
        wanted = [name for name in COLUMNS if name in self.columns]
        with pa.CompressedInputStream(pa.BufferReader(data), "gzip") as stream:
            reader = pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(
                    column_names=list(self.columns), block_size=CSV_BLOCK
                ),
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.string()),
                    strings_can_be_null=False,
                ),
            )
            for batch in reader:
                for row in batch.rename_columns([COLUMNS[name] for name in wanted]).to_pylist():
                    key = row["key"]  # percent-encoded, unlike in Parquet
                    row["key"] = unquote_plus(key) if "%" in key or "+" in key else key
                    yield row

    def _parquet(self, data: bytes, key: str) -> Iterator[dict[str, Any]]:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        lacking = {"key", "size", "e_tag", "last_modified_date"} - set(names)
        if lacking:
            raise UserError(
                f"the inventory file {key} lacks {', '.join(sorted(lacking))}: add the optional "
                "fields Size, ETag and LastModifiedDate to the inventory's configuration"
            )
        columns = [name for name in COLUMNS.values() if name in names]
        for batch in file.iter_batches(ROWS, columns=columns):
            yield from batch.to_pylist()


def _entry(row: Mapping[str, Any]) -> Entry | None:
    """The listed object; None for an old version, a delete marker, or a key that ends in `/`."""
    if str(row.get("is_latest", "true")).lower() == "false":
        return None
    if str(row.get("is_delete_marker", "false")).lower() == "true":
        return None
    key = row["key"].decode() if isinstance(row["key"], bytes) else row["key"]
    if key.endswith("/"):
        return None
    size, etag = row["size"], row["e_tag"]
    return Entry(
        key,
        int(size) if size not in (None, "") else -1,
        bare_etag(etag.decode() if isinstance(etag, bytes) else etag),
        _time(row["last_modified_date"]),
    )


def _time(value: Any) -> datetime | None:
    if value in (None, ""):
        return None
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    if isinstance(value, int):
        return datetime.fromtimestamp(value / 1000, UTC)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value
