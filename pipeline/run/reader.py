"""Rows of a run: one image with its masks as numpy arrays, or all rows as an Arrow table.

    run = pipeline.open_run("s3://bucket/out")
    image = run["holiday/0042.jpg"]          # reads three objects of a run of any size
    image.segments[0].category.name, image.mask(1).sum()
    run.table(["file_name", "category_id", "area"]).to_pandas()

Masks are decoded only on access.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detr.categories import Categories, Category
from detr.panoptic import Panoptic, Segment
from pipeline.errors import UserError
from pipeline.panoptic import rle
from pipeline.run.folder import RunFolder, Snapshot
from pipeline.schema import SHARD_SCHEMA, shard_columns

READ_THREADS: Final = 16
# The columns that `panoptic_of` reads.
PANOPTIC_COLUMNS = ("height", "width", "segment_id", "category_id", "isthing", "score", "counts")


@dataclass(frozen=True)
class ImageSegment:
    """One segment of an image. area: pixels; bbox: x, y, width, height in pixels."""

    id: int
    category: Category
    isthing: bool
    score: float
    area: int
    bbox: tuple[int, int, int, int]


@dataclass(frozen=True)
class ImageRow:
    """One image of a run. row: all columns of the shard, with the user's own."""

    row: Mapping[str, Any]
    categories: Categories

    @property
    def file_name(self) -> str:
        return self.row["file_name"]

    @property
    def ok(self) -> bool:
        return self.row["status"] == "ok"

    @property
    def error(self) -> str | None:
        """Such as `truncated: image file is truncated`, None if the image is ok."""
        return None if self.ok else f"{self.row['error_code']}: {self.row['error_message']}"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels. Raises UserError if the image could not be segmented."""
        if not self.ok:
            raise UserError(f"{self.file_name!r} could not be segmented: {self.error}")
        return self.row["height"], self.row["width"]

    @property
    def segments(self) -> tuple[ImageSegment, ...]:
        """The segments, in the order of the row; empty for an error row."""
        names = ("segment_id", "category_id", "isthing", "score", "area", "bbox")
        return tuple(
            ImageSegment(number, self.categories.by_id(category), isthing, score, area, tuple(bbox))
            for number, category, isthing, score, area, bbox in zip(
                *(self.row[name] for name in names), strict=True
            )
        )

    @cached_property
    def map(self) -> NDArray[np.int32]:
        """(H, W): the segment id of each pixel, 0 for void. Raises UserError for an error row."""
        height, width = self.size
        return rle.decode(self.row["counts"], height, width, self.row["segment_id"])

    def mask(self, segment_id: int) -> NDArray[np.bool_]:
        """(H, W) bool: the mask of one segment. Raises KeyError for an unknown id."""
        if segment_id not in self.row["segment_id"]:
            raise KeyError(segment_id)
        index = self.row["segment_id"].index(segment_id)
        height, width = self.size
        return rle.decode([self.row["counts"][index]], height, width, [1]).astype(bool)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(N, H, W) bool: the masks of the segments, in the order of `segments`."""
        return self.map[None] == np.array(self.row["segment_id"])[:, None, None]


def panoptic_of(row: Mapping[str, Any]) -> Panoptic:
    """The (H, W) map and the segments of an ok row. Raises RleError for a damaged RLE string.

    row: `PANOPTIC_COLUMNS` of a shard.
    """
    counts: Sequence[str] = row["counts"]
    segment_map = rle.decode(counts, row["height"], row["width"], row["segment_id"])
    segments = tuple(
        Segment(number, category_id, isthing, score)
        for number, category_id, isthing, score in zip(
            row["segment_id"], row["category_id"], row["isthing"], row["score"], strict=True
        )
    )
    return Panoptic(segment_map, segments)


def read_table(
    run: RunFolder, snapshot: Snapshot, columns: Sequence[str] | None = None
) -> pa.Table:
    """The rows of a snapshot, in the order of shards. columns: by default all but `counts`.

    A million images without `counts` take about 0.5 GB. Raises UserError for an unknown column or a
    shard that can't be read.
    """
    if not snapshot.shards:
        return SHARD_SCHEMA.empty_table()
    first = snapshot.shards[0].path
    with run.storage.open(first) as file:
        known = shard_columns(pq.read_schema(file).names)
    if columns is None:
        columns = [name for name in known if name != "counts"]
    for name in columns:
        if name not in known:
            raise UserError(f"the run has no column {name!r}; it has: {', '.join(known)}")
    with ThreadPoolExecutor(READ_THREADS) as pool:
        tables = pool.map(lambda shard: run.read_shard(shard.path, columns), snapshot.shards)
        return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
