"""The objects of a run folder, each with one method that reads and one that writes.

`run.json` holds the settings; `manifest/000G/` the planned work of generation G, complete once
`generation.json` exists; `snapshots/000G.parquet` the live shards of a finished generation;
`latest.json` names the snapshot that readers see, and is written last. Each of these objects is
written atomically and, except `latest.json`, never changes: objects are created only if absent, and
`latest.json` is replaced only if it holds what was read.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from detr.categories import Categories
from pipeline.errors import LeaseError, UserError
from pipeline.layout import (
    LATEST_FILE,
    MANIFEST,
    PLAN_FILE,
    SEGMENTS,
    SNAPSHOTS,
    SUCCESS_FILE,
    plan_path,
    segments_folder,
    snapshot_path,
)
from pipeline.run import fenced
from pipeline.run.latest import forward
from pipeline.schema import SNAPSHOT_SCHEMA, shard_columns, with_columns
from pipeline.sharding import Generation, WorkUnit
from pipeline.storage.entry import of_client
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class RunInfo:
    """`run.json`: the settings of a run, which never change. Holds no credential.

    withheld: by setting, the names of storage options that are not recorded.
    """

    schema_version: int
    source: dict[str, Any]
    limit: int | None
    weights: str
    weights_sha256: str
    fingerprint: str
    fingerprint_fields: dict[str, Any]
    category_list: list[dict[str, Any]]
    device: str
    code_version: str
    created: str
    config: dict[str, Any]
    withheld: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def categories(self) -> Categories:
        return Categories.from_json(self.category_list)


@dataclass(frozen=True)
class ShardEntry:
    """A live shard: its path in the run folder, its rows (all, ok, error) and bytes."""

    path: str
    rows: int
    ok: int
    error: int
    bytes: int


@dataclass(frozen=True)
class Snapshot:
    """The live shards of one finished generation: each image of the run is in exactly one."""

    number: int
    shards: tuple[ShardEntry, ...]

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def ok(self) -> int:
        return sum(shard.ok for shard in self.shards)

    @property
    def error(self) -> int:
        return sum(shard.error for shard in self.shards)


class RunFolder:
    """Reads and writes the objects of a run folder. Pickles without its lease.

    fence: the lease of the writer; None to read, or where nobody else can write.
    """

    def __init__(self, storage: Storage, info: RunInfo, fence: fenced.Fence | None = None) -> None:
        self.storage = storage
        self.info = info
        self.fence = fence

    def __reduce__(self) -> tuple[type[Self], tuple[Storage, RunInfo]]:
        return type(self), (self.storage, self.info)

    def held(self, fence: fenced.Fence) -> Self:
        """The same folder, written under this lease."""
        return type(self)(self.storage, self.info, fence)

    def check(self) -> None:
        """Raises LeaseError or TryAgainError if the lease is no longer held."""
        if self.fence is not None:
            self.fence.check()

    def generations(self) -> dict[int, Generation]:
        """Every committed generation by number, oldest first."""
        numbers = sorted(
            int(entry.path.split("/")[1])
            for entry in self.storage.list(MANIFEST)
            if entry.path.endswith(f"/{PLAN_FILE}")
        )
        return {number: self.generation(number) for number in numbers}

    def generation(self, number: int) -> Generation:
        path = plan_path(number)
        with fenced.undamaged(self.storage, path):
            return Generation.from_json(json.loads(self.storage.read(path)))

    def write_generation(self, generation: Generation) -> None:
        """Commit a planned generation, whose manifest parts must exist.

        Raises LeaseError if another plan of this number was committed.
        """
        path = plan_path(generation.number)
        self.check()
        if not self.storage.write_if_absent(path, json_bytes(generation.to_json())):
            raise LeaseError(
                f"{self.storage.url}: another job planned generation {generation.number} at the "
                "same time; this one stops: run the same command again"
            )

    def manifest_files(self) -> list[str]:
        """Paths of all manifest parts; an image that was computed again is in several parts."""
        return [part for generation in self.generations().values() for part in generation.parts()]

    def present(self, generation: int | None = None) -> dict[str, int]:
        """Bytes of the shard objects of the run, or of a generation's folder, by path."""
        folder = SEGMENTS if generation is None else segments_folder(generation)
        return {entry.path: entry.size for entry in self.storage.list(folder)}

    def read_unit(self, unit: WorkUnit) -> pa.Table:
        """The manifest rows of one shard, by two ranged reads."""
        with fenced.undamaged(self.storage, unit.part), self.storage.open(unit.part) as file:
            return pq.ParquetFile(file).read_row_group(unit.row_group, use_threads=False)

    def read_plan(self, path: str) -> pa.Table:
        """A Parquet file of the plan: a part of a manifest, or the rows that a generation drops.

        A generation drops rows of shards that stay published. path: in the run folder. Raises
        UserError if the file is absent or damaged.
        """
        with fenced.undamaged(self.storage, path):
            return read_parquet(self.storage.read(path))

    def latest(self) -> int | None:
        """The number of the published snapshot, None before the first."""
        pointer = self.pointer()
        with fenced.undamaged(self.storage, LATEST_FILE):
            return None if pointer is None else int(pointer["snapshot"])

    def pointer(self) -> dict[str, Any] | None:
        """`latest.json` with its history (`latest.py`); None before a snapshot is published."""
        return read_pointer(self.storage)

    def snapshot_numbers(self) -> list[int]:
        return sorted(
            int(entry.path.split("/")[1].removesuffix(".parquet"))
            for entry in self.storage.list(SNAPSHOTS)
        )

    def snapshot(self, number: int | None = None) -> Snapshot:
        """A snapshot, by default the published one. Raises UserError if there is none."""
        number = self.latest() if number is None else number
        if number is None:
            raise UserError(
                f"{self.storage.url} has no published snapshot yet: run `panoptic segment` until "
                "it is done, or choose --snapshot"
            )
        try:
            data = self.storage.read(snapshot_path(number))
        except FileNotFoundError:
            known = ", ".join(str(known) for known in self.snapshot_numbers()) or "none"
            raise UserError(
                f"{self.storage.url} has no snapshot {number} (there are: {known})"
            ) from None
        with fenced.undamaged(self.storage, snapshot_path(number)):
            rows = read_parquet(data).to_pylist()
            return Snapshot(number, tuple(ShardEntry(**row) for row in rows))

    def write_snapshot(self, number: int, shards: Iterable[ShardEntry]) -> Snapshot:
        rows = [dataclasses.asdict(shard) for shard in sorted(shards, key=lambda shard: shard.path)]
        table = pa.Table.from_pylist(rows, schema=SNAPSHOT_SCHEMA)
        path, data = snapshot_path(number), parquet_bytes(table)
        self.check()
        while not self.storage.write_if_absent(path, data):
            before = self.storage.look(path)  # written before a shard was computed again
            if before is not None and self.storage.swap(path, before, data):
                break
        return Snapshot(number, tuple(ShardEntry(**row) for row in rows))

    def publish(self, number: int) -> None:
        """Point `latest.json` at a snapshot: the last step of a generation."""
        self.move(lambda pointer: forward(pointer, "snapshot", number))

    def move(self, change: fenced.Change) -> None:
        """Replace `latest.json` by change(content), as `fenced.move`."""
        fenced.move(self.storage, LATEST_FILE, change, self.fence)

    def mark_success(self, done: bool) -> None:
        """Create `_SUCCESS` if `done`, else delete it: a generation is being computed."""
        exists = self.storage.exists(SUCCESS_FILE)
        self.check()
        if done and not exists:
            self.storage.write_if_absent(SUCCESS_FILE, b"")
        elif exists and not done:
            self.storage.delete(SUCCESS_FILE)

    def read_shard(
        self,
        path: str,
        columns: Sequence[str] | None = None,
        *,
        names: Collection[str] | None = None,
    ) -> pa.Table:
        """The rows of one shard; with `names`, of the row groups that hold one of these images.

        columns: all by default; those that an older version did not write are null
        (`with_columns`). Also reads the per-image rows of evaluations. Raises UserError naming the
        shard if it is missing or broken.
        """
        try:
            if columns is None and names is None:
                return _completed(read_parquet(self.storage.read(path)), path)
            with self.storage.open(path) as file:
                shard = pq.ParquetFile(file)
                groups = range(shard.num_row_groups)
                if names is not None:
                    groups = [g for g in groups if _holds(shard, g, names)]
                wanted = None if columns is None else [*columns]
                if wanted and not {*wanted} <= {*shard.schema_arrow.names}:
                    wanted.append("segment_id")
                rows = shard.read_row_groups(groups, wanted, use_threads=False)
                return _completed(rows, path, columns)
        except FileNotFoundError:
            raise UserError(
                f"shard {path} of {self.storage.url} is missing: run the same `panoptic segment` "
                "command again to recompute it"
            ) from None
        except (pa.ArrowInvalid, OSError) as error:
            if of_client(error):  # the store failed, not the shard
                raise
            raise UserError(f"shard {path} of {self.storage.url} is broken: {error}") from error


def _completed(rows: pa.Table, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of the object `path` with all `columns`, if it is a shard. None: `shard_columns`."""
    if not path.startswith(f"{SEGMENTS}/"):
        return rows
    return with_columns(rows, shard_columns(rows.column_names) if columns is None else columns)


def _holds(shard: pq.ParquetFile, group: int, names: Collection[str]) -> bool:
    table = shard.read_row_group(group, ["file_name"], use_threads=False)
    return not set(names).isdisjoint(table["file_name"].to_pylist())


def read_pointer(storage: Storage) -> dict[str, Any] | None:
    """`latest.json` of a run folder or of a folder of nights; None if absent. Raises UserError."""
    return fenced.read(storage, LATEST_FILE)


def parquet_bytes(table: pa.Table) -> bytes:
    """A small table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3)
    return sink.getvalue()


def read_parquet(data: bytes) -> pa.Table:
    """The table in the bytes of a Parquet file, read without Arrow's threads.

    Arrow's threads may still hold the bytes after a read returns, and abort the process (signal 6)
    if it ends at that moment.
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def json_bytes(value: Any) -> bytes:
    """A value as indented JSON with a final newline."""
    return (json.dumps(value, indent=1) + "\n").encode()
