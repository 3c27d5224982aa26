"""PQ of a weight file on a validation dataset, during a training.

The code of `panoptic segment` loads the file and segments the images, and the code of `panoptic
evaluate` scores them, so PQ is that of later use, with label set, threshold and merge rules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import detr
from detr.categories import Categories
from pipeline.evaluation.truth_png import TRUTH_SCHEMA
from pipeline.panoptic import figures, pq, rle
from pipeline.train.dataset import PanopticDataset

Rows = list[dict[str, Any]]


def validate(
    weights: Path, dataset: PanopticDataset, *, limit: int, threshold: float, device: str
) -> dict[str, Any]:
    """Score the first `limit` images; returns the figures of `figures.results`."""
    predictor = detr.load(weights, threshold=threshold, device=device)
    predicted: Rows = []
    true: Rows = []
    for index in range(min(limit, len(dataset.examples))):
        image, id_map = dataset.read(index)
        example = dataset.examples[index]
        [panoptic] = predictor.segment([image])
        pairs = [(s.id, s.category_id) for s in panoptic.segments]
        predicted.append(_row(panoptic.segment_map, pairs))
        listed = [(i, dataset.categories[c].id) for i, c in example.segments]
        crowds = [(i, dataset.categories[c].id) for i, c in example.crowds]
        flags = [False] * len(listed) + [True] * len(crowds)
        row = _row(id_map, listed + crowds)
        true.append({**row, "iscrowd": flags, "unlisted_counts": None})
    return figures.results(_score(predicted, true, dataset.categories), dataset.categories)


def _row(id_map: NDArray[Any], segments: list[tuple[int, int]]) -> dict[str, Any]:
    """The shard columns of one image. segments: (id, category id)."""
    ids = [segment_id for segment_id, _ in segments]
    return {
        "height": id_map.shape[0],
        "width": id_map.shape[1],
        "segment_id": ids,
        "category_id": [category_id for _, category_id in segments],
        "counts": rle.encode(id_map, ids).counts,
    }


_COLUMNS = ("height", "width", "segment_id", "category_id", "counts")
_SCHEMA = pa.schema([TRUTH_SCHEMA.field(name) for name in _COLUMNS])
_TRUTH_SCHEMA = pa.schema(
    [TRUTH_SCHEMA.field(name) for name in (*_COLUMNS, "iscrowd", "unlisted_counts")]
)


def _score(predicted: Rows, true: Rows, categories: Categories) -> pq.Sums:
    sums = pq.Sums.zero(len(categories))
    rows = np.arange(len(true), dtype=np.int64)
    scored = pq.score(
        pq.Side.from_rows(pa.Table.from_pylist(predicted, _SCHEMA), categories.ids),
        pq.Side.from_rows(pa.Table.from_pylist(true, _TRUTH_SCHEMA), categories.ids),
        sums,
        prediction_rows=rows,
        truth_rows=rows,
        seeds=rows.astype(np.uint64),
    )
    assert not scored.faults[:, 0].any(), "maps that were just encoded can't be malformed"
    return sums
