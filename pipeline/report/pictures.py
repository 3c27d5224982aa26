"""The pictures of a report, drawn at the size at which they are shown: photo, segments, difference.

A picture's longer side is 480 pixels, whatever the photo's: the map is sampled, so that drawing 12
megapixels costs what drawing a thumbnail does. Labels are no part of it: the page writes them over
it, so that they are legible at whatever size it is shown. WebP, because it takes half
of JPEG's bytes for flat colours.
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
    """An embedded picture: what it shows, in words for those who can't see it, and its bytes."""

    title: str
    alt: str
    data: bytes
    size: tuple[int, int]  # width, height
    labels: tuple[Label, ...] = ()  # which the page writes over it, in letters of its own size

    @property
    def uri(self) -> str:
        return "data:image/webp;base64," + base64.b64encode(self.data).decode()


Sampling = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows and columns that are shown


def sampling(height: int, width: int) -> Sampling:
    """Which pixels of a (height, width) map a picture of at most SIDE shows."""
    scale = min(1.0, SIDE / max(height, width))
    sides = [max(1, round(side * scale)) for side in (height, width)]
    rows, columns = (
        ((np.arange(shown) + 0.5) * side / shown).astype(np.int64)
        for shown, side in zip(sides, (height, width), strict=True)
    )
    return rows, columns


def drawn(row: Mapping[str, Any], at: Sampling, categories: Categories) -> Panoptic:
    """The segments of a row of a shard or of the truth as they are shown, numbered from 1 by their
    place in it."""
    here = [place for place, area in enumerate(row["area"]) if area]  # truth may lack pixels
    segment_map = rle.decode(
        [row["counts"][place] for place in here],
        row["height"],
        row["width"],
        [place + 1 for place in here],
    )
    scores = row.get("score") or [1.0] * len(row["area"])
    segments = tuple(
        Segment(
            place + 1,
            row["category_id"][place],
            categories.by_id(row["category_id"][place]).isthing,
            scores[place],
        )
        for place in here
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
    """The photo, (h, w, 3) uint8, with these segments over it."""
    counts = Counter(categories.by_id(segment.category_id).name for segment in panoptic.segments)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    painted = draw_overlay(photo, panoptic, categories, min_side=SIDE, labels=False)
    labels = tuple(labels_of(panoptic, categories, scores=scores))
    return replace(picture(title, f"{title}: {listed or 'no segments'}", painted), labels=labels)


def difference(
    photo: NDArray[np.uint8], own: Panoptic, true: Panoptic, matches: Sequence[tuple[int, int]]
) -> Picture:
    """What is wrong with `own`, and the shares in words; matches: ids of own and true."""
    kinds = compare_maps(
        own.segment_map, true.segment_map, _category_of(own), _category_of(true), matches
    )
    return _difference("Difference", photo, kinds, true.segment_map, KINDS)


def changed(
    photo: NDArray[np.uint8], before: Panoptic, now: Panoptic, true: Panoptic | None
) -> Picture:
    """Where `now` has another category than `before`, and which of them the truth has."""
    given = [own for own in (before, now, true) if own is not None]
    maps = [np.array(_category_of(own))[own.segment_map] for own in given]
    kinds = compare_changes(*maps)
    return _difference("Difference, before to now", photo, kinds, now.segment_map, CHANGES)


def _difference(
    title: str,
    photo: NDArray[np.uint8],
    places: NDArray[np.uint8],
    outlined: NDArray[np.integer],
    kinds: Sequence[Kind],
) -> Picture:
    """places: (h, w) of `kinds`; outlined: the map whose contours are drawn."""
    judged = np.count_nonzero(places != kinds.index(VOID)) or 1
    shares = {
        kind.name: np.count_nonzero(places == place) / judged
        for place, kind in enumerate(kinds)
        if kind is not VOID
    }
    listed = ", ".join(f"{100 * share:.0f} % {name}" for name, share in shares.items())
    factor = max(1, -(-SIDE // max(places.shape)))
    larger = np.ones((factor, factor), np.uint8)
    painted = draw_difference(
        np.kron(photo, larger[..., None]),
        np.kron(places, larger),
        np.kron(outlined, larger),
        kinds,
    )
    return picture(title, f"{title}, pixels: {listed}", painted)


def _category_of(panoptic: Panoptic) -> list[int]:
    """The category of each id, from 0."""
    by_id = {segment.id: segment.category_id for segment in panoptic.segments}
    return [by_id.get(number, -1) for number in range(max(by_id, default=0) + 1)]


def picture(title: str, alt: str, image: Image.Image) -> Picture:
    """An image of any size, enlarged by a whole factor if it is smaller than SIDE."""
    if max(image.size) < SIDE:
        factor = -(-SIDE // max(image.size))
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.BICUBIC
        )
    data = io.BytesIO()
    image.save(data, "WEBP", quality=QUALITY)
    return Picture(title, alt, data.getvalue(), image.size)
