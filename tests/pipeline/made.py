"""Small panoptic maps as the rows that the product reads. For tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.evaluation.truth_png import TRUTH_SCHEMA
from pipeline.panoptic import rle
from pipeline.panoptic.pq import Scored, Side, Sums, score

Segments = list[dict[str, Any]]
Image = tuple[NDArray[Any], Segments, NDArray[Any], Segments]


def strings(segment_map: NDArray[Any], segments: Segments) -> tuple[list[str], list[int]]:
    """(counts, areas) of the segments, in order; absent ones get an empty mask."""
    height, width = segment_map.shape
    present = set(np.unique(segment_map).tolist())
    ids = [s["id"] for s in segments if s["id"] in present]
    encoded = rle.encode(segment_map, ids)
    found = dict(zip(ids, zip(encoded.counts, encoded.area.tolist(), strict=True), strict=True))
    pairs = [found.get(s["id"], (rle.empty_counts(height, width), 0)) for s in segments]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def prediction_row(name: str, segment_map: NDArray[Any], segments: Segments) -> dict[str, Any]:
    counts, area = strings(segment_map, segments)
    return {
        "file_name": name,
        "height": segment_map.shape[0],
        "width": segment_map.shape[1],
        "segment_id": [s["id"] for s in segments],
        "category_id": [s["category_id"] for s in segments],
        "area": area,
        "counts": counts,
    }


def truth_row(name: str, segment_map: NDArray[Any], segments: Segments) -> dict[str, Any]:
    height, width = segment_map.shape
    counts, area = strings(segment_map, segments)
    listed = np.isin(segment_map, [0, *[s["id"] for s in segments]])
    unlisted = None if listed.all() else rle.encode((~listed).astype(np.uint8), [1]).counts[0]
    return {
        "hash": 0,
        "file_name": name,
        "image_id": name,
        "height": height,
        "width": width,
        "segment_id": [s["id"] for s in segments],
        "category_id": [s["category_id"] for s in segments],
        "iscrowd": [bool(s.get("iscrowd")) for s in segments],
        "area": area,
        "bbox": [[0, 0, 0, 0] for _ in segments],
        "counts": counts,
        "unlisted_counts": unlisted,
        "problem": None,
    }


PREDICTION_SCHEMA = pa.schema(
    [
        ("file_name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("segment_id", pa.list_(pa.int32())),
        ("category_id", pa.list_(pa.int32())),
        ("area", pa.list_(pa.int64())),
        ("counts", pa.list_(pa.large_string())),
    ]
)


def sides(images: list[Image], category_ids: list[int]) -> tuple[Side, Side]:
    predictions = [prediction_row(str(i), p, s) for i, (p, s, _, _) in enumerate(images)]
    truth = [truth_row(str(i), t, s) for i, (_, _, t, s) in enumerate(images)]
    return (
        Side.from_rows(pa.Table.from_pylist(predictions, PREDICTION_SCHEMA), category_ids),
        Side.from_rows(pa.Table.from_pylist(truth, TRUTH_SCHEMA), category_ids),
    )


def score_images(
    images: list[Image], category_ids: list[int], rows: list[int] | None = None
) -> tuple[Sums, Scored]:
    """Score the images (or some rows of them), seeds being their positions."""
    predictions, truth = sides(images, category_ids)
    sums = Sums.zero(len(category_ids), replicates=8)
    chosen = np.asarray(range(len(images)) if rows is None else rows, dtype=np.int64)
    scored = score(
        predictions,
        truth,
        sums,
        prediction_rows=chosen,
        truth_rows=chosen,
        seeds=chosen.astype(np.uint64),
    )
    return sums, scored
