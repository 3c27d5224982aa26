"""The page of `panoptic inspect`: the stages of the model on one image, as a table and as pictures.

Style, script and rules are those of the report (`pipeline.report.page`): nothing is loaded, texts
are escaped, pictures are embedded and have an alt text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detr.categories import Categories
from detr.panoptic import Panoptic, Segment
from pipeline.report.inspect import Inspection, KeptQuery
from pipeline.report.overlay import paint
from pipeline.report.page import environment
from pipeline.report.pictures import Picture, overlay, picture, sampling

SIDE: Final = 480
# The colour scale of heat maps, from dark (low) over blue and orange to light, also in grey print.
_SCALE: Final = np.array(
    [(8, 8, 32), (38, 32, 110), (120, 40, 120), (205, 70, 70), (248, 150, 50), (252, 240, 170)],
    np.float64,
)


@dataclass(frozen=True)
class QueryPictures:
    """A kept query: category, score, and pictures of box, attention and mask head."""

    query: int
    name: str
    score: float
    box: Picture
    heads: tuple[Picture, ...]
    steps: tuple[Picture, ...]


def render_inspect(seen: Inspection, categories: Categories, *, photo: str, weights: str) -> bytes:
    """The page as UTF-8. photo, weights: their names."""
    template = environment().get_template("inspect.html.j2")
    page = template.render(
        seen=seen,
        photo=photo,
        weights=weights,
        image=picture("Photo", f"The photo {photo}", _small(seen.image)),
        features=[_heat(name, f"{name}: strength of its features", x) for name, x in seen.features],
        boxes=_all_boxes(seen, categories),
        queries=[_query(seen, query, categories) for query in seen.queries],
        quarter=_quarter(seen, categories),
        flat=picture("Panoptic map", "The panoptic map", _flat(seen.panoptic, categories)),
        overlay=_over_photo(seen, categories),
        dilated=_dilated(seen),
        part=_part_of_input(seen),
    )
    return page.encode()


def _over_photo(seen: Inspection, categories: Categories) -> Picture:
    rows, columns = sampling(*seen.panoptic.segment_map.shape)
    shown = Panoptic(seen.panoptic.segment_map[np.ix_(rows, columns)], seen.panoptic.segments)
    photo = seen.image[np.ix_(rows, columns)]
    return overlay("Panoptic map over the photo", photo, shown, categories)


def _dilated(seen: Inspection) -> bool:
    """Whether Res5 is as fine as Res4 (DC5)."""
    sizes = {name: features.shape for name, features in seen.features}
    return sizes["Res5"] == sizes["Res4"]


def _part_of_input(seen: Inspection) -> str:
    """The size of the mask logits as a part of the model's input, in words."""
    ratio = round(seen.processed_size[0] / seen.owner.shape[0])
    return {2: "half", 4: "a quarter", 8: "an eighth"}.get(ratio, f"1/{ratio}")


def _query(seen: Inspection, query: KeptQuery, categories: Categories) -> QueryPictures:
    name = categories.by_id(query.category_id).name
    photo = _small(seen.image)
    _draw_box(photo, query.box, categories.by_id(query.category_id).color)
    size = photo.size
    heads = [
        _heat(f"head {n}", f"Head {n} of query {query.query}", x, size)
        for n, x in enumerate(query.attention, 1)
    ]
    whole = query.attention.sum(0)
    steps = [_heat("all heads", f"Where query {query.query} looks", whole, size)]
    for step, x in query.steps:
        steps.append(_heat(step, f"{step}, mean over channels, query {query.query}", x, size))
    alt = f"Mask logits of query {query.query}, {name}"
    steps.append(_heat("mask logits", alt, query.logits, size))
    box = picture("box", f"Box of query {query.query}, {name} {query.score:.2f}", photo)
    return QueryPictures(query.query, name, query.score, box, tuple(heads), tuple(steps))


def _all_boxes(seen: Inspection, categories: Categories) -> Picture:
    photo = _small(seen.image)
    for x, y, width, height in seen.boxes.tolist():
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        _draw_box(photo, box, (190, 190, 190), thin=True)
    for query in seen.queries:
        _draw_box(photo, query.box, categories.by_id(query.category_id).color)
    alt = f"Boxes of all {len(seen.boxes)} queries in grey, of those that are followed in colour"
    return picture("Boxes", alt, photo)


def _draw_box(
    photo: Image.Image,
    box: tuple[float, float, float, float],
    color: tuple[int, int, int],
    *,
    thin: bool = False,
) -> None:
    sides = [side * scale for side, scale in zip(box, (*photo.size, *photo.size), strict=True)]
    left, top, right, bottom = (max(side, 0) for side in sides)
    corners = (left, top, max(right, left + 1), max(bottom, top + 1))
    draw = ImageDraw.Draw(photo)
    if not thin:
        draw.rectangle(corners, outline=(255, 255, 255), width=5)
    draw.rectangle(corners, outline=color, width=1 if thin else 3)


def _quarter(seen: Inspection, categories: Categories) -> Picture:
    """The map at the size of the mask logits, in the colours of the categories."""
    segments = tuple(
        Segment(position + 1, category, categories.by_id(category).isthing, 1.0)
        for position, category in enumerate(seen.owner_categories)
    )
    numbers = (seen.owner + 1 if segments else seen.owner * 0).astype(np.int32)
    height, width = numbers.shape
    image = paint(Panoptic(numbers, segments), categories)
    return picture(f"Map of the logits, {height} x {width}", "The map before it is enlarged", image)


def _flat(panoptic: Panoptic, categories: Categories) -> Image.Image:
    return _small(np.asarray(paint(panoptic, categories)), Image.Resampling.NEAREST)


def _small(
    image: NDArray[np.uint8], resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """Reduced to SIDE pixels on the longer side; a smaller image is enlarged by a whole factor."""
    full = Image.fromarray(image)
    scale = SIDE / max(full.size)
    if scale >= 1:
        factor = int(np.ceil(scale))
        return full.resize((full.width * factor, full.height * factor), resample)
    return full.resize(
        (max(1, round(full.width * scale)), max(1, round(full.height * scale))), resample
    )


def _heat(
    title: str, alt: str, values: NDArray[np.float32], size: tuple[int, int] | None = None
) -> Picture:
    """The heat map of (h, w) values, from dark (minimum) to light (maximum)."""
    low, high = float(values.min()), float(values.max())
    level = (values - low) / ((high - low) or 1.0) * (len(_SCALE) - 1)
    channels = [np.interp(level, np.arange(len(_SCALE)), _SCALE[:, k]) for k in range(3)]
    image = Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))
    if size is None:
        scale = SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return picture(title, alt, image.resize(size, Image.Resampling.NEAREST))
