"""The run folder: what was asked, what is planned, what is live. Every tool reads only this.

`run.json` says what was asked; `manifest/000G/` holds the frozen work of generation G, complete
once its `generation.json` is there; `snapshots/000G.parquet` lists the live shards of a finished
generation; `latest.json` names the snapshot that readers see and moves last. Each of these is one
atomic object and, but for `latest.json`, never changes.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from detr.categories import Categories
from pipeline.entry import as_user_error, of_client
from pipeline.errors import UserError
from pipeline.plan import Generation, WorkUnit, manifest_folder, segments_folder
from pipeline.pointer import forward
from pipeline.schema import SCHEMA_VERSION, SNAPSHOT_SCHEMA
from pipeline.storage import Storage

if TYPE_CHECKING:
    from pipeline.reading import ImageRow

RUN_FILE = "run.json"
LATEST_FILE = "latest.json"
SUCCESS_FILE = "_SUCCESS"


@dataclass(frozen=True)
class RunInfo:
    """`run.json`: what was asked, once and for all. Never holds a credential."""

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

    @cached_property
    def categories(self) -> Categories:
        return Categories.from_json(self.category_list)


@dataclass(frozen=True)
class ShardEntry:
    """A live shard: its path in the run folder, and what it holds."""

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


class Run:
    """A run folder that exists. Pickles as its storage."""

    def __init__(self, storage: Storage, info: RunInfo) -> None:
        self.storage = storage
        self.info = info

    def generations(self) -> dict[int, Generation]:
        """Every generation whose manifest is complete, oldest first."""
        numbers = sorted(
            int(entry.path.split("/")[1])
            for entry in self.storage.list("manifest")
            if entry.path.endswith("/generation.json")
        )
        return {number: self.generation(number) for number in numbers}

    def generation(self, number: int) -> Generation:
        path = f"{manifest_folder(number)}/generation.json"
        return Generation.from_json(json.loads(self.storage.read(path)))

    def write_generation(self, generation: Generation) -> None:
        """The commit of a planned generation: its manifest parts must be there already."""
        path = f"{manifest_folder(generation.number)}/generation.json"
        self.storage.write(path, _json(generation.to_json()))

    def manifest_files(self) -> list[str]:
        """Every manifest part; an image that was computed again is in several of them."""
        return [part for generation in self.generations().values() for part in generation.parts()]

    def present(self, generation: int) -> dict[str, int]:
        """Shard objects in a generation's folder, with their bytes."""
        return {entry.path: entry.size for entry in self.storage.list(segments_folder(generation))}

    def read_unit(self, unit: WorkUnit) -> pa.Table:
        """The manifest rows of one shard, by two ranged reads."""
        with self.storage.open(unit.part) as file:
            return pq.ParquetFile(file).read_row_group(unit.row_group)

    def latest(self) -> int | None:
        """The number of the published snapshot, None before the first."""
        pointer = self.pointer()
        return None if pointer is None else int(pointer["snapshot"])

    def pointer(self) -> dict[str, Any] | None:
        """`latest.json` with its history (`pointer.py`), None before the first publication."""
        return read_pointer(self.storage)

    def snapshot_numbers(self) -> list[int]:
        return sorted(
            int(entry.path.split("/")[1].removesuffix(".parquet"))
            for entry in self.storage.list("snapshots")
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
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
        return Snapshot(number, tuple(ShardEntry(**row) for row in rows))

    def write_snapshot(self, number: int, shards: Iterable[ShardEntry]) -> Snapshot:
        rows = [dataclasses.asdict(shard) for shard in sorted(shards, key=lambda shard: shard.path)]
        table = pa.Table.from_pylist(rows, schema=SNAPSHOT_SCHEMA)
        self.storage.write(snapshot_path(number), parquet_bytes(table))
        return Snapshot(number, tuple(ShardEntry(**row) for row in rows))

    def publish(self, number: int) -> None:
        """Readers see this snapshot from now on. The last step of a generation."""
        self.move(forward(self.pointer(), "snapshot", number))

    def move(self, pointer: Mapping[str, Any]) -> None:
        """Write `latest.json`."""
        self.storage.write(LATEST_FILE, _json(pointer))

    def mark_success(self, done: bool) -> None:
        """`_SUCCESS` is there only while no generation is being made."""
        there = self.storage.exists(SUCCESS_FILE)
        if done and not there:
            self.storage.write(SUCCESS_FILE, b"")
        elif there and not done:
            self.storage.delete(SUCCESS_FILE)

    def __getitem__(self, file_name: str) -> ImageRow:
        """One image of the published snapshot. Raises UserError if the run hasn't got it."""
        from pipeline.reading import read_image  # here: it is built on this module

        return read_image(self, file_name)

    def __contains__(self, file_name: str) -> bool:
        from pipeline.lookup import has_row

        return has_row(self, file_name)

    __iter__ = None  # millions of rows are read by `table`; Python would ask for run[0], run[1] ...

    def table(
        self, columns: Sequence[str] | None = None, *, snapshot: int | None = None
    ) -> pa.Table:
        """The rows of a snapshot, by default the published one; masks (`counts`) if asked for."""
        from pipeline.reading import read_table

        return read_table(self, self.snapshot(snapshot), columns)

    def read_shard(
        self,
        path: str,
        columns: Sequence[str] | None = None,
        *,
        names: Collection[str] | None = None,
    ) -> pa.Table:
        """The rows of one shard; with `names` only the row groups that hold one of these images.

        Raises UserError naming the shard if it can't be read.
        """
        try:
            if columns is None and names is None:
                return pq.read_table(pa.BufferReader(self.storage.read(path)))
            with self.storage.open(path) as file:
                shard = pq.ParquetFile(file)
                groups = range(shard.num_row_groups)
                if names is not None:
                    groups = [g for g in groups if _holds(shard, g, names)]
                return shard.read_row_groups(groups, None if columns is None else list(columns))
        except FileNotFoundError:
            raise UserError(
                f"shard {path} of {self.storage.url} is missing: run the same `panoptic segment` "
                "command again to recompute it"
            ) from None
        except (pa.ArrowInvalid, OSError) as error:
            if of_client(error):  # the store failed, and says nothing of the shard
                raise
            raise UserError(f"shard {path} of {self.storage.url} is broken: {error}") from error


def _holds(shard: pq.ParquetFile, group: int, names: Collection[str]) -> bool:
    table = shard.read_row_group(group, ["file_name"])
    return not set(names).isdisjoint(table["file_name"].to_pylist())


def open_run(url: str, options: Mapping[str, str] | None = None) -> Run:
    """The run folder at `url`. Raises UserError if it isn't one, or is of a newer schema."""
    run = find_run(Storage(url, options))
    if run is None:
        raise UserError(f"{url} is not a run folder: it has no {RUN_FILE}")
    return run


def find_run(storage: Storage) -> Run | None:
    """The run in this folder, or the published one of a folder of nights; None if there is none."""
    try:
        data = json.loads(storage.read(RUN_FILE))
    except (FileNotFoundError, NotADirectoryError):
        name = (read_pointer(storage) or {}).get("run")
        return find_run(Storage(storage.join(name), storage.options)) if name else None
    except ValueError as error:
        raise UserError(f"{storage.join(RUN_FILE)} is not JSON: {error}") from error
    except Exception as error:
        raise as_user_error(error, f"can't read {storage.join(RUN_FILE)}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{storage.join(RUN_FILE)} is not a run's: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{storage.url} has schema version {version}, this program reads up to "
            f"{SCHEMA_VERSION}: install a newer version"
        )
    return Run(storage, RunInfo(**data))


def read_pointer(storage: Storage) -> dict[str, Any] | None:
    """`latest.json` of a run folder or of a folder of nights."""
    try:
        return json.loads(storage.read(LATEST_FILE))
    except (FileNotFoundError, NotADirectoryError):
        return None


def create_run(storage: Storage, info: RunInfo) -> Run:
    storage.write(RUN_FILE, _json(dataclasses.asdict(info)))
    return Run(storage, info)


def snapshot_path(number: int) -> str:
    return f"snapshots/{number:04d}.parquet"


def parquet_bytes(table: pa.Table) -> bytes:
    """A small table as one Parquet object in memory."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3)
    return sink.getvalue()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
