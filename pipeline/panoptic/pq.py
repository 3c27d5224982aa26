"""Panoptic quality, exactly: a batch of images in, sums that merge in any order out.

PQ of a class = sum of IoU over its matches / (TP + FP / 2 + FN / 2) (Kirillov et al., 2019), with
panopticapi's rules for void and crowds. Sums of floating point numbers depend on their order, and
shards arrive in any; but every IoU that counts lies in (1/2, 1], so as a double it is a multiple of
2^-53 and its sum is exact in two int64 (high and low 32 bits). Hence the same bits for any order,
sharding or repetition of the work, and a result that equals `math.fsum`.

The bootstrap rides along: each image has Poisson(1) weights drawn from its own hash, so replicates
are sums too (of integers below 2^53 held in doubles), and two runs over the same images share their
bootstrap samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.panoptic import kernels, rle
from pipeline.schema import list_values

REPLICATES = 400
SIZES = ("small", "medium", "large")
OUTCOMES = ("TP", "FP", "FN")


class Side(NamedTuple):
    """The segments of many images, flat, as Arrow's lists hold them.

    size: (n, 2) int64 height, width; height -1 where there is no result. first: (n + 1,) the first
    segment of each image. Of each segment: classes (position of its category, -1 unknown), ids,
    and its string text[text_first[s]:text_first[s + 1]]. Truth alone has crowd, and per image the
    string of pixels whose id its JSON doesn't list (empty: none). A tuple, as numba takes it.
    """

    size: NDArray[np.int64]
    first: NDArray[np.int64]
    classes: NDArray[np.int32]
    category_ids: NDArray[np.int64]
    ids: NDArray[np.int64]
    text: NDArray[np.uint8]
    text_first: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    unlisted: NDArray[np.uint8]
    unlisted_first: NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: pa.Table, category_ids: Sequence[int]) -> Side:
        """From shard or truth rows: height, width, segment_id, category_id, counts, and, in truth,
        iscrowd and unlisted_counts. Strings are not copied."""
        first, ids = _flat(rows["segment_id"])
        _, own = _flat(rows["category_id"])
        text, text_first = _strings(list_values(rows["counts"]))
        heights = rows["height"].fill_null(-1).to_numpy().astype(np.int64)
        widths = rows["width"].fill_null(-1).to_numpy().astype(np.int64)
        if "iscrowd" in rows.column_names:
            crowd = np.asarray(list_values(rows["iscrowd"]).to_numpy(zero_copy_only=False), bool)
            unlisted, unlisted_first = _strings(_one(rows["unlisted_counts"]).fill_null(""))
        else:
            crowd = np.zeros(ids.size, dtype=bool)
            unlisted = np.empty(0, dtype=np.uint8)
            unlisted_first = np.zeros(rows.num_rows + 1, dtype=np.int64)
        return cls(
            size=np.stack([heights, widths], axis=1),
            first=first,
            classes=class_positions(own, category_ids),
            category_ids=own,
            ids=ids,
            text=text,
            text_first=text_first,
            crowd=crowd,
            unlisted=unlisted,
            unlisted_first=unlisted_first,
        )

    def strings(self, row: int) -> list[str]:
        """The strings of one image, for the slow path of messages."""
        bounds = self.text_first[self.first[row] : self.first[row + 1] + 1].tolist()
        return [self.text[a:b].tobytes().decode("latin-1") for a, b in pairwise(bounds)]


@dataclass
class Sums:
    """What is added up; `a.add(b)` in any order gives the same bits.

    counts: (classes, 3 sizes, 5) int64: IoU in units of 2^-53 (high part, low 32 bits), TP, FP, FN.
    replicates: (3: IoU in 2^-20, TP, FP + FN; classes, replicates) float64 holding integers.
    confusion: (true class, predicted class) -> pairs with IoU > 1/2.
    """

    counts: NDArray[np.int64]
    replicates: NDArray[np.float64]
    confusion: Counter[tuple[int, int]] = field(default_factory=Counter)

    @classmethod
    def zero(cls, classes: int, replicates: int = REPLICATES) -> Sums:
        if replicates % 4:
            raise ValueError(f"replicates must be a multiple of 4, not {replicates}")
        return cls(
            counts=np.zeros((classes, len(SIZES), 5), dtype=np.int64),
            replicates=np.zeros((3, classes, replicates), dtype=np.float64),
        )

    def add(self, other: Sums) -> None:
        self.counts += other.counts
        self.replicates += other.replicates
        self.confusion.update(other.confusion)

    def iou(self) -> NDArray[np.float64]:
        """(classes, 3 sizes) sums of IoU, each rounded once from its exact value."""
        exact = self.counts[..., 0].astype(object) * 2**32 + self.counts[..., 1].astype(object)
        return (exact / 2**53).astype(np.float64)

    def class_iou(self) -> NDArray[np.float64]:
        """(classes,) sums of IoU over all sizes, rounded once."""
        high, low = self.counts[..., 0].sum(axis=1), self.counts[..., 1].sum(axis=1)
        exact = high.astype(object) * 2**32 + low.astype(object)
        return (exact / 2**53).astype(np.float64)


class Scored(NamedTuple):
    """What one call of `score` found, image by image.

    faults: (n, 5) code (0 good), 0 prediction or 1 truth, segment position, detail, 0.
    totals: (n, 3) TP, FP, FN; ious: (n,) sums of IoU. Image i has the outcomes
    event_first[i]:event_first[i + 1] of events (class, size, outcome, position of the predicted and
    of the true segment or -1) with event_iou, and likewise mixes (true class, predicted class).
    """

    faults: NDArray[np.int64]
    totals: NDArray[np.int64]
    ious: NDArray[np.float64]
    event_first: NDArray[np.int64]
    events: NDArray[np.int32]
    event_iou: NDArray[np.float64]
    mix_first: NDArray[np.int64]
    mixes: NDArray[np.int32]
    mix_iou: NDArray[np.float64]


def score(
    predictions: Side,
    truth: Side,
    sums: Sums,
    *,
    prediction_rows: NDArray[np.int64],
    truth_rows: NDArray[np.int64],
    seeds: NDArray[np.uint64],
) -> Scored:
    """Score image i = (prediction row i, truth row i) and add it to `sums`.

    An image with a fault (a malformed string, overlap, other size, unknown category) adds nothing.
    seeds: (n,) uint64, the hash of each image's name: its bootstrap weights.
    """
    n = prediction_rows.size
    predicted = int(np.diff(predictions.first)[prediction_rows].sum())
    true = int(np.diff(truth.first)[truth_rows].sum())
    scored = Scored(
        faults=np.zeros((n, 5), dtype=np.int64),
        totals=np.zeros((n, 3), dtype=np.int64),
        ious=np.zeros(n, dtype=np.float64),
        event_first=np.zeros(n + 1, dtype=np.int64),
        events=np.empty((predicted + true, 5), dtype=np.int32),
        event_iou=np.empty(predicted + true, dtype=np.float64),
        mix_first=np.zeros(n + 1, dtype=np.int64),
        mixes=np.empty((predicted, 2), dtype=np.int32),
        mix_iou=np.empty(predicted, dtype=np.float64),
    )
    most = max(_largest(predictions, prediction_rows), _largest(truth, truth_rows))
    pixels = int(truth.size[truth_rows].prod(axis=1).max(initial=0))
    # Labels of one byte where they fit: what the kernel touches then stays in the cache.
    labels = np.zeros((2, pixels + 1), dtype=np.uint8 if most <= 2**8 - 3 else np.uint16)
    kernels.score(
        prediction_rows,
        truth_rows,
        predictions,
        truth,
        seeds,
        labels,
        POISSON,
        sums.counts,
        sums.replicates,
        scored,
    )
    found = scored.mixes[: scored.mix_first[-1]]
    sums.confusion.update(zip(found[:, 0].tolist(), found[:, 1].tolist(), strict=True))
    return scored


def _largest(side: Side, rows: NDArray[np.int64]) -> int:
    """Segments of the image that has most."""
    return int(np.diff(side.first)[rows].max(initial=0))


def class_positions(category_ids: NDArray[Any], known: Sequence[int]) -> NDArray[np.int32]:
    """Position of each category id in `known`, -1 if it isn't there."""
    known_ids = np.asarray(known, dtype=np.int64)
    order = np.argsort(known_ids)
    place = np.searchsorted(known_ids, category_ids, sorter=order).clip(max=known_ids.size - 1)
    position = order[place]
    return np.where(known_ids[position] == category_ids, position, -1).astype(np.int32)


def fault_sentence(
    fault: NDArray[np.int64],
    predictions: Side,
    truth: Side,
    *,
    prediction_row: int,
    truth_row: int,
) -> tuple[str, int | None]:
    """What is wrong with an image, and the id of the segment at fault, if it is one's."""
    code, in_truth, segment, detail, _ = fault.tolist()
    side, row = (truth, truth_row) if in_truth else (predictions, prediction_row)
    what = "the truth" if in_truth else "the prediction"
    height, width = truth.size[truth_row].tolist()
    ids = side.ids[side.first[row] : side.first[row + 1]].tolist()
    if code == kernels.SIZE:
        own = " x ".join(map(str, predictions.size[prediction_row]))
        return f"{what} is {own} (height x width), the truth {height} x {width}", None
    if code == kernels.TOO_MANY:
        return f"{what} has {len(ids)} segments, more than {kernels.MAX_SEGMENTS}", None
    if code == kernels.OVERLAP:
        # The kernel knows that pixels are taken twice, not by whom: paint them.
        positions = np.arange(1, len(ids) + 1)
        try:
            rle.decode(side.strings(row), height, width, positions)
        except rle.RleError as error:
            one = ids[error.segment_id - 1]
            other = ids[int(str(error).rsplit(" ", 1)[1]) - 1]
            return f"segment {one} of {what} overlaps segment {other}", one
        return f"the unlisted pixels of {what} overlap a segment", None
    if code == kernels.UNKNOWN_CATEGORY:
        category = side.category_ids[side.first[row] + segment]
        reason = f"its category {category} is not in the truth's categories"
    else:
        reason = rle.fault_text(code, detail, height, width, ids=np.asarray(ids))
    if segment < 0:
        return f"the unlisted pixels of {what}: {reason}", None
    return f"segment {ids[segment]} of {what}: {reason}", ids[segment]


def _poisson_table() -> NDArray[np.float64]:
    """Poisson(1) by 16 uniform bits: entry u is the smallest k with P(X <= k) * 2^16 > u."""
    cumulative = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(16)]) * 2**16
    return np.searchsorted(cumulative, np.arange(2**16), side="right").astype(np.float64)


POISSON = _poisson_table()


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A list column of integers as (rows + 1,) offsets and flat values."""
    lists = _one(column)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], list_values(lists).to_numpy(zero_copy_only=False).astype(np.int64)


def _strings(array: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A string array as its bytes and (n + 1,) offsets into them, without a copy of the bytes."""
    array = array.cast(pa.large_string())
    if len(array) == 0:
        return np.empty(0, dtype=np.uint8), np.zeros(1, dtype=np.int64)
    _, offsets, data = array.buffers()
    first = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    text = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, dtype=np.uint8)
    return text, first
