"""Exact panoptic quality: RLE strings of predictions and truth in, sums out.

PQ of a class = sum of IoU over its matches / (TP + FP / 2 + FN / 2) (Kirillov et al., 2019), with
panopticapi's rules for void and crowds. A sum of floating point numbers depends on their order, and
the order of shards is arbitrary. But the IoU of a match lies in (1/2, 1], so as a double it is a
multiple of 2^-53, and the sum is exact in two int64 (high and low 32 bits). So the result is the
same bits for any order and any sharding, and equals `math.fsum`.

Bootstrap: each image has Poisson(1) weights drawn from the hash of its name, so replicates are sums
too (of integers below 2^53, as float64), and two runs over the same images have the same bootstrap
samples.
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
from pipeline.schema import list_values, one_chunk

REPLICATES = 400
SIZES = ("small", "medium", "large")
OUTCOMES = ("TP", "FP", "FN")


class Side(NamedTuple):
    """The segments of n images, predictions or truth, as flat arrays; a tuple, for numba.

    size: (n, 2) height, width; height -1 for an error row. first: (n + 1,) image i has the segments
    first[i]:first[i + 1]. Per segment s: classes, the position of its category, -1 unknown;
    category_ids; ids; crowd, False in predictions; the RLE string
    text[text_first[s]:text_first[s + 1]]. Per image, in truth: unlisted and unlisted_first, the RLE
    string of pixels whose id the JSON doesn't list, empty for none.
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
        iscrowd and unlisted_counts. Strings are not copied. category_ids: of all classes."""
        first, ids = _flat(rows["segment_id"])
        _, categories = _flat(rows["category_id"])
        text, text_first = _strings(list_values(rows["counts"]))
        heights = rows["height"].fill_null(-1).to_numpy().astype(np.int64)
        widths = rows["width"].fill_null(-1).to_numpy().astype(np.int64)
        if "iscrowd" in rows.column_names:
            crowd = np.asarray(list_values(rows["iscrowd"]).to_numpy(zero_copy_only=False), bool)
            unlisted, unlisted_first = _strings(one_chunk(rows["unlisted_counts"]).fill_null(""))
        else:
            crowd = np.zeros(ids.size, dtype=bool)
            unlisted = np.empty(0, dtype=np.uint8)
            unlisted_first = np.zeros(rows.num_rows + 1, dtype=np.int64)
        return cls(
            size=np.stack([heights, widths], axis=1),
            first=first,
            classes=class_positions(categories, category_ids),
            category_ids=categories,
            ids=ids,
            text=text,
            text_first=text_first,
            crowd=crowd,
            unlisted=unlisted,
            unlisted_first=unlisted_first,
        )

    def strings(self, row: int) -> list[str]:
        """The RLE strings of one image, copied; used only for error messages."""
        bounds = self.text_first[self.first[row] : self.first[row + 1] + 1].tolist()
        return [self.text[a:b].tobytes().decode("latin-1") for a, b in pairwise(bounds)]


@dataclass
class Sums:
    """Sums over images; `a.add(b)` in any order gives the same bits.

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
        return _rounded(self.counts)

    def class_iou(self) -> NDArray[np.float64]:
        """(classes,) sums of IoU over all sizes, rounded once."""
        return _rounded(self.counts.sum(axis=1))


def _rounded(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sums of IoU from their high and low parts, counts[..., 0] and counts[..., 1]."""
    exact = counts[..., 0].astype(object) * 2**32 + counts[..., 1].astype(object)
    return (exact / 2**53).astype(np.float64)


class Scored(NamedTuple):
    """The outcomes of one call of `score`, image by image.

    faults: (n, 5) code (0: none), 0 prediction or 1 truth, segment position, detail, 0.
    totals: (n, 3) TP, FP, FN; ious: (n,) sums of IoU over matches. Image i has the events
    event_first[i]:event_first[i + 1]. events: class, size, outcome, position of the predicted and
    of the true segment or -1; event_iou: the IoU. Likewise mix_first, mixes (true class, predicted
    class) and mix_iou, of pairs with IoU > 1/2 and different classes.
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
    """Score n images, add them to `sums` and return their outcomes; the rules are panopticapi's.

    prediction_rows, truth_rows: (n,) row of image i in `predictions` and in `truth`. seeds: (n,)
    `name_hash` of each image, which gives its bootstrap weights. An image with a fault (malformed
    string, overlap, other size, unknown category) adds nothing: see `Scored.faults`.
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
    segments = max(_largest(predictions, prediction_rows), _largest(truth, truth_rows))
    pixels = int(truth.size[truth_rows].prod(axis=1).max(initial=0))
    # Labels of one byte, if they fit, keep the kernel's data in the CPU cache.
    labels = np.zeros((2, pixels + 1), dtype=np.uint8 if segments <= 2**8 - 3 else np.uint16)
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
    mixes = scored.mixes[: scored.mix_first[-1]]
    sums.confusion.update(zip(mixes[:, 0].tolist(), mixes[:, 1].tolist(), strict=True))
    return scored


def _largest(side: Side, rows: NDArray[np.int64]) -> int:
    """The largest number of segments in one of the images."""
    return int(np.diff(side.first)[rows].max(initial=0))


def class_positions(category_ids: NDArray[Any], known: Sequence[int]) -> NDArray[np.int32]:
    """(n,) position of each category id in `known`, -1 for an unknown one."""
    known_ids = np.asarray(known, dtype=np.int64)
    order = np.argsort(known_ids)
    rank = np.searchsorted(known_ids, category_ids, sorter=order).clip(max=known_ids.size - 1)
    position = order[rank]
    return np.where(known_ids[position] == category_ids, position, -1).astype(np.int32)


def fault_sentence(
    fault: NDArray[np.int64],
    predictions: Side,
    truth: Side,
    *,
    prediction_row: int,
    truth_row: int,
) -> tuple[str, int | None]:
    """(sentence, id of the segment at fault or None) for a row of `Scored.faults`."""
    code, in_truth, segment, detail, _ = fault.tolist()
    side, row = (truth, truth_row) if in_truth else (predictions, prediction_row)
    what = "the truth" if in_truth else "the prediction"
    height, width = truth.size[truth_row].tolist()
    ids = side.ids[side.first[row] : side.first[row + 1]].tolist()
    if code == kernels.SIZE:
        size = " x ".join(map(str, predictions.size[prediction_row]))
        return f"{what} is {size} (height x width), the truth {height} x {width}", None
    if code == kernels.TOO_MANY:
        return f"{what} has {len(ids)} segments, more than {kernels.MAX_SEGMENTS}", None
    if code == kernels.OVERLAP:
        # The kernel doesn't report which segments overlap: paint them to find out.
        positions = np.arange(1, len(ids) + 1)
        try:
            rle.decode(side.strings(row), height, width, positions)
        except rle.RleError as error:
            second = ids[error.segment_id - 1]
            first = ids[int(str(error).rsplit(" ", 1)[1]) - 1]
            return f"segment {second} of {what} overlaps segment {first}", second
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
    """(65536,) Poisson(1) quantiles: entry u is the smallest k with P(X <= k) * 2^16 > u."""
    cumulative = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(16)]) * 2**16
    return np.searchsorted(cumulative, np.arange(2**16), side="right").astype(np.float64)


POISSON = _poisson_table()


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A list column of integers as (rows + 1,) offsets and flat values."""
    lists = one_chunk(column)
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
