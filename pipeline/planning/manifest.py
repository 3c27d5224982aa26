"""Manifest parts and lists of dropped rows in a run folder: written, read, merged in DuckDB.

A manifest is sorted by hash and has a row group per shard. A part holds 64 shards: one file of
20,000 row groups would have a footer of 16 MB, which every fetch task reads.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.layout import PLAN_FILE, manifest_folder, part_path
from pipeline.planning.scratch_db import Staging
from pipeline.run.run import Run
from pipeline.schema import DROPPED_SCHEMA, MANIFEST_SCHEMA, MEMBER_COLUMNS
from pipeline.sharding import SHARDS_PER_PART, Generation, name_hash, shard_start
from pipeline.storage.entry import Entry
from pipeline.storage.storage import Storage


def manifest_table(
    entries: Iterable[Entry],
    uris: list[str],
    kept: dict[str, Any] | None = None,
    member: dict[str, list[Any]] | None = None,
) -> pa.Table:
    """Manifest rows of listed entries. kept: values of kept columns, by name.

    member: values of `MEMBER_COLUMNS`, by name without `member_`.
    """
    entries = list(entries)
    nulls = [None] * len(entries)
    columns: dict[str, Any] = {
        "hash": np.array([name_hash(entry.path) for entry in entries], np.uint64),
        "file_name": [entry.path for entry in entries],
        "uri": uris,
        "size": [entry.size if entry.size >= 0 else None for entry in entries],
        "etag": [entry.etag for entry in entries],
        "last_modified": [entry.last_modified for entry in entries],
        "attempts": np.zeros(len(entries), np.int32),
        **{
            name: (member or {}).get(name.removeprefix("member_"), nulls) for name in MEMBER_COLUMNS
        },
    }
    table = pa.table(columns, schema=MANIFEST_SCHEMA)
    for name, values in (kept or {}).items():
        table = table.append_column(name, values)
    return table


def stage_manifest(staging: Staging, name: str, run: Run, upto: int | None = None) -> int:
    """Create the table `name` with the run's images, one row a file name; returns its rows.

    Columns: `MANIFEST_SCHEMA`, kept columns and `generation`, of the last generation that planned
    the image. upto: the last generation that counts; None: all.
    """
    generations = [g for g in run.generations().values() if upto is None or g.number <= upto]
    parts = [(g.number, part) for g in generations for part in g.parts()]
    staging.stage("history", _numbered(run, parts))
    lists = [(g.number, g.dropped_path) for g in generations if g.dropped]
    dropped = staging.stage("departed", _numbered(run, lists))
    events = "select file_name, generation, true as present from history"
    if dropped:
        events += (
            " union all select file_name, generation, false from departed where reason = 'removed'"
        )
    staging.connection.execute(
        f"create table {name} as "
        f"with last as (select file_name, max(generation) as generation from ({events}) "
        "group by file_name) "
        "select history.* from history join last using (file_name, generation)"
    )
    return staging.count(f"select count(*) from {name}")


def with_members(table: pa.Table) -> pa.Table:
    """Manifest rows with all of `MEMBER_COLUMNS`: those that the table lacks are null."""
    for name in MEMBER_COLUMNS:
        if name not in table.column_names:
            spec = MANIFEST_SCHEMA.field(name)
            at = MANIFEST_SCHEMA.names.index(name)
            table = table.add_column(at, spec, pa.nulls(table.num_rows, spec.type))
    return table


def _numbered(run: Run, paths: Iterable[tuple[int, str]]) -> Iterator[pa.Table]:
    """The tables of (generation, path), with a column `generation`."""
    for number, path in paths:
        table = run.read_plan(path)
        if "uri" in table.column_names:  # a part of a manifest
            table = with_members(table)
        column = pa.array(np.full(table.num_rows, number, np.int32))
        yield table.append_column("generation", column)


def read_leaving(storage: Storage, path: str, origin: int, shard: int) -> set[str]:
    """Names of the dropped rows of one shard, from the row groups that hold them.

    path: `Generation.dropped_path`; origin: the generation that computed the shard.
    """
    filters = [("origin", "=", origin), ("shard", "=", shard)]
    with storage.open(path) as file:
        return set(pq.read_table(file, columns=["file_name"], filters=filters)[0].to_pylist())


def write_dropped(storage: Storage, path: str, tables: Iterator[pa.Table]) -> None:
    """Write a list of dropped rows.

    tables: sorted by origin and shard, so that `read_leaving` skips row groups.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, DROPPED_SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(DROPPED_SCHEMA))
    storage.write(path, sink.getvalue().to_pybytes())


def new_plan() -> str:
    """A unique `Generation.plan`: 12 hex digits."""
    return uuid.uuid4().hex[:12]


def clear_other_plans(storage: Storage, generation: Generation) -> None:
    """Delete the objects of other plans with this number: `generation` is committed."""
    kept = {*generation.parts(), generation.dropped_path}
    for entry in list(storage.list(manifest_folder(generation.number))):
        if entry.path not in kept and not entry.path.endswith(f"/{PLAN_FILE}"):
            storage.delete(entry.path)


def write_parts(
    storage: Storage, generation: int, shards: int, tables: Iterator[pa.Table], plan: str = ""
) -> tuple[int, ...]:
    """Write manifest parts, with a row group per shard that has rows.

    tables: manifest rows, sorted by hash. Returns the number of images of each shard.
    """
    starts = np.array([shard_start(index, shards) for index in range(shards)], np.uint64)
    rows = [0] * shards
    for part, groups in _parts(starts, tables):
        sink = pa.BufferOutputStream()
        schema = groups[0][1].schema
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for shard, group in groups:
                assert rows[shard] == 0, "manifest rows are not sorted by hash"
                rows[shard] = group.num_rows
                writer.write_table(group, row_group_size=max(group.num_rows, 1))
        storage.write(part_path(generation, part, plan), sink.getvalue().to_pybytes())
    return tuple(rows)


def _parts(
    starts: np.ndarray, tables: Iterator[pa.Table]
) -> Iterator[tuple[int, list[tuple[int, pa.Table]]]]:
    """(part, [(shard, rows of the shard), ...]) in order."""
    part = -1
    pending: dict[int, list[pa.Table]] = {}
    for table in tables:
        owner = np.searchsorted(starts, table["hash"].to_numpy(), side="right") - 1
        edges = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(owner)]
        for low, high in pairwise(edges):
            if low == high:
                continue
            shard = int(owner[low])
            if pending and shard // SHARDS_PER_PART != part:
                yield part, _whole(pending)
                pending = {}
            part = shard // SHARDS_PER_PART
            pending.setdefault(shard, []).append(table.slice(low, high - low))
    if pending:
        yield part, _whole(pending)


def _whole(pending: dict[int, list[pa.Table]]) -> list[tuple[int, pa.Table]]:
    return [(shard, pa.concat_tables(tables)) for shard, tables in pending.items()]
