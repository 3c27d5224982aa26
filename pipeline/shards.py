"""The sink: one work unit's rows become one Parquet object by one PUT, or nothing.

Encoded in memory, checked (every image of the unit is there, once), then written: a reader sees a
whole shard or none, and a worker that dies leaves nothing behind. Ray's `write_parquet` was
rejected: it names files by a fresh uuid, so a rerun appends duplicates.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.actor import ActorHandle
from ray.data import Datasink

from pipeline.budget import failures_of
from pipeline.entry import as_lost
from pipeline.plan import Generation, unit_key
from pipeline.run import ShardEntry
from pipeline.schema import SCHEMA_VERSION, SHARD_SCHEMA
from pipeline.storage import Storage
from pipeline.tally import begin, check_budget

ROW_GROUP_ROWS: Final = 1_000
UNIT_COLUMN: Final = "shard"
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


class ShardSink(Datasink[int]):
    """Writes each unit's rows as one shard and reports it to the tally."""

    def __init__(
        self,
        storage: Storage,
        generation: Generation,
        provenance: Provenance,
        tally: ActorHandle,
    ) -> None:
        self.storage = storage
        self.generation = generation
        self.provenance = provenance
        self.tally = tally

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> int:
        """Returns how many shards were written: results of all tasks are held by the driver."""
        written = 0
        for block in blocks:
            owner = block[UNIT_COLUMN].to_numpy()
            for shard in np.unique(owner).tolist():
                self._write(shard, block.filter(pa.array(owner == shard)))
                written += 1
        return written

    def _write(self, shard: int, unit: pa.Table) -> None:
        started = time.monotonic()
        key = unit_key(self.generation.number, shard)
        begin(self.tally, "writing", key)
        rows = unit.drop_columns([UNIT_COLUMN])
        expected = self.generation.rows[shard]
        names = len(rows["file_name"].unique())
        assert rows.num_rows == names == expected, (shard, rows.num_rows, names, expected)
        path = self.generation.shard_path(shard)
        errors = rows.filter(pc.field("error_code").is_valid())
        told = zip(*(errors[name].to_pylist() for name in ERROR_COLUMNS), strict=True)
        data = encode_shard(rows, self.provenance)
        try:
            self.storage.write(path, data)
        except Exception as error:
            raise as_lost(error, f"can't write {self.storage.join(path)}") from error
        segments = sum(len(chunk.flatten()) for chunk in rows["segment_id"].chunks)
        report = self.tally.written.remote(
            key,
            images=rows.num_rows,
            failures=failures_of(told),
            segments=segments,
            size=len(data),
            seconds=time.monotonic() - started,
        )
        check_budget(report)


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
