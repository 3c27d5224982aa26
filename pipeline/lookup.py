"""One image of a run, found by its name without an index, and its row as a picture's segments.

The hash of a file name is its place: in each generation it can only be in one shard, so a lookup
reads one object per live generation at most, newest first, however many images there are. An index
file was rejected: it would have to be kept in step with every snapshot, and rolled back with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from detr.postprocess import Panoptic, Segment
from pipeline import rle
from pipeline.errors import UserError
from pipeline.plan import name_hash, origin_of, shard_of
from pipeline.run import Run, Snapshot

# What `panoptic_of` needs of a shard's row.
SEGMENT_COLUMNS = ("height", "width", "segment_id", "category_id", "isthing", "score", "counts")


def find_row(run: Run, file_name: str, *, snapshot: Snapshot | None = None) -> dict[str, Any]:
    """The row of one image in a snapshot (by default the published one), all columns.

    Raises UserError if the run has no such image.
    """
    snapshot = run.snapshot() if snapshot is None else snapshot
    for path in _candidates(run, snapshot, file_name):
        table = run.read_shard(path)
        rows = table.filter(pc.field("file_name") == file_name).to_pylist()
        if rows:
            return rows[0]
    raise UserError(
        f"{run.storage.url} has no image {file_name!r}: names are paths relative to the source, as "
        "in the shards' file_name column"
    )


def _candidates(run: Run, snapshot: Snapshot, file_name: str) -> Iterator[str]:
    """Paths of the live shards that may hold the image, of the newest generation first."""
    paths = {origin_of(shard.path): shard.path for shard in snapshot.shards}
    for generation in sorted({generation for generation, _ in paths}, reverse=True):
        shards = run.generation(generation).shards
        path = paths.get((generation, shard_of(name_hash(file_name), shards)))
        if path is not None:
            yield path


def panoptic_of(row: Mapping[str, Any]) -> Panoptic:
    """The map and segments of an ok row. Raises RleError if its strings are damaged."""
    counts: Sequence[str] = row["counts"]
    segment_map = rle.decode(counts, row["height"], row["width"], row["segment_id"])
    segments = tuple(
        Segment(number, category_id, isthing, score)
        for number, category_id, isthing, score in zip(
            row["segment_id"], row["category_id"], row["isthing"], row["score"], strict=True
        )
    )
    return Panoptic(segment_map, segments)
