"""Agreement of two snapshots without ground truth, and the images on which they differ most.

Agreement is the PQ of B with A as truth. Pixels that A left void count as labelled without a
segment, so segments that only B has are false positives. Rows are paired by hash range, so memory
is that of a few shards for runs of any size; the images with the smallest hashes are a uniform
sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from heapq import nlargest
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.evaluation.drift import Drift, Shares, drift
from pipeline.evaluation.truth_png import TRUTH_SCHEMA
from pipeline.panoptic import rle
from pipeline.panoptic.figures import results
from pipeline.panoptic.pq import Sums
from pipeline.panoptic.score import Partial, hashes_of, score_rows
from pipeline.run.snapshots import RunSnapshot
from pipeline.schema import SHARD_SCHEMA
from pipeline.sharding import origin_of, shard_start

SAMPLE: Final = 20_000
LISTED: Final = 50
SHARDS_HELD: Final = 64


@dataclass(frozen=True)
class Disagreement:
    """An image on which A and B differ.

    segments: (FP + FN) / 2 + sum of (1 - IoU) over matches. Images are ordered by this number and
    not by PQ, which is 0 for every image whose only segment has no match. pq: of B with A as truth,
    None if no segment counts.
    """

    file_name: str
    uri: str
    segments: float
    pq: float | None


@dataclass(frozen=True)
class Agreement:
    """B against A on the `images` that are ok in both."""

    a: str
    b: str
    images: int
    unpaired: int  # images that are in one run only, or failed in one
    groups: dict[str, dict[str, Any]]  # All, Things, Stuff: PQ of B with A as truth
    per_class: dict[str, dict[str, Any]]
    drift: Drift
    disagreements: tuple[Disagreement, ...]  # largest first


def agree(a: RunSnapshot, b: RunSnapshot, limit: int = SAMPLE) -> Agreement:
    """Compare the segments of B with those of A on at least `limit` images, if there are so many.

    Raises UserError if the label sets differ, or if no image is ok in both.
    """
    categories = a.run.info.categories
    if b.run.info.category_list != a.run.info.category_list:
        raise UserError("A and B have different categories: their segments can't be compared")
    ids = categories.ids
    total = Partial(Sums.zero(len(ids)))
    shares = Shares.zero(len(ids)), Shares.zero(len(ids))
    images = unpaired = 0
    worst: list[Disagreement] = []
    for rows_a, rows_b in _paired(a, b):
        for share, rows in zip(shares, (rows_a, rows_b), strict=True):
            share.add(Shares.of(rows, ids))
        ok_a, ok_b, left_out = _both_ok(rows_a, rows_b)
        unpaired += left_out
        images += ok_a.num_rows
        partial, table = score_rows(ok_b, as_truth(ok_a), ids)
        total.add(partial)
        worst = nlargest(LISTED, [*worst, *_disagreements(table, ok_b)], key=lambda d: d.segments)
        if images >= limit:
            break
    if not images:
        raise UserError("A and B have no image in common that is ok in both")
    figures = results(total.sums, categories)
    return Agreement(
        a=a.url,
        b=b.url,
        images=images,
        unpaired=unpaired,
        groups={group: figures[group] for group in ("All", "Things", "Stuff")},
        per_class=figures["per_class"],
        drift=drift(*shares, categories),
        disagreements=tuple(d for d in worst if d.segments > 0),
    )


def _paired(a: RunSnapshot, b: RunSnapshot) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Rows of A and of B in the same hash ranges, ascending."""
    left, right = _Rows(a), _Rows(b)
    starts = [shard_start(index, left.most_shards) for index in range(left.most_shards)]
    for low, high in zip(starts, [*starts[1:], 1 << 64], strict=True):
        yield left.between(low, high), right.between(low, high)


class _Rows:
    """The rows of a snapshot by hash range; the name of a shard gives its range."""

    def __init__(self, run_snapshot: RunSnapshot) -> None:
        self._run = run_snapshot.run
        shards: dict[int, int] = {}
        self._ranges: list[tuple[int, int, str]] = []
        for entry in run_snapshot.snapshot.shards:
            generation, index = origin_of(entry.path)
            if generation not in shards:
                shards[generation] = self._run.generation(generation).shards
            count = shards[generation]
            bounds = shard_start(index, count), shard_start(index + 1, count)
            self._ranges.append((*bounds, entry.path))
        self.most_shards = max(shards.values(), default=1)
        # A shard of a small generation spans many ranges: the cache spares reading it again.
        self._read = lru_cache(maxsize=SHARDS_HELD)(self._read_shard)

    def between(self, low: int, high: int) -> pa.Table:
        tables = [SHARD_SCHEMA.empty_table()]
        for first, last, path in self._ranges:
            if first < high and low < last:
                rows, hashes = self._read(path)
                inside = (hashes >= np.uint64(low)) & (hashes <= np.uint64(high - 1))
                tables.append(rows.filter(pa.array(inside)))
        return pa.concat_tables(tables)

    def _read_shard(self, path: str) -> tuple[pa.Table, Any]:
        rows = self._run.read_shard(path, SHARD_SCHEMA.names).cast(SHARD_SCHEMA)
        return rows, hashes_of(rows["file_name"].to_pylist())


def _both_ok(a: pa.Table, b: pa.Table) -> tuple[pa.Table, pa.Table, int]:
    """The rows of the images that are ok in both, in one order, and the number of other images."""
    positions = [
        {
            name: row
            for row, (name, status) in enumerate(
                zip(rows["file_name"].to_pylist(), rows["status"].to_pylist(), strict=True)
            )
            if status == "ok"
        }
        for rows in (a, b)
    ]
    names = [name for name in positions[0] if name in positions[1]]
    union = {*a["file_name"].to_pylist(), *b["file_name"].to_pylist()}
    tables = [
        rows.take(pa.array([row_of_name[name] for name in names], pa.int64()))
        for rows, row_of_name in zip((a, b), positions, strict=True)
    ]
    return tables[0], tables[1], len(union) - len(names)


def as_truth(rows: pa.Table) -> pa.Table:
    """Shard rows with status ok -> rows of TRUTH_SCHEMA in which no pixel is void."""
    shared = [name for name in TRUTH_SCHEMA.names if name in rows.column_names]
    predictions = rows.select(shared).to_pylist()
    hashes = hashes_of([row["file_name"] for row in predictions]).tolist()
    return pa.Table.from_pylist(
        [
            {
                **row,
                "hash": name_hash,
                "image_id": row["file_name"],
                "iscrowd": [False] * len(row["segment_id"]),
                "area_mismatches": 0,
                **_rest(row),
            }
            for name_hash, row in zip(hashes, predictions, strict=True)
        ],
        schema=TRUTH_SCHEMA,
    )


def _rest(row: dict[str, Any]) -> dict[str, Any]:
    """`unlisted_counts`: RLE of the pixels without a segment; or `problem`, if the RLE is bad."""
    height, width = row["height"], row["width"]
    positions = np.arange(1, len(row["counts"]) + 1)
    try:
        painted = rle.decode(row["counts"], height, width, positions)
    except rle.RleError as error:
        return {"problem": str(error)}
    empty = painted == 0
    if not empty.any():
        return {"unlisted_counts": None}
    return {"unlisted_counts": rle.encode(empty.astype(np.uint8), [1]).counts[0]}


def _disagreements(table: pa.Table, rows: pa.Table) -> Iterator[Disagreement]:
    columns = (table[name].to_pylist() for name in ("file_name", "pq", "iou", "tp", "fp", "fn"))
    for (name, pq, iou, tp, fp, fn), uri in zip(
        zip(*columns, strict=True), rows["uri"].to_pylist(), strict=True
    ):
        yield Disagreement(name, uri, (fp + fn) / 2 + tp - iou, pq)
