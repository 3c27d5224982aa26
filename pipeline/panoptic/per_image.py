"""Per-image rows of an evaluation: one row an image, with the outcome of every segment.

A row lists each match, false positive and miss with class, size and IoU, and has the user's own
columns, so that queries can compute PQ over any subset of the images (docs/evaluation.md).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.panoptic.pq import OUTCOMES, SIZES, Scored
from pipeline.schema import SHARD_SCHEMA

_WORD: Final = pa.dictionary(pa.int8(), pa.string())

PER_IMAGE_SCHEMA: Final = pa.schema(
    [
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("hash", pa.uint64(), nullable=False),
        # scored; failed (error row: all truth is missed); invalid (see reason); without_truth
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("pq", pa.float64()),  # of the image, all classes together; null without segments
        pa.field("iou", pa.float64(), nullable=False),  # sum over the matches
        pa.field("tp", pa.int32(), nullable=False),
        pa.field("fp", pa.int32(), nullable=False),
        pa.field("fn", pa.int32(), nullable=False),
        # One entry per match, false positive and miss.
        pa.field("category_id", pa.list_(pa.int32()), nullable=False),
        pa.field("size", pa.list_(_WORD), nullable=False),  # small, medium, large
        pa.field("outcome", pa.list_(_WORD), nullable=False),  # TP, FP, FN
        pa.field("segment_iou", pa.list_(pa.float64()), nullable=False),
        pa.field("segment_id", pa.list_(pa.int32()), nullable=False),  # null in a miss
        pa.field("truth_id", pa.list_(pa.int32()), nullable=False),  # null in a false positive
        # One entry per pair with IoU > 1/2 and different classes.
        pa.field("confused_truth", pa.list_(pa.int32()), nullable=False),
        pa.field("confused_prediction", pa.list_(pa.int32()), nullable=False),
    ]
)


def image_pq(iou: NDArray[np.float64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) PQ of each image over all segments, NaN where TP + FP + FN is 0.

    iou: (n,) sums over matches; totals: (n, 3) TP, FP, FN.
    """
    weight = totals[:, 0] + (totals[:, 1] + totals[:, 2]) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, iou / weight, np.nan)


def per_image_table(
    predictions: pa.Table,
    hashes: NDArray[np.uint64],
    *,
    status: list[str],
    reason: list[str | None],
    size: NDArray[np.int64],
    paired: NDArray[np.int64],
    scored: Scored,
    category_ids: NDArray[np.int64],
    segment_ids: NDArray[np.int64],
    truth_ids: NDArray[np.int64],
) -> pa.Table:
    """Per-image rows (`PER_IMAGE_SCHEMA`, then the user's columns) in the order of `predictions`.

    predictions: (n,) shard rows; paired: (pairs,) rows of the shard that were given to `score`,
    ascending; size: (n, 2) height and width, -1 unknown; scored: the result of `score`;
    segment_ids, truth_ids: (events,) ids of the segments of each event, -1 for none.
    """
    n = predictions.num_rows
    events = scored.events[: scored.event_first[-1]]
    mixes = scored.mixes[: scored.mix_first[-1]]

    def spread(values: NDArray[np.generic]) -> NDArray[np.generic]:
        out = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
        out[paired] = values
        return out

    def lists(first: NDArray[np.int64], values: pa.Array) -> pa.Array:
        offsets = np.zeros(n + 1, dtype=np.int32)
        np.cumsum(spread(np.diff(first)), out=offsets[1:])
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    def ids(values: NDArray[np.int64]) -> pa.Array:
        return pa.array(values.astype(np.int32), mask=values < 0)

    def words(codes: NDArray[np.int32], names: tuple[str, ...]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int8)), pa.array(names))

    totals = spread(scored.totals)
    iou = spread(scored.ious)
    pq = image_pq(iou, totals)  # type: ignore[arg-type]
    event_lists = {
        "category_id": pa.array(category_ids[events[:, 0]].astype(np.int32)),
        "size": words(events[:, 1], SIZES),
        "outcome": words(events[:, 2], OUTCOMES),
        "segment_iou": pa.array(scored.event_iou[: len(events)]),
        "segment_id": ids(segment_ids),
        "truth_id": ids(truth_ids),
    }
    columns = {
        "file_name": predictions["file_name"],
        "hash": pa.array(hashes),
        "status": pa.array(status, pa.string()),
        "reason": pa.array(reason, pa.string()),
        "height": ids(size[:, 0]),
        "width": ids(size[:, 1]),
        "pq": pa.array(pq, mask=np.isnan(pq)),
        "iou": pa.array(iou),
        **{
            name: pa.array(totals[:, k].astype(np.int32))
            for k, name in enumerate(("tp", "fp", "fn"))
        },
        **{name: lists(scored.event_first, values) for name, values in event_lists.items()},
        **{
            f"confused_{name}": lists(
                scored.mix_first, pa.array(category_ids[mixes[:, k]].astype(np.int32))
            )
            for k, name in enumerate(("truth", "prediction"))
        },
    }
    table = pa.table(columns, schema=PER_IMAGE_SCHEMA)
    taken = {*SHARD_SCHEMA.names, *PER_IMAGE_SCHEMA.names}
    for name in predictions.column_names:
        if name not in taken:
            table = table.append_column(predictions.schema.field(name), predictions[name])
    return table
