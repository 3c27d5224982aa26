"""The pictures of a report as WebP: photo, segments, difference from the truth.

The longer side of a picture is 480 pixels for photos of any size: the map is sampled, so a photo of
12 megapixels costs no more than a small one. The page writes the labels over the picture, so that
they are legible at any size. For flat colours WebP takes half of JPEG's bytes.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detr.categories import Categories
from detr.panoptic import Panoptic, Segment
from pipeline.panoptic import rle
from pipeline.report.difference import (
    CHANGES,
    KINDS,
    VOID,
    Kind,
    compare_changes,
    compare_maps,
    draw_difference,
)
from pipeline.report.overlay import Label, draw_overlay, labels_of

SIDE: Final = 480  # pixels of the longer side of a picture
QUALITY: Final = 80  # of WebP


@dataclass(frozen=True)
class Picture:
    """An embedded picture."""

    title: str
    alt: str  # for readers who can't see the picture
    data: bytes  # WebP
    size: tuple[int, int]  # width, height
    labels: tuple[Label, ...] = ()  # the page writes them over the picture

    @property
    def uri(self) -> str:
        return "data:image/webp;base64," + base64.b64encode(self.data).decode()


Sampling = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows and columns that are shown


def sampling(height: int, width: int) -> Sampling:
    """The rows and columns of a (height, width) map that a picture of at most SIDE pixels shows."""
    scale = min(1.0, SIDE / max(height, width))
    sides = [max(1, round(side * scale)) for side in (height, width)]
    rows, columns = (
        ((np.arange(shown) + 0.5) * side / shown).astype(np.int64)
        for shown, side in zip(sides, (height, width), strict=True)
    )
    return rows, columns


def drawn(row: Mapping[str, Any], at: Sampling, categories: Categories) -> Panoptic:
    """The sampled map of a row of a shard or of the truth; ids are positions in the row + 1."""
    positions = [index for index, area in enumerate(row["area"]) if area]  # truth may lack pixels
    segment_map = rle.decode(
        [row["counts"][index] for index in positions],
        row["height"],
        row["width"],
        [index + 1 for index in positions],
    )
    scores = row.get("score") or [1.0] * len(row["area"])
    segments = tuple(
        Segment(
            index + 1,
            row["category_id"][index],
            categories.by_id(row["category_id"][index]).isthing,
            scores[index],
        )
        for index in positions
    )
    return Panoptic(segment_map[np.ix_(*at)], segments)


def overlay(
    title: str,
    photo: NDArray[np.uint8],
    panoptic: Panoptic,
    categories: Categories,
    *,
    scores: bool = True,
) -> Picture:
    """The picture of a photo, (h, w, 3) uint8, with segments over it."""
    counts = Counter(categories.by_id(segment.category_id).name for segment in panoptic.segments)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    painted = draw_overlay(photo, panoptic, categories, min_side=SIDE, labels=False)
    labels = tuple(labels_of(panoptic, categories, scores=scores))
    return replace(picture(title, f"{title}: {listed or 'no segments'}", painted), labels=labels)


def difference(
    photo: NDArray[np.uint8], own: Panoptic, true: Panoptic, matches: Sequence[tuple[int, int]]
) -> Picture:
    """The picture of the errors of the prediction `own` against the truth, with shares in `alt`.

    photo: (h, w, 3) uint8. matches: (id in own, id in true) of the true positives.
    """
    kinds = compare_maps(
        own.segment_map, true.segment_map, _category_of(own), _category_of(true), matches
    )
    return _difference("Difference", photo, kinds, true.segment_map, KINDS)


def changed(
    photo: NDArray[np.uint8], before: Panoptic, now: Panoptic, true: Panoptic | None
) -> Picture:
    """The picture of the pixels whose category changed, and, with a truth, to right or to wrong."""
    panoptics = [panoptic for panoptic in (before, now, true) if panoptic is not None]
    maps = [np.array(_category_of(panoptic))[panoptic.segment_map] for panoptic in panoptics]
    kinds = compare_changes(*maps)
    return _difference("Difference, before to now", photo, kinds, now.segment_map, CHANGES)


def _difference(
    title: str,
    photo: NDArray[np.uint8],
    kind_map: NDArray[np.uint8],
    outlined: NDArray[np.integer],
    kinds: Sequence[Kind],
) -> Picture:
    """kind_map: (h, w) indices into `kinds`; outlined: the map whose contours are drawn."""
    judged = np.count_nonzero(kind_map != kinds.index(VOID)) or 1
    shares = {
        kind.name: np.count_nonzero(kind_map == index) / judged
        for index, kind in enumerate(kinds)
        if kind is not VOID
    }
    listed = ", ".join(f"{100 * share:.0f} % {name}" for name, share in shares.items())
    factor = max(1, -(-SIDE // max(kind_map.shape)))
    larger = np.ones((factor, factor), np.uint8)
    painted = draw_difference(
        np.kron(photo, larger[..., None]),
        np.kron(kind_map, larger),
        np.kron(outlined, larger),
        kinds,
    )
    return picture(title, f"{title}, pixels: {listed}", painted)


def _category_of(panoptic: Panoptic) -> list[int]:
    """The category of each id from 0 up, -1 where there is no segment."""
    by_id = {segment.id: segment.category_id for segment in panoptic.segments}
    return [by_id.get(number, -1) for number in range(max(by_id, default=0) + 1)]


def picture(title: str, alt: str, image: Image.Image) -> Picture:
    """An image as WebP, enlarged by a whole factor if its longer side is below SIDE."""
    if max(image.size) < SIDE:
        factor = -(-SIDE // max(image.size))
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.BICUBIC
        )
    data = io.BytesIO()
    image.save(data, "WEBP", quality=QUALITY)
    return Picture(title, alt, data.getvalue(), image.size)
