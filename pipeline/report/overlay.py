"""The overlay: a photo and its panoptic map in, the photo with colours, contours and labels out.

The report, `inspect` and `view` use it. Each category has a colour, and its things have shades of
that colour. Labels are white on a dark plate, legible on any photo. A label stands in the middle of
its segment (the pixel farthest from the border) and is left out where it would cover another.
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

OPACITY = 0.35  # of the colours; low, so that the photo can be recognised
MIN_SIDE = 640  # pixels of the longer side of a picture, at least, for legible text
_COARSE_SIDE = 256  # longer side of the reduced map in which the middle of a segment is searched
_PLATE = (20, 20, 20, 190)
# For text beyond ASCII, which PIL's own font lacks: the first of these that is installed is used.
_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf")


def draw_overlay(
    image: NDArray[np.uint8],
    panoptic: Panoptic,
    categories: Categories,
    *,
    opacity: float = OPACITY,
    labels: bool = True,
    min_side: int = MIN_SIDE,
) -> Image.Image:
    """The photo with its segments over it, as an RGB image.

    image: (H, W, 3) uint8 of the map's size. min_side: smaller images are enlarged by a whole
    factor until their longer side has at least so many pixels. opacity: of the colours, 0 to 1.
    Raises ValueError if image and map differ in size.
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
        texts = labels_of(panoptic, categories)
        draw_labels(picture, texts, max(11, round(min(picture.size) / 34)))
    return picture


def paint(panoptic: Panoptic, categories: Categories) -> Image.Image:
    """The panoptic map in flat colours, void in black, at the size of the map."""
    colors = segment_colors(panoptic.segments, categories)
    return Image.fromarray(colors[np.ascontiguousarray(panoptic.segment_map)])


def segment_colors(segments: Sequence[Segment], categories: Categories) -> Colors:
    """The colour of each segment id, (largest id + 1, 3) uint8; row 0, void, is black.

    The first segment of a category has about the colour of the category; later segments are
    lighter or darker and of slightly different hue, so that successive ones differ well.
    """
    colors = np.zeros((max((s.id for s in segments), default=0) + 1, 3), np.uint8)
    seen: dict[int, int] = {}
    for segment in segments:
        nth = seen.get(segment.category_id, 0)
        seen[segment.category_id] = nth + 1
        colors[segment.id] = _shade(categories.by_id(segment.category_id).color, nth)
    return colors


def contours(segment_map: NDArray[np.integer], width: int = 1) -> NDArray[np.bool_]:
    """The pixels within `width` rows or columns of another segment, (H, W) bool."""
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
    # Nearly black or white colours have no lighter or darker shades: move them inwards first.
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
    """Blend the segments' colours into the pixels `where`, in place, in steps of 1/256."""
    share = np.uint16(round(opacity * 256))
    above = colors.astype(np.uint16) * share + np.uint16(128)
    below = picture[where].astype(np.uint16) * (np.uint16(256) - share)
    picture[where] = (below + above[segment_map[where]]) >> 8


@dataclass(frozen=True)
class Label:
    """The label of a segment. Lengths are in parts of the picture's sides."""

    name: str
    score: str  # such as 0.97; empty where there is none
    color: tuple[int, int, int]
    center: tuple[float, float]  # x of the width, y of the height
    room: float  # distance from the centre to the segment's border, of the longer side

    @property
    def text(self) -> str:
        return f"{self.name} {self.score}" if self.score else self.name


def draw_labels(picture: Image.Image, labels: Sequence[Label], size: int) -> None:
    """Write labels into the picture, in letters of `size` pixels.

    A label that would cover an earlier one is moved up or down, and left out if that does not help.
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
    """A label for each visible segment, the largest first."""
    segment_map, segments = panoptic.segment_map, panoptic.segments
    colors = segment_colors(segments, categories)
    height, width = segment_map.shape
    step = max(1, max(segment_map.shape) // _COARSE_SIDE)
    coarse = segment_map[step // 2 :: step, step // 2 :: step]
    boxes = ndimage.find_objects(coarse)  # of each id from 1; None without a pixel
    labels: list[tuple[int, Label]] = []
    for segment in segments:
        window = boxes[segment.id - 1] if segment.id <= len(boxes) else None
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
    return [label for _, label in sorted(labels, key=lambda entry: -entry[0])]


def _readable(name: str) -> str:
    """A name without the suffixes of COCO's merged stuff: "floor-other-merged" -> "floor"."""
    return name.removesuffix("-merged").removesuffix("-other").removesuffix("-stuff")


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=32)
def font(size: int, latin: bool) -> Font:
    """A font of `size` pixels; with latin=False one with letters beyond ASCII, if installed."""
    for name in () if latin else _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
