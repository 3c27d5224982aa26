"""The merge of postprocess.py in a fixed number of rounds, so that no round waits for the host.

Which segments are too small is only known on the device; asking for it between rounds would let the
device idle while the answer travels, once or more per image. So three maps are always made, each
over the queries that the one before left: of all queries, of those above the smallest area, and of
those still above it. The host reads the last map, its areas and its survivors together, later. In
the rare case that the third map still holds a segment that is too small, the caller lets the host
drive (`merge`), from the same logits: the answer is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detr.inference.postprocess import SMALLEST_AREA, SampledLogits
from detr.panoptic import Panoptic, Segment

ROUNDS = 3


class Rounds(NamedTuple):
    """What the device knows after the last round."""

    owner: Tensor  # (W, H) uint8 or int32: the query of each pixel
    alive: Tensor  # (K,) bool: which queries the last map was made of
    areas: Tensor  # (K,) int64: their pixels in it


def merge_in_rounds(
    mask_logits: Tensor,
    heirs: Tensor,
    *,
    processed_size: tuple[int, int],
    map_size: tuple[int, int],
) -> Rounds:
    """The maps of one image from its K > 0 kept queries; nothing here waits for the device.

    mask_logits (K, h, w); heirs (K,) int64 on its device, from `heirs_of`; sizes (height, width).
    """
    sampled = SampledLogits(mask_logits, processed_size, map_size)
    alive = torch.ones(len(heirs), dtype=torch.bool, device=mask_logits.device)
    owner, areas = sampled.owners_among(alive)
    # The merge of stuff shows in the areas of the first map alone (see postprocess.py).
    areas = torch.zeros_like(areas).index_add_(0, heirs, areas)
    for _ in range(ROUNDS - 1):
        alive = alive & (areas > SMALLEST_AREA)
        owner, areas = sampled.owners_among(alive)
    return Rounds(owner, alive, areas)


def heirs_of(category_ids: Sequence[int], isthing: Sequence[bool]) -> list[int]:
    """For each query the one that gets its pixels in the first map: the first of its stuff."""
    first: dict[int, int] = {}
    return [
        query if thing else first.setdefault(category_id, query)
        for query, (category_id, thing) in enumerate(zip(category_ids, isthing, strict=True))
    ]


def finish(
    owner: Tensor,
    alive: Sequence[bool],
    areas: Sequence[int],
    *,
    category_ids: Sequence[int],
    isthing: Sequence[bool],
    scores: Sequence[float],
) -> Panoptic | None:
    """The answer from what came back of `merge_in_rounds`; None if it needs another round."""
    survivors = [query for query, stays in enumerate(alive) if stays]
    if any(areas[query] <= SMALLEST_AREA for query in survivors):
        return None
    if not survivors:
        return Panoptic(np.zeros(tuple(owner.shape), np.uint8).T, ())
    number_of = np.zeros(len(alive), np.int32)
    number_of[survivors] = np.arange(1, len(survivors) + 1)
    few = len(alive) < 256
    numbers = (number_of.astype(np.uint8) if few else number_of)[owner.numpy()]
    segments = tuple(
        Segment(number, category_ids[query], isthing[query], float(scores[query]))
        for number, query in enumerate(survivors, start=1)
    )
    return Panoptic(numbers.T, segments)
