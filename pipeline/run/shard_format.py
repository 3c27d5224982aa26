"""A shard as a Parquet object: encode rows, write once, read the counts of the footer."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.error_budget import Failures, failures_of
from pipeline.errors import UserError
from pipeline.run.folder import ShardEntry
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.storage import Storage

ROW_GROUP_ROWS: Final = 1_000
ERROR_COLUMNS: Final = ("error_code", "uri", "error_message")
COUNTS_LEAF: Final = "counts.list.element"  # Parquet's path of the RLE strings
COUNTS_LEVEL: Final = 16


@dataclass(frozen=True)
class Provenance:
    """What a shard was made with: entries of its Parquet metadata."""

    fingerprint: str
    weights_sha256: str
    device: str

    def metadata(self, ok: int, error: int) -> dict[bytes, bytes]:
        values: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "weights_sha256": self.weights_sha256,
            "device": self.device,
            "ok": ok,
            "error": error,
        }
        return {f"panoptic.{name}".encode(): str(value).encode() for name, value in values.items()}


def encode_shard(rows: pa.Table, provenance: Provenance, *, level: int = COUNTS_LEVEL) -> bytes:
    """A shard as the bytes of a Parquet file; the same rows give the same bytes.

    level: of zstd, for the RLE strings.
    """
    error = rows.num_rows - rows["error_code"].null_count
    metadata = provenance.metadata(rows["error_code"].null_count, error)
    sink = io.BytesIO()
    # RLE strings are over 90 % of a shard: a high level costs about 1 ms an image and saves 5 % of
    # the bytes, and DELTA_LENGTH, which stores lengths apart from characters, saves more. No reader
    # uses statistics of list columns, and those of RLE strings would hold two whole strings.
    flat: Any = [field.name for field in rows.schema if not pa.types.is_nested(field.type)]
    pq.write_table(
        rows.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        compression_level={COUNTS_LEAF: level},
        column_encoding={COUNTS_LEAF: "DELTA_LENGTH_BYTE_ARRAY"},
        use_dictionary=flat,
        write_statistics=flat,
        row_group_size=ROW_GROUP_ROWS,
    )
    return sink.getvalue()


def put_shard(storage: Storage, path: str, rows: pa.Table, provenance: Provenance) -> int:
    """Create a shard; returns its size in bytes. An existing shard is never overwritten.

    The shard exists if a worker died after its write, or if two workers compute one plan: then its
    footer must have the fingerprint and weights of `provenance`, and its rows the names of `rows`.
    Raises UserError naming the shard if not.
    """
    data = encode_shard(rows, provenance)
    if storage.create_shard(path, data):
        return len(data)
    existing = storage.read(path)
    if not _is_same(existing, rows, provenance):
        raise UserError(
            f"{storage.join(path)} is there already and holds something else than this job makes: "
            "see whether another version of the program writes this folder, then delete the shard "
            "and run again"
        )
    return len(existing)


def _is_same(data: bytes, rows: pa.Table, provenance: Provenance) -> bool:
    try:
        shard = pq.ParquetFile(pa.BufferReader(data))
        names = shard.read(["file_name"], use_threads=False)["file_name"]
    except (pa.ArrowInvalid, OSError, KeyError):
        return False
    metadata = shard.metadata.metadata or {}
    made_from = (metadata.get(b"panoptic.fingerprint"), metadata.get(b"panoptic.weights_sha256"))
    expected = (provenance.fingerprint.encode(), provenance.weights_sha256.encode())
    return made_from == expected and names.to_pylist() == rows["file_name"].to_pylist()


def failures_in(rows: pa.Table) -> dict[str, Failures]:
    """The failed images of shard rows by error code. rows: with `ERROR_COLUMNS`."""
    return failures_of(zip(*(rows[name].to_pylist() for name in ERROR_COLUMNS), strict=True))


def read_footer(storage: Storage, path: str, size: int) -> ShardEntry:
    """The entry of a shard from its footer. size: of the object. Raises ValueError for no shard."""
    with storage.open(path) as file:
        footer = pq.ParquetFile(file).metadata
    metadata = footer.metadata or {}
    if b"panoptic.ok" not in metadata:
        raise ValueError(f"{path} has no panoptic metadata: it was not written by this program")
    ok, error = int(metadata[b"panoptic.ok"]), int(metadata[b"panoptic.error"])
    return ShardEntry(path, footer.num_rows, ok, error, size)
