"""The merge of postprocess.py on the GPU: a whole batch in two rounds, without waiting for the GPU.

The areas of segments are known on the device only; a copy to the host between rounds would leave
the device idle. So two maps are always made: the first of all queries; the second of the queries
whose area in the first map, with stuff merged, is above the smallest area. A third map is needed
only where the heir of a stuff class (the first query of the class, which gets the pixels of the
others in the first map) is too small by itself. `finish_rounds` returns None in that case, and the
caller uses `postprocess.merge` on the same logits.

The number of kernels doesn't grow with the batch: the pixels of all maps lie in one list, column by
column and image after image, and queries are padded to the largest number that an image has. The
arithmetic of each pixel is that of postprocess.py, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detr.inference.postprocess import SMALLEST_AREA, _taps
from detr.panoptic import Panoptic, Segment
from detr.transfer import upload

# Bytes of interpolated logits that exist at a time: 32 photos of 640 x 480 with 25 queries each.
_CHUNK_BYTES: Final = 1 << 30
_NOBODY: Final = -1e30  # logit of a padding query; finite, since logits are interpolated


class Merged(NamedTuple):
    """The second maps of B images with at most K queries each, on the device."""

    numbers: Tensor  # (pixels of all maps,) uint8 or int32: segment numbers, 0 where there is none
    alive: Tensor  # (B, K) bool: the queries of the second map
    areas: Tensor  # (B, K) int64: pixels of each query in the second map


class _Grid(NamedTuple):
    """Where the pixels of all maps lie between the cells of the mask logits."""

    near_x: Tensor  # (columns of all maps,) int64, of (B * w) columns of cells
    far_x: Tensor
    near_x_weight: Tensor  # (columns,) float32
    far_x_weight: Tensor
    image: Tensor  # (columns,) int64
    height: Tensor  # (columns,) int64: pixels of the column
    row: Tensor  # (columns,) int64: add to a pixel's index to get its index in near_y and far_y
    near_y: Tensor  # (rows of all maps,) int64
    far_y: Tensor
    near_y_weight: Tensor  # (rows,) float32
    far_y_weight: Tensor
    pixels: int


@lru_cache(maxsize=64)
def _grid(
    cells: tuple[int, int],
    sizes: tuple[tuple[tuple[int, int], tuple[int, int]], ...],
    device: torch.device,
) -> _Grid:
    """`cells` (height, width) of the mask logits; `sizes` (processed, map) of each image."""
    cpu = torch.device("cpu")
    columns: list[list[Tensor]] = []
    rows = []
    pixels = first_row = 0
    for image, (processed, final) in enumerate(sizes):
        x = _taps(cells[1], processed[1], final[1], cpu)
        y = _taps(cells[0], processed[0], final[0], cpu)
        height, width = final
        start = pixels + height * torch.arange(width)
        columns.append(
            [
                x.near + image * cells[1],
                x.far + image * cells[1],
                x.near_weight,
                x.far_weight,
                torch.full((width,), image),
                torch.full((width,), height),
                first_row - start,
            ]
        )
        rows.append(list(y))
        pixels += height * width
        first_row += height
    parts = [torch.cat(part) for part in (*zip(*columns, strict=True), *zip(*rows, strict=True))]
    return _Grid(*[upload(part, device) for part in parts], pixels=pixels)


def merge_in_rounds(
    mask_logits: Tensor,
    slots: Tensor,
    heirs: Tensor,
    *,
    sizes: Sequence[tuple[tuple[int, int], tuple[int, int]]],
) -> Merged:
    """The maps of the B images of a batch; does not wait for the device.

    A slot is image * K + the query's index within the image; K is the largest number of kept
    queries of an image. mask_logits (N, h, w): all kept queries, N > 0. slots (N,) int64: the slot
    of each query. heirs (B * K,) int64: for each slot, the slot that gets its pixels in the first
    map. sizes: the processed and the map's (height, width) of each image.
    """
    pixels = _Pixels(mask_logits, slots, sizes, len(heirs) // len(sizes))
    strips = list(pixels.strips()) if pixels.is_one_strip else None
    areas = torch.zeros_like(heirs)
    for strip in strips or pixels.strips():
        strip.add_areas(strip.owners(None), areas)
    # The merge of stuff shows in the areas of the first map alone (see postprocess.py).
    areas = torch.zeros_like(areas).index_add_(0, heirs, areas)
    exists = torch.zeros_like(heirs, dtype=torch.bool).index_fill_(0, slots, True)
    alive = exists.logical_and_(areas > SMALLEST_AREA).view(len(sizes), -1)  # (B, K)
    number_of = (alive.cumsum(1) * alive).flatten()
    number_of = number_of.to(torch.uint8 if alive.shape[1] < 256 else torch.int32)
    areas = torch.zeros_like(heirs)
    numbers = number_of.new_empty(pixels.count)
    for strip in strips or pixels.strips():
        owners = strip.owners(alive)
        strip.add_areas(owners, areas)
        torch.index_select(number_of, 0, owners, out=numbers[strip.part])
    return Merged(numbers, alive, areas.view_as(alive))


class _Strip(NamedTuple):
    """P pixels of the list, each with the logits of its image's K queries."""

    part: slice
    image: Tensor  # (P,) int64
    logits: Tensor  # (P, K) float32

    def owners(self, alive: Tensor | None) -> Tensor:
        """(P,) int64: the slot with the largest logit; of equal logits, the lowest slot.

        `alive` (B, K) bool limits the choice, and overwrites the logits of the other queries.
        """
        if alive is not None:
            self.logits.masked_fill_(~alive[self.image], float("-inf"))
        return self.logits.argmax(-1).add_(self.image, alpha=self.logits.shape[-1])

    def add_areas(self, owners: Tensor, areas: Tensor) -> None:
        """Add the pixels of each slot to `areas` (B * K,) int64."""
        areas.scatter_add_(0, owners, owners.new_ones(()).expand(len(owners)))


class _Pixels:
    """The pixels of all maps of a batch in one list."""

    def __init__(
        self,
        mask_logits: Tensor,
        slots: Tensor,
        sizes: Sequence[tuple[tuple[int, int], tuple[int, int]]],
        queries: int,
    ) -> None:
        height, width = (int(side) for side in mask_logits.shape[-2:])
        self._grid = grid = _grid((height, width), tuple(sizes), mask_logits.device)
        self.count = grid.pixels
        padded = mask_logits.new_full(
            (len(sizes) * queries, height, width), _NOBODY, dtype=torch.float32
        )
        padded[slots] = mask_logits.float()
        cells = padded.view(-1, queries, height, width).permute(0, 3, 2, 1).flatten(0, 1)
        far = cells[grid.far_x].mul_(grid.far_x_weight[:, None, None])  # (columns, h, K)
        columns = far.addcmul_(cells[grid.near_x], grid.near_x_weight[:, None, None])
        self._cells, self._height = columns.flatten(0, 1), height  # (columns * h, K)
        self._step = max(1, _CHUNK_BYTES // (4 * queries))
        self._column = torch.repeat_interleave(grid.height, output_size=grid.pixels)

    @property
    def is_one_strip(self) -> bool:
        return self.count <= self._step

    def strips(self) -> Iterator[_Strip]:
        grid = self._grid
        for start in range(0, self.count, self._step):
            part = slice(start, min(start + self._step, self.count))
            column = self._column[part]
            row = torch.arange(part.start, part.stop, device=column.device) + grid.row[column]
            column_start = column * self._height
            far = self._cells[grid.far_y[row].add_(column_start)]  # (P, K)
            far.mul_(grid.far_y_weight[row][:, None])
            near = self._cells[grid.near_y[row].add_(column_start)]
            logits = far.addcmul_(near, grid.near_y_weight[row][:, None])
            yield _Strip(part, grid.image[column], logits)


def finish_rounds(
    numbers: Tensor,
    alive: Sequence[bool],
    areas: Sequence[int],
    *,
    map_size: tuple[int, int],
    category_ids: Sequence[int],
    isthing: Sequence[bool],
    scores: Sequence[float],
) -> Panoptic | None:
    """The result of one image from its part of `Merged`; None if a third map is needed.

    numbers (H * W,), column by column; map_size (H, W); one of `alive` and `areas` for each query.
    """
    survivors = [query for query, stays in enumerate(alive) if stays]
    if any(areas[query] <= SMALLEST_AREA for query in survivors):
        return None
    segments = tuple(
        Segment(number, category_ids[query], isthing[query], float(scores[query]))
        for number, query in enumerate(survivors, start=1)
    )
    columns = numbers.numpy().reshape(map_size[1], map_size[0])
    few = not survivors or len(category_ids) < 256
    if columns.itemsize > 1 and few:
        columns = columns.astype(np.uint8)
    return Panoptic(columns.T, segments)
