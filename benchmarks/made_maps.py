"""Made panoptic maps like COCO's: 11 segments, 3,000 to 4,000 runs at 640 x 480, some void.

Not a benchmark: what benchmarks/rle.py, pq.py and evaluate.py measure on. A truth is the largest of
11 smooth random fields with a fine grain on their borders; a prediction is the same fields moved a
little, so that most segments match and some don't.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detr.categories import COCO_PANOPTIC

SEGMENTS = 11
SIZES = {"640x480": (480, 640), "2048x1365": (1365, 2048)}  # name: (height, width)
GRAIN = 0.01
SHIFT = 0.25


def made_pair(seed: int, size: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(truth, prediction): (H, W) uint8 maps with ids 1..11 and void 0."""
    height, width = SIZES[size]
    rng = np.random.default_rng(seed)
    fields = _fields(rng, SEGMENTS + 1, height, width, cells=4)
    fields[0] -= 0.9  # void is rare
    grain = _fields(rng, SEGMENTS + 1, height, width, cells=80) * GRAIN
    moved = fields + SHIFT * _fields(rng, SEGMENTS + 1, height, width, cells=6)
    return (
        (fields + grain).argmax(axis=0).astype(np.uint8),
        (moved + grain[:, ::-1]).argmax(axis=0).astype(np.uint8),
    )


def _fields(
    rng: np.random.Generator, count: int, height: int, width: int, *, cells: int
) -> NDArray[np.float32]:
    """(count, H, W) smooth noise with this many cells over the height."""
    shape = (count, cells, max(1, cells * width // height))
    coarse = rng.normal(size=shape).astype(np.float32)
    return np.stack(
        [
            np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC))
            for c in coarse
        ]
    )


def made_segments(seed: int, segment_map: NDArray[np.uint8]) -> list[dict[str, int]]:
    """The segments of a map with COCO's categories; a seed gives an id the same category."""
    rng = np.random.default_rng(seed)
    categories = rng.choice(COCO_PANOPTIC.ids, size=SEGMENTS + 1, replace=False)
    ids = [int(i) for i in np.unique(segment_map) if i]
    return [{"id": i, "category_id": int(categories[i])} for i in ids]
