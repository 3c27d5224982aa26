"""The answer for one image: a map of segment ids, and what each segment is. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Segment:
    """One segment of a `Panoptic`; `id` is its value in the map."""

    id: int
    category_id: int
    isthing: bool
    score: float  # the probability of the class, of the first query where stuff was merged


@dataclass(frozen=True)
class Panoptic:
    """An image cut into segments.

    `segment_map` is (H, W), uint8 below 256 segments and int32 above, 0 where nothing was found;
    ids are dense from 1, in query order. It is usually Fortran-ordered, the order in which COCO's
    run lengths go.
    """

    segment_map: NDArray[np.uint8] | NDArray[np.int32]
    segments: tuple[Segment, ...]
