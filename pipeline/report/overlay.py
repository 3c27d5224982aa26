"""A segmentation that one can look at: the photo under translucent colours, contours and labels.

Pure: pixels and a `Panoptic` in, a PIL image out; the report, `inspect` and `view` share it. Every
category has its own colour and the things of one category are shades of it. Labels must be legible
on any photo, so they are white on a dark plate, sized by the picture, put into the middle of their
segment (the pixel farthest from its border), and left out where they would cover each other: a
segment without a label still has its contour.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from detr.categories import Categories
from detr.panoptic import Panoptic, Segment

Colors = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

OPACITY = 0.35  # of the colours: a photo's own stay recognisable under them
MIN_SIDE = 640  # the longer side of a picture is at least this: text on 128 pixels can't be read
_COARSE_SIDE = 256  # the map's longer side when looking for a segment's middle
_PLATE = (20, 20, 20, 190)
# Where text isn't plain Latin, the first of these that is installed; PIL's own font has no more.
_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf")


def draw_overlay(
    image: NDArray[np.uint8],
    panoptic: Panoptic,
    categories: Categories,
    *,
    opacity: float = OPACITY,
    labels: bool = True,
    min_side: int = MIN_SIDE,
    label_size: int | None = None,
    scores: bool = True,
) -> Image.Image:
    """The photo with its segments over it, as an RGB image.

    `image` is (H, W, 3) uint8 of the map's size; a small one is enlarged by a whole factor until
    its longer side is `min_side`. Void keeps the photo's own colours. `opacity` 0..1 is that of the
    colours; `label_size` in pixels, by default a 34th of the shorter side; `scores=False` leaves
    them out of the labels, as for ground truth. Raises ValueError if image and map differ in size.
    """
    if image.shape[:2] != panoptic.segment_map.shape:
        raise ValueError(
            f"the image is {image.shape[:2]}, its map {panoptic.segment_map.shape} (height, width)"
        )
    factor = max(1, -(-min_side // max(image.shape[:2])))
    segment_map = np.ascontiguousarray(panoptic.segment_map)
    if factor > 1:
        size = (image.shape[1] * factor, image.shape[0] * factor)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        segment_map = segment_map.repeat(factor, axis=0).repeat(factor, axis=1)
    colors = segment_colors(panoptic.segments, categories)
    painted = image.copy()
    _tint(painted, segment_map, colors, segment_map > 0, opacity)
    width = max(1, round(min(painted.shape[:2]) / 320))
    # A light line within a dark one shows on any photo.
    _tint(painted, segment_map, colors // 3, contours(segment_map, width + 1), 0.6)
    _tint(painted, segment_map, _lighten(colors), contours(segment_map, width), 0.9)
    picture = Image.fromarray(painted)
    if labels:
        found = labels_of(panoptic, categories, scores=scores)
        draw_labels(picture, found, label_size or max(11, round(min(picture.size) / 34)))
    return picture


def paint(panoptic: Panoptic, categories: Categories) -> Image.Image:
    """The map alone in flat colours, void black, at its own size."""
    colors = segment_colors(panoptic.segments, categories)
    return Image.fromarray(colors[np.ascontiguousarray(panoptic.segment_map)])


def segment_colors(segments: Sequence[Segment], categories: Categories) -> Colors:
    """(largest id + 1, 3) uint8: the colour of each segment id; row 0, void, is black.

    The first segment of a category has the category's colour; later ones are lighter, darker and
    slightly turned on the colour wheel, in an order that keeps neighbours in number apart.
    """
    colors = np.zeros((max((s.id for s in segments), default=0) + 1, 3), np.uint8)
    seen: dict[int, int] = {}
    for segment in segments:
        nth = seen.get(segment.category_id, 0)
        seen[segment.category_id] = nth + 1
        colors[segment.id] = _shade(categories.by_id(segment.category_id).color, nth)
    return colors


def contours(segment_map: NDArray[np.integer], width: int = 1) -> NDArray[np.bool_]:
    """(H, W): pixels within `width` of another segment; the picture's edge is no contour."""
    edge = np.zeros(segment_map.shape, bool)
    for shift in range(1, width + 1):
        down = segment_map[shift:] != segment_map[:-shift]
        right = segment_map[:, shift:] != segment_map[:, :-shift]
        edge[shift:] |= down
        edge[:-shift] |= down
        edge[:, shift:] |= right
        edge[:, :-shift] |= right
    return edge


def _shade(color: tuple[int, int, int], nth: int) -> tuple[int, int, int]:
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
    step = (0, 1, -1, 2, -2)[nth % 5]
    # Colours that are nearly black or white have no shades: bring them in first.
    lightness = min(max(lightness, 0.3), 0.7) + 0.12 * step
    hue += 0.02 * step + 0.015 * (nth // 5)
    red, green, blue = colorsys.hls_to_rgb(hue % 1.0, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def _lighten(colors: Colors) -> Colors:
    return (colors.astype(np.uint16) // 3 + 170).astype(np.uint8)


def _tint(
    picture: NDArray[np.uint8],
    segment_map: NDArray[np.integer],
    colors: Colors,
    where: NDArray[np.bool_],
    opacity: float,
) -> None:
    """Lay the segments' colours over the pixels `where`, in place, in steps of 1/256."""
    share = np.uint16(round(opacity * 256))
    above = colors.astype(np.uint16) * share + np.uint16(128)
    below = picture[where].astype(np.uint16) * (np.uint16(256) - share)
    picture[where] = (below + above[segment_map[where]]) >> 8


@dataclass(frozen=True)
class Label:
    """What is written into a segment. Lengths are parts of the picture's width and height."""

    name: str
    score: str  # such as 0.97; empty where there is none
    color: tuple[int, int, int]
    center: tuple[float, float]  # x, y
    room: float  # from the centre to the segment's border, of the longer side

    @property
    def text(self) -> str:
        return f"{self.name} {self.score}" if self.score else self.name


def draw_labels(picture: Image.Image, labels: Sequence[Label], size: int) -> None:
    """Write them into the picture, in letters of `size` pixels, the first ones first.

    A label that would cover another tries above and below, then goes.
    """
    draw = ImageDraw.Draw(picture, "RGBA")
    taken: list[tuple[float, float, float, float]] = []
    for label in labels:
        letters = font(size, label.text.isascii())
        left, top, right, bottom = draw.textbbox((0, 0), label.text, font=letters)
        bar, pad = size * 0.35, size * 0.25
        width, height = right - left + bar + 3 * pad, bottom - top + 2 * pad
        if label.room * max(picture.size) * 2 < height * 0.5:
            continue
        middle = (label.center[0] * picture.width, label.center[1] * picture.height)
        for shift in (0.0, -1.1, 1.1, -2.2, 2.2):
            x = min(max(middle[0] - width / 2, 0), max(picture.width - width, 0))
            y = middle[1] - height / 2 + shift * height
            y = min(max(y, 0), max(picture.height - height, 0))
            box = (x, y, x + width, y + height)
            if not any(_overlap(box, other) for other in taken):
                break
        else:
            continue
        taken.append(box)
        draw.rounded_rectangle(box, radius=pad, fill=_PLATE)
        draw.rectangle((x + pad, y + pad, x + pad + bar, y + height - pad), fill=label.color)
        origin = (x + 2 * pad + bar - left, y + pad - top)
        draw.text(origin, label.text, font=letters, fill=(255, 255, 255, 255))


def labels_of(panoptic: Panoptic, categories: Categories, *, scores: bool = True) -> list[Label]:
    """A label for each segment that shows, the largest first."""
    segment_map, segments = panoptic.segment_map, panoptic.segments
    colors = segment_colors(segments, categories)
    height, width = segment_map.shape
    step = max(1, max(segment_map.shape) // _COARSE_SIDE)
    coarse = segment_map[step // 2 :: step, step // 2 :: step]
    found = ndimage.find_objects(coarse)  # the bounding box of each id, None if it has no pixel
    labels: list[tuple[int, Label]] = []
    for segment in segments:
        window = found[segment.id - 1] if segment.id <= len(found) else None
        if window is None:
            continue
        inside = np.pad(coarse[window] == segment.id, 1)
        depth = ndimage.distance_transform_edt(inside)
        assert isinstance(depth, np.ndarray)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        x = (window[1].start + int(column) - 0.5) * step / width
        y = (window[0].start + int(row) - 0.5) * step / height
        category = categories.by_id(segment.category_id)
        red, green, blue = colors[segment.id].tolist()
        room = float(depth[row, column]) * step / max(height, width)
        score = f"{segment.score:.2f}" if scores else ""
        label = Label(_readable(category.name), score, (red, green, blue), (x, y), room)
        labels.append((int(inside.sum()), label))
    return [label for _, label in sorted(labels, key=lambda found: -found[0])]


def _readable(name: str) -> str:
    """COCO's stuff names carry their history: "floor-other-merged" is a floor to a reader."""
    return name.removesuffix("-merged").removesuffix("-other").removesuffix("-stuff")


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@lru_cache(maxsize=32)
def font(size: int, latin: bool) -> Font:
    """A font of `size` pixels, with letters beyond Latin where `latin` is False."""
    for name in () if latin else _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
