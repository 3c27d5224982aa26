"""Ground truth of a run: a COCO panoptic JSON and its PNGs in, RLE Parquet sorted by hash out.

Decoding a PNG takes twenty times as long as scoring it, so truth is converted once per evaluation.
Rows are sorted as shards are, by the hash of the run's file name, so each shard needs only a few
row groups of truth and no shuffle. Names are resolved against the manifest first (truth_join.py),
since the hash is that of the run's name.

Memory stays small: the JSON is a stream, DuckDB joins and sorts, and the PNGs are read in chunks of
rows in hash order. Each conversion writes a fresh folder, then `truth.json` with its name. Truth
without `truth.json`, or with another `key`, is converted again. `sha256` identifies the truth
wherever it is stored: `compare` takes only evaluations with equal `sha256`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detr.categories import Categories
from pipeline.amounts import counted
from pipeline.errors import UserError
from pipeline.evaluation.fresh import fresh_name, sweep
from pipeline.evaluation.truth_join import check_categories, resolve, stage_truth
from pipeline.evaluation.truth_png import TRUTH_SCHEMA, problem_row, row_of, table_of
from pipeline.planning.coco_panoptic import CocoFile
from pipeline.planning.manifest import stage_manifest
from pipeline.planning.scratch_db import Staging
from pipeline.run.run import Run
from pipeline.storage.archive_folder import folder_at
from pipeline.storage.entry import Entry, as_user_error, classify
from pipeline.storage.objects import place_of, read_named
from pipeline.storage.storage import Storage

VERSION: Final = 2
ROWS_PER_PART: Final = 512  # about the rows of a shard, which needs one or two whole parts
ROWS_PER_GROUP: Final = 128
FIRST_FEW: Final = 5


@dataclass(frozen=True)
class TruthPart:
    """One Parquet file of truth, and the hash range (low, high) of each of its row groups."""

    path: str
    ranges: list[tuple[int, int]]
    mismatched: int  # segments whose area in the JSON is not that of the PNG
    problems: int  # images that can't be scored


@dataclass(frozen=True)
class Truth:
    """A complete truth folder."""

    storage: Storage
    folder: str
    sha256: str  # of the JSON, and of the sizes and ETags of the PNGs
    category_list: list[dict[str, Any]]
    images: int  # truth images in the run's manifest
    absent: int  # truth images not in the manifest
    absent_names: list[str]
    mismatched: int
    problems: int
    paths: list[str]
    groups: NDArray[np.int64]  # (row groups, 2): position in `paths`, row group in that file
    ranges: NDArray[np.uint64]  # (row groups, 2): first and last hash

    @property
    def categories(self) -> Categories:
        return Categories.from_json(self.category_list)

    def rows(self, hashes: NDArray[np.uint64]) -> pa.Table:
        """The truth rows (TRUTH_SCHEMA) of these images, in hash order; an image may have none."""
        wanted = np.sort(hashes)
        # A row group is needed if a wanted hash lies between its first and its last.
        low = np.searchsorted(wanted, self.ranges[:, 0], side="left")
        high = np.searchsorted(wanted, self.ranges[:, 1], side="right")
        needed = self.groups[high > low]
        tables = [TRUTH_SCHEMA.empty_table()]
        for part in np.unique(needed[:, 0]):
            data = self.storage.read(f"{self.folder}/{self.paths[part]}")
            groups = needed[needed[:, 0] == part, 1].tolist()
            tables.append(pq.ParquetFile(pa.BufferReader(data)).read_row_groups(groups))
        table = pa.concat_tables(tables)
        return table.filter(pa.array(np.isin(table["hash"].to_numpy(), wanted)))


def load_truth(storage: Storage, folder: str) -> tuple[Truth, str] | None:
    """The truth in this folder and its `key`; None without a `truth.json` of this VERSION."""
    try:
        data = json.loads(storage.read(f"{folder}/truth.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if data["version"] != VERSION:
        return None
    return _truth(storage, folder, data), data["key"]


def _truth(storage: Storage, folder: str, data: dict[str, Any]) -> Truth:
    parts = [TruthPart(**part) for part in data["parts"]]
    groups = [(p, g) for p, part in enumerate(parts) for g in range(len(part.ranges))]
    ranges = [bounds for part in parts for bounds in part.ranges]
    return Truth(
        storage=storage,
        folder=folder,
        sha256=data["sha256"],
        category_list=data["categories"],
        images=data["images"],
        absent=data["absent"],
        absent_names=data["absent_names"],
        mismatched=sum(part.mismatched for part in parts),
        problems=sum(part.problems for part in parts),
        paths=[part.path for part in parts],
        groups=np.array(groups, dtype=np.int64).reshape(-1, 2),
        ranges=np.array(ranges, dtype=np.uint64).reshape(-1, 2),
    )


Convert = Callable[[Iterable[Callable[[], TruthPart]]], Iterator[TruthPart]]


def prepare(
    run: Run,
    folder: str,
    truth_url: str,
    masks_url: str | None = None,
    *,
    options: Mapping[str, str] | None = None,
    convert: Convert,
    check: Callable[[Categories], object] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Truth:
    """The truth of a run in `folder` of the run; converted, if not done before from the same files.

    masks_url: the folder of the PNGs; None: the folder named as the JSON. options: of the storage
    of the truth. convert: runs the conversions of chunks, in parallel or not. check: gets the
    truth's categories and raises UserError if they do not fit; None: `check_categories`.

    Raises UserError for a file that is no panoptic JSON, for categories that do not fit, ambiguous
    names, or no image in common. A broken PNG is a `problem` in its row.
    """
    masks = folder_at(masks_url or masks_of(truth_url), options)
    file = CocoFile(truth_url, options)
    with Staging() as staging:
        categories = stage_truth(staging, file)
        if check is not None:
            check(categories)
        else:
            check_categories(run.info.categories, categories, truth_url)
        pngs = _pngs(masks)
        sha256, key = _sha256(file, pngs), _key(run, file, pngs)
        former = load_truth(run.storage, folder)
        if former is not None and former[1] == key and not former[0].problems:
            note("ground truth: already converted")
            return former[0]
        stage_manifest(staging, "manifest", run)
        resolve(staging, truth_url)
        images = staging.count("select count(*) from resolved")
        absent = staging.count("select count(*) from truth") - images
        names = staging.connection.execute(
            "select name from truth anti join resolved using (image_id) order by name "
            f"limit {FIRST_FEW}"
        ).fetchall()
        if not images:
            raise UserError(
                f"no image of {truth_url} is in the run: its names ({names[0][0]!r}, ...) match no "
                "file name of the manifest"
            )
        note(f"ground truth: converting {counted(images, 'image')}")
        chunks = staging.tables("from resolved order by hash")
        name = fresh_name()
        results = convert(_conversions(chunks, run.storage, folder, name, masks))
        parts = sorted(results, key=lambda part: part.path)
    truth = save_truth(
        run.storage,
        folder,
        key=key,
        sha256=sha256,
        categories=categories,
        parts=parts,
        images=images,
        absent=absent,
        absent_names=[name for (name,) in names],
    )
    sweep(run.storage, folder, keep=name)
    return truth


def save_truth(
    storage: Storage,
    folder: str,
    *,
    key: str,
    sha256: str,
    categories: Categories,
    parts: Sequence[TruthPart],
    images: int,
    absent: int = 0,
    absent_names: Sequence[str] = (),
) -> Truth:
    """Write `truth.json`, which makes a truth folder complete. parts: in hash order."""
    data = {
        "version": VERSION,
        "key": key,
        "sha256": sha256,
        "categories": categories.to_json(),
        "images": images,
        "absent": absent,
        "absent_names": list(absent_names),
        "parts": [asdict(part) for part in parts],
    }
    storage.write(f"{folder}/truth.json", json.dumps(data).encode())
    return _truth(storage, folder, data)


def masks_of(url: str) -> str:
    """The folder of a JSON's PNGs by COCO's convention: the URL without `.json`. Raises UserError
    for a URL without it."""
    if not url.endswith(".json"):
        raise UserError(
            f"{url} is not a panoptic JSON by its name: give the .json file, and the folder of its "
            "PNGs with --truth-masks"
        )
    return url.removesuffix(".json")


def _key(run: Run, file: CocoFile, pngs: Sequence[Entry]) -> str:
    """SHA-256 over all inputs of the conversion: JSON, object info of the PNGs, manifest."""
    digest = hashlib.sha256(f"{VERSION} {file.sha256}\n".encode())
    for part in run.manifest_files():
        digest.update(f"{part}\n".encode())
    for entry in pngs:
        digest.update(f"{entry.path} {entry.size} {entry.etag} {entry.last_modified}\n".encode())
    return digest.hexdigest()


def _sha256(file: CocoFile, pngs: Sequence[Entry]) -> str:
    """SHA-256 over JSON and PNGs (size, ETag), equal for copies of the truth in other places."""
    digest = hashlib.sha256(f"{file.sha256}\n".encode())
    for entry in pngs:
        digest.update(f"{entry.path} {entry.size} {entry.etag}\n".encode())
    return digest.hexdigest()


def _pngs(masks: Storage) -> list[Entry]:
    try:
        return sorted(entry for entry in masks.list() if entry.path.endswith(".png"))
    except OSError as error:
        raise as_user_error(error, f"can't list the truth's PNGs in {masks.url}") from error


def _conversions(
    chunks: Iterator[pa.Table], target: Storage, folder: str, name: str, masks: Storage
) -> Iterator[Callable[[], TruthPart]]:
    number = 0
    for chunk in chunks:
        for first in range(0, chunk.num_rows, ROWS_PER_PART):
            rows = chunk.slice(first, ROWS_PER_PART)
            path = f"{name}/part-{number:05d}.parquet"
            yield partial(convert_part, rows.combine_chunks(), target, folder, path, masks)
            number += 1


def convert_part(
    rows: pa.Table, target: Storage, folder: str, path: str, masks: Storage
) -> TruthPart:
    """Convert the PNGs of these annotations and write them as one Parquet file `path`."""
    table = table_of(convert_row(row, masks) for row in rows.to_pylist())
    return write_part(table, target, folder, path)


def write_part(table: pa.Table, target: Storage, folder: str, path: str) -> TruthPart:
    """Write truth rows, sorted by hash, as one Parquet file `path` in `folder`."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", compression_level=3, row_group_size=ROWS_PER_GROUP
    )
    target.write(f"{folder}/{path}", sink.getvalue().to_pybytes())
    hashes = table["hash"].to_pylist()
    groups = [hashes[i : i + ROWS_PER_GROUP] for i in range(0, len(hashes), ROWS_PER_GROUP)]
    return TruthPart(
        path=path,
        ranges=[(group[0], group[-1]) for group in groups],
        mismatched=sum(table["area_mismatches"].to_pylist()),
        problems=len(table) - table["problem"].null_count,
    )


def convert_row(row: dict[str, Any], masks: Storage, *, truth: bool = True) -> dict[str, Any]:
    """The row of one annotation; a missing or broken PNG is its `problem`.

    Raises UserError if the store can't be read.
    """
    where = place_of(masks.url, row["png"])
    try:
        data = read_named(masks, row["png"])
    except FileNotFoundError:
        return problem_row(row, f"{where} is missing")
    except UserError:
        raise
    except Exception as error:
        if classify(error)[0] == "not_found":  # a name that no file can have
            return problem_row(row, f"{where} is no file")
        raise as_user_error(error, f"can't read {where}") from error
    return row_of(row, data, truth=truth)
