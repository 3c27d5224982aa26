"""Arrow schemas of the tables in a run folder, their version, and the error codes.

Readers accept every older `SCHEMA_VERSION` and refuse a newer one. Segments are parallel
list columns, not a list of structs, because Parquet readers cannot project one leaf out of a list
of structs: reading only `category_id` of a million images must not read the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

SCHEMA_VERSION: Final = 1

# Transient: a later attempt may succeed. Permanent: only another file under the name can succeed.
TRANSIENT_CODES: Final = frozenset(
    {"not_found", "forbidden", "timeout", "unavailable", "changed", "archived", "out_of_memory"}
)
PERMANENT_CODES: Final = frozenset(
    {
        *("empty", "truncated", "corrupt", "not_an_image", "unsupported"),
        *("too_large", "too_thin", "too_slow"),
    }
)
ERROR_CODES: Final = TRANSIENT_CODES | PERMANENT_CODES

# `hash` is the first 8 bytes of blake2b(file_name, digest_size=8), big-endian: the sort key.
MANIFEST_SCHEMA: Final = pa.schema(
    [
        pa.field("hash", pa.uint64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("last_modified", pa.timestamp("us", tz="UTC")),
        pa.field("attempts", pa.int32(), nullable=False),  # by earlier generations
        # Of a member of an archive, else null. `etag` and `last_modified` are the archive's.
        pa.field("member_archive", pa.string()),  # "zip" or "tar"
        pa.field("member_offset", pa.int64()),  # the bytes of the archive to GET
        pa.field("member_length", pa.int64()),
        pa.field("member_crc32", pa.uint32()),
        # `code: message` of a row that needs no GET, such as a damaged archive's own row.
        pa.field("member_fault", pa.string()),
    ]
)
MEMBER_COLUMNS: Final = tuple(n for n in MANIFEST_SCHEMA.names if n.startswith("member_"))

# One row per image, sorted by hash. Segment lists are empty (not null) on an error row and on an
# image without segments. `counts` is COCO's compressed RLE (column-major) as a string;
# `segment_id` starts at 1, 0 is void; `bbox` is x, y, w, h in pixels of the stored size. A column
# that is added later is nullable: shards that were written before lack it (`with_columns`).
SHARD_SCHEMA: Final = pa.schema(
    [
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # "ok" or "error"
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("segment_id", pa.list_(pa.int32()), nullable=False),
        pa.field("category_id", pa.list_(pa.int32()), nullable=False),
        pa.field("isthing", pa.list_(pa.bool_()), nullable=False),
        pa.field("score", pa.list_(pa.float32()), nullable=False),
        pa.field("area", pa.list_(pa.int64()), nullable=False),
        pa.field("bbox", pa.list_(pa.list_(pa.int32(), 4)), nullable=False),
        pa.field("counts", pa.list_(pa.large_string()), nullable=False),
        pa.field("code_version", pa.string(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
    ]
)

SEGMENT_COLUMNS: Final = tuple(f.name for f in SHARD_SCHEMA if pa.types.is_list(f.type))

# Columns that rows have besides, between the fetch and the sink or in the SQL views.
INTERNAL_COLUMNS: Final = ("data", "shard", "generation", "segments", "file_row_number")

# Rows of a generation's base snapshot that the next snapshot no longer holds.
# origin, shard: where the row was computed.
DROPPED_SCHEMA: Final = pa.schema(
    [
        pa.field("hash", pa.uint64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("origin", pa.int32(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # "retry", "changed" or "removed"
    ]
)

SNAPSHOT_SCHEMA: Final = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # relative to the run folder
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("ok", pa.int64(), nullable=False),
        pa.field("error", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)


def shard_columns(written: Sequence[str]) -> list[str]:
    """The columns of a shard: those of SHARD_SCHEMA, then the user's among those `written`."""
    return [*SHARD_SCHEMA.names, *(name for name in written if name not in SHARD_SCHEMA.names)]


def with_columns(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """These columns of shard rows, in this order.

    A column of SHARD_SCHEMA that is newer than the shard is null; a list has a null per segment.
    rows: with `segment_id`, if a list column is newer.
    """
    for field in SHARD_SCHEMA:
        if field.name in columns and field.name not in rows.column_names:
            rows = rows.append_column(field, _nulls(field.type, rows))
    return rows.select(columns)


def _nulls(kind: pa.DataType, rows: pa.Table) -> pa.Array:
    if not pa.types.is_list(kind):
        return pa.nulls(rows.num_rows, kind)
    segments = one_chunk(rows["segment_id"]).value_lengths().to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(segments)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.nulls(int(segments.sum()), kind.value_type))


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The column as one array; a single chunk is not copied."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def list_values(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The values of a list column, concatenated row by row; a null row has none."""
    return one_chunk(column).flatten()
