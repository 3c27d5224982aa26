"""Bootstrap sums from the per-image rows of a finished evaluation.

An evaluation does not store its replicates, but its per-image rows hold every outcome, and the
bootstrap weights of an image depend only on the hash of its name. So the rows give the same sums,
bit for bit, over any subset of the images, such as the images that two runs share. Two runs then
have the same bootstrap samples, and the differences between the runs are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipeline.panoptic.kernels import IOU_UNIT, REPLICATE_UNIT, fill_weights
from pipeline.panoptic.pq import OUTCOMES, POISSON, SIZES, Sums, class_positions
from pipeline.schema import list_values

COLUMNS: Final = ("category_id", "size", "outcome", "segment_iou")
ROWS_AT_A_TIME: Final = 2_048  # 6.5 MB of weights


def image_weights(hashes: NDArray[np.uint64], replicates: int) -> NDArray[np.float64]:
    """(n, replicates) float64 Poisson(1) weights, as in `pq.score`. hashes: (n,) of the names."""
    out = np.empty((hashes.size, replicates))
    fill_weights(hashes, POISSON, out)
    return out


def add_rows(sums: Sums, rows: pa.Table, category_ids: Sequence[int]) -> None:
    """Add per-image rows to `sums.counts` and `sums.replicates`, not to `sums.confusion`.

    rows: `hash` and `COLUMNS` of `per_image.PER_IMAGE_SCHEMA`. category_ids: in the order of the
    classes of `sums`.
    """
    for first in range(0, rows.num_rows, ROWS_AT_A_TIME):
        _add(sums, rows.slice(first, ROWS_AT_A_TIME), category_ids)


def _add(sums: Sums, rows: pa.Table, category_ids: Sequence[int]) -> None:
    classes, replicates = sums.replicates.shape[1:]
    n = rows.num_rows
    lengths = np.diff(rows["category_id"].combine_chunks().offsets.to_numpy())
    image = np.repeat(np.arange(n), lengths)
    label = class_positions(
        list_values(rows["category_id"]).to_numpy(zero_copy_only=False), category_ids
    )
    assert (label >= 0).all(), "rows of categories that are not among category_ids"
    size = _positions(rows["size"], SIZES)
    outcome = _positions(rows["outcome"], OUTCOMES)
    iou = list_values(rows["segment_iou"]).to_numpy(zero_copy_only=False)
    np.add.at(sums.counts, (label, size, 2 + outcome), 1)
    hit = outcome == OUTCOMES.index("TP")
    exact = (iou[hit] * IOU_UNIT).astype(np.int64)
    np.add.at(sums.counts[..., 0], (label[hit], size[hit]), exact >> 32)
    np.add.at(sums.counts[..., 1], (label[hit], size[hit]), exact & 0xFFFFFFFF)
    weights = image_weights(rows["hash"].to_numpy(), replicates)

    def weighted(chosen: NDArray[np.bool_], values: NDArray[np.float64]) -> NDArray[np.float64]:
        entries = (values, (label[chosen], image[chosen]))
        return csr_array(entries, shape=(classes, n)) @ weights  # repeated entries add up

    ones = np.ones(iou.size)
    sums.replicates[0] += weighted(hit, np.floor(iou[hit] * REPLICATE_UNIT + 0.5))
    sums.replicates[1] += weighted(hit, ones[hit])
    sums.replicates[2] += weighted(~hit, ones[~hit])


def _positions(column: pa.ChunkedArray, names: tuple[str, ...]) -> NDArray[np.int64]:
    words = list_values(column).cast(pa.string()).dictionary_encode()
    positions = [names.index(word) for word in words.dictionary.to_pylist()]
    return np.array(positions, np.int64)[words.indices.to_numpy()]
