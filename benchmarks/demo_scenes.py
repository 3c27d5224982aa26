"""Made scenes with truth, and the PQ of maps predicted for them.

Not a benchmark: what benchmarks/batching.py and options.py measure on. Scenes are those of
pipeline/train/synthetic.py, of a seed that no training has seen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from detr.panoptic import Panoptic
from jobs.demo import DEMO_THRESHOLD, DEMO_WEIGHTS
from pipeline.panoptic import figures
from pipeline.train.synthetic import SCENE_CATEGORIES, Scene, scene
from pipeline.train.validate import _row, _score

SEED = 77

__all__ = ["DEMO_THRESHOLD", "DEMO_WEIGHTS", "made_scenes", "panoptic_quality"]


def made_scenes(count: int) -> list[Scene]:
    return [scene(SEED, index) for index in range(count)]


def panoptic_quality(
    predicted: Sequence[Panoptic], true: Sequence[tuple[NDArray[Any], list[dict[str, int]]]]
) -> dict[str, float]:
    """PQ in points of All, Things and Stuff. A map of another size than its truth is enlarged."""
    rows, truths = [], []
    for panoptic, (segment_map, segments) in zip(predicted, true, strict=True):
        own = [(s.id, s.category_id) for s in panoptic.segments]
        enlarged = at_size(panoptic.segment_map, segment_map.shape)
        alive = set(np.unique(enlarged).tolist())
        rows.append(_row(enlarged, [(i, c) for i, c in own if i in alive]))
        listed = [(s["id"], s["category_id"]) for s in segments]
        truth = _row(segment_map, listed)
        truths.append({**truth, "iscrowd": [False] * len(listed), "unlisted_counts": None})
    found = figures.results(_score(rows, truths, SCENE_CATEGORIES), SCENE_CATEGORIES)
    return {group: round(100 * found[group]["pq"], 2) for group in ("All", "Things", "Stuff")}


def at_size(segment_map: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The map by nearest neighbour at (height, width) `shape`."""
    if segment_map.shape == shape:
        return segment_map
    rows = (np.arange(shape[0]) + 0.5) * segment_map.shape[0] // shape[0]
    columns = (np.arange(shape[1]) + 0.5) * segment_map.shape[1] // shape[1]
    return segment_map[rows.astype(int)[:, None], columns.astype(int)]
