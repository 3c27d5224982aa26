"""Listings of images that are nowhere, for benchmarks of planning and of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.planning.manifest import with_members
from pipeline.run.folder import RunInfo
from pipeline.schema import MANIFEST_SCHEMA, SCHEMA_VERSION
from pipeline.sharding import name_hash

CHUNK = 50_000


def made_rows(count: int) -> Iterator[pa.Table]:
    """Manifest rows of `count` images."""
    for first in range(0, count, CHUNK):
        names = [f"folder/{number:09d}.jpg" for number in range(first, min(first + CHUNK, count))]
        columns: dict[str, Any] = {
            "hash": np.array([name_hash(name) for name in names], np.uint64),
            "file_name": names,
            "uri": [f"s3://made/{name}" for name in names],
            "size": np.full(len(names), 1_000, np.int64),
            "etag": ["0" * 32] * len(names),
            "last_modified": pa.nulls(len(names), MANIFEST_SCHEMA.field("last_modified").type),
            "attempts": np.zeros(len(names), np.int32),
        }
        yield loose_rows(columns)


def loose_rows(columns: Mapping[str, Any]) -> pa.Table:
    """Manifest rows of images that are no members of archives. columns: all others, by name."""
    schema = pa.schema([field for field in MANIFEST_SCHEMA if field.name in columns])
    return with_members(pa.table(dict(columns), schema=schema))


def made_info(category_list: Sequence[dict[str, Any]] = ()) -> RunInfo:
    """A `run.json` without a model."""
    return RunInfo(
        schema_version=SCHEMA_VERSION,
        source={"source": "s3://made"},
        limit=None,
        weights="none",
        weights_sha256="",
        fingerprint="null",
        fingerprint_fields={},
        category_list=list(category_list),
        device="cpu",
        code_version="null",
        created="",
        config={},
    )
