"""A shard as a Parquet object: rows to bytes, its one write, and what its footer says."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.run.folder import ShardEntry
from pipeline.schema import SCHEMA_VERSION, SHARD_SCHEMA
from pipeline.storage.storage import Storage

ROW_GROUP_ROWS: Final = 1_000
ERROR_COLUMNS: Final = ("error_code", "uri", "error_message")
COUNTS_LEAF: Final = "counts.list.element"  # Parquet's path of the strings
COUNTS_LEVEL: Final = 16


@dataclass(frozen=True)
class Provenance:
    """What a shard's Parquet metadata says of its making."""

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
    """A shard as Parquet bytes. The same rows give the same bytes.

    level: zstd's, of the RLE strings.
    """
    error = rows.num_rows - rows["error_code"].null_count
    metadata = provenance.metadata(rows["error_code"].null_count, error)
    sink = io.BytesIO()
    # RLE strings are over 90 % of a shard and written once: a strong level there costs about 1 ms
    # an image and saves 5 % of the bytes; apart from their lengths, they compress better still.
    # Statistics of lists serve no reader, and those of the strings hold two whole strings.
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
    """Make a shard; returns its bytes. One that is there already is never written over.

    It is there where a worker died between its write and its report, or where two work on one plan:
    it is accepted if its footer has this fingerprint and these weights, and its rows these names.
    Raises UserError naming the shard if not.
    """
    data = encode_shard(rows, provenance)
    if storage.create_shard(path, data):
        return len(data)
    found = storage.read(path)
    if not _is_same(found, rows, provenance):
        raise UserError(
            f"{storage.join(path)} is there already and holds something else than this job makes: "
            "see whether another version of the program writes this folder, then delete the shard "
            "and run again"
        )
    return len(found)


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


def shard_schema(kept: Sequence[pa.Field] = ()) -> pa.Schema:
    """A shard's columns, the user's own kept ones last."""
    return pa.schema([*SHARD_SCHEMA, *kept])


def read_footer(storage: Storage, path: str, size: int) -> ShardEntry:
    """Rows, ok and error of a shard from its footer. Raises ValueError if it isn't a shard."""
    with storage.open(path) as file:
        footer = pq.ParquetFile(file).metadata
    metadata = footer.metadata or {}
    if b"panoptic.ok" not in metadata:
        raise ValueError(f"{path} has no panoptic metadata: it was not written by this program")
    ok, error = int(metadata[b"panoptic.ok"]), int(metadata[b"panoptic.error"])
    return ShardEntry(path, footer.num_rows, ok, error, size)
