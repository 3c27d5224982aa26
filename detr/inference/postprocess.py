"""From queries to one panoptic map: kept queries, the owner of each pixel, the final segments.

The rules are upstream's PostProcessPanoptic. A query is kept if its best class is not no-object and
has a probability above 0.85. A pixel belongs to the kept query with the largest mask logit. The map
is resized to the image's size by PIL's nearest neighbour. Segments of at most 4 pixels are dropped,
and the map is made again without their queries, until no segment is too small. Stuff of one class
is merged in the first map only: the first query gets all pixels of the class, the later queries
have none and are dropped, and later maps are not merged.

The computation differs, with the same ids: softmax over the queries is monotone, so the largest
logit decides; logits are interpolated only at the pixels that the nearest resize reads; after a
drop only the pixels of dropped queries get a new owner, since dropping a query changes no other
pixel. The interpolation does torch's arithmetic (each blend is one multiplication and one fused
multiply-add, x before y), so values are torch's to the bit on a CPU. Two deviations are visible:
ids start at 1, since 0 means no segment (in upstream, 0 is also the first id); and queries whose
class is no category of the label set are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detr.categories import Categories
from detr.panoptic import Panoptic, Segment
from detr.transfer import upload

SMALLEST_AREA = 4  # pixels of the final map; upstream drops segments up to and including this

# Bytes of interpolated logits that exist at a time: about a second-level cache on a CPU, enough
# work to fill a GPU; this also bounds the memory for a 12-megapixel map.
_CHUNK_BYTES = {"cpu": 2 << 20}
_CHUNK_BYTES_ELSEWHERE = 256 << 20
# Elements up to which torch uses one CPU thread: waking the others takes longer than such a step.
_GRAIN = 32_768


def choose(
    logits: Tensor, threshold: float, *, is_category: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the queries that become segments, by the logits (B, Q, C + 1); waits for no device.

    Returns three (B, Q) tensors: `scores`, the largest probability, no-object's among them;
    `labels`, its class (C is no-object); `keep`, True if that class isn't no-object and the score
    is above `threshold`. is_category: (C,) bool, False for classes that the label set lacks: these
    are not kept (upstream keeps them).
    """
    scores, labels = logits.float().softmax(-1).max(-1)
    no_object = logits.shape[-1] - 1
    keep = (labels != no_object) & (scores > threshold)
    if is_category is not None:
        known = torch.cat([is_category, is_category.new_zeros(1)]).to(logits.device)
        keep &= known[labels]
    return scores, labels, keep


def merge(
    mask_logits: Tensor,
    category_ids: Sequence[int],
    scores: Sequence[float],
    *,
    categories: Categories,
    processed_size: tuple[int, int],
    original_size: tuple[int, int],
) -> Panoptic:
    """The panoptic map of one image from its K kept queries.

    `mask_logits` is (K, h, w), any float type; `processed_size` (height, width) is the model
    input's, `original_size` (height, width) the map's. Raises KeyError for a category id that is
    not in `categories`. Source: upstream's PostProcessPanoptic.
    """
    assert len(mask_logits) == len(category_ids) == len(scores)
    isthing = [categories.by_id(category_id).isthing for category_id in category_ids]
    survivors = list(range(len(category_ids)))
    owner = None
    if survivors:
        sampled = SampledLogits(mask_logits, processed_size, original_size)
        owner = sampled.owners()  # (W, H)
        # Only the areas need the first map's merge of stuff: a class's later queries have area 0,
        # so they are always dropped, and later maps are not merged.
        areas = [0] * len(survivors)
        heirs = heirs_of(category_ids, isthing)
        for heir, area in zip(heirs, _areas(owner, len(survivors)), strict=True):
            areas[heir] += area
        while small := [query for query in survivors if areas[query] <= SMALLEST_AREA]:
            survivors = [query for query in survivors if areas[query] > SMALLEST_AREA]
            if not survivors:
                break
            sampled.reassign(owner, small, survivors)
            areas = _areas(owner, len(category_ids))

    if owner is None or not survivors:
        height, width = original_size
        return Panoptic(np.zeros((width, height), np.uint8).T, ())
    segments = tuple(
        Segment(number, category_ids[query], isthing[query], float(scores[query]))
        for number, query in enumerate(survivors, start=1)
    )
    number_of = torch.zeros(len(category_ids), dtype=owner.dtype)
    number_of[survivors] = torch.arange(1, len(survivors) + 1, dtype=owner.dtype)
    numbers = number_of.to(owner.device)[owner.long()]  # (W, H)
    return Panoptic(numbers.cpu().numpy().T, segments)


class SampledLogits:
    """The mask logits of one image at the pixels of the final map, interpolated on demand.

    Layout (w, h, K), queries innermost: a gather copies contiguous runs of K values, an argmax goes
    over such a run, and owners are computed column by column, the order of COCO's run lengths.
    """

    def __init__(
        self, mask_logits: Tensor, processed_size: tuple[int, int], original_size: tuple[int, int]
    ) -> None:
        height, width = mask_logits.shape[-2:]
        device = mask_logits.device
        logits = mask_logits.float().permute(2, 1, 0).contiguous()  # (w, h, K)
        x = _taps(width, processed_size[1], original_size[1], device)
        self._y = _taps(height, processed_size[0], original_size[0], device)
        self._columns = _blend(logits, 0, x)  # (W, h, K)
        self._size = (original_size[1], original_size[0])
        self._chunk_bytes = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE)

    def owners(self) -> Tensor:
        """(W, H) uint8 or int32: the query with the largest logit; of equal logits, the lowest.

        In this pass over all pixels the rows of the map are innermost, so that interpolation and
        comparison go over whole vectors: twice as fast on a CPU as an argmax over few queries.
        """
        height = self._size[1]
        rows = self._columns.permute(1, 2, 0).contiguous()  # (h, K, W)
        _, queries, width = rows.shape
        dtype = torch.uint8 if queries < 256 else torch.int32
        owner = torch.zeros((height, width), dtype=dtype, device=rows.device)
        step = self._chunk_bytes // (4 * width * queries)
        step = max(1, min(step, _GRAIN // width) if rows.device.type == "cpu" else step)
        for start in range(0, height, step):
            logits = _blend(rows, 0, self._y.part(start, start + step))  # (step, K, W)
            best, winner = logits[:, 0], owner[start : start + step]
            for query in range(1, queries):
                winner.masked_fill_(logits[:, query] > best, query)
                best = torch.maximum(best, logits[:, query])
        return owner.T.contiguous()

    def reassign(self, owner: Tensor, gone: Sequence[int], survivors: Sequence[int]) -> None:
        """Give the pixels of the queries `gone` in `owner` to the best of `survivors`, in place."""
        device = owner.device
        is_gone = torch.zeros(self._columns.shape[-1], dtype=torch.bool)
        is_gone[list(gone)] = True
        left = torch.tensor(survivors)
        pixels = is_gone.to(device)[owner.long()].flatten().nonzero().squeeze(1)  # (P,)
        # (W * h, K'): rows of one column of the map follow each other
        rows = self._columns[..., left.to(device)].flatten(0, 1)
        height, map_height = self._size[1], self._columns.shape[1]
        flat = owner.view(-1)
        step = max(1, self._chunk_bytes // (4 * len(survivors)))
        winner_of = left.to(device=device, dtype=owner.dtype)
        for chunk in torch.split(pixels, step):
            column, y = chunk // height * map_height, chunk % height
            near, far = column + self._y.near[y], column + self._y.far[y]
            logits = torch.addcmul(
                rows[far] * self._y.far_weight[y, None], rows[near], self._y.near_weight[y, None]
            )
            flat[chunk] = winner_of[logits.argmax(-1)]


class _Taps(NamedTuple):
    """For n pixels of the final map on one axis: two cells of the mask logits, with weights."""

    near: Tensor  # (n,) int64: the cell before the pixel
    far: Tensor  # (n,) int64: the cell after the pixel
    near_weight: Tensor  # (n,) float32
    far_weight: Tensor  # (n,) float32, 1 - near_weight

    def part(self, start: int, end: int) -> _Taps:
        return _Taps(*(tap[start:end] for tap in self))


@lru_cache(maxsize=1024)
def _taps(cells: int, processed: int, final: int, device: torch.device) -> _Taps:
    """torch's bilinear (align_corners False, float32) from `cells` to `processed`, at the pixels
    that PIL's nearest reads for `final`."""
    sampled = torch.from_numpy(_nearest(processed, final))
    scale = torch.tensor(cells / processed, dtype=torch.float32)
    position = (scale * (sampled.float() + 0.5) - 0.5).clamp(min=0)
    near = position.long().clamp(max=cells - 1)
    far_weight = position - near
    taps = (near, (near + 1).clamp(max=cells - 1), 1 - far_weight, far_weight)
    return _Taps(*(upload(tap, device) for tap in taps))


def _nearest(source: int, target: int) -> NDArray[np.int64]:
    """(target,): for each pixel, the source pixel that PIL's NEAREST takes, computed by PIL.

    torch's nearest-exact differs from PIL's in 88 of 720 size pairs.
    """
    ramp = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    return np.array(ramp.resize((target, 1), Image.Resampling.NEAREST), dtype=np.int64)[0]


def _blend(values: Tensor, axis: int, taps: _Taps) -> Tensor:
    """Interpolate along `axis` (0 or 1) of a (n0, n1, K) tensor."""
    shape = (-1, 1, 1) if axis == 0 else (-1, 1)
    far = torch.index_select(values, axis, taps.far).mul_(taps.far_weight.view(shape))
    near = torch.index_select(values, axis, taps.near)
    return far.addcmul_(near, taps.near_weight.view(shape))


def _areas(owner: Tensor, queries: int) -> list[int]:
    """Pixels of each query in the map; waits for the device."""
    return torch.bincount(owner.flatten(), minlength=queries).tolist()


def heirs_of(category_ids: Sequence[int], isthing: Sequence[bool]) -> list[int]:
    """For each query of an image, the query that gets its pixels in the first map.

    That is the first query of the same category for stuff, the query itself for things.
    """
    first: dict[int, int] = {}
    return [
        query if thing else first.setdefault(category_id, query)
        for query, (category_id, thing) in enumerate(zip(category_ids, isthing, strict=True))
    ]
