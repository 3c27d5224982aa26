"""Made images, their ground truth, and a model that finds most of it: integers alone decide.

Every machine computes the same pixels, segments and file sizes from this module. A run records the
name `tests.golden.model:load` in its fingerprint, so the module must not move.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from detr import Categories, Panoptic, Segment

MODEL = "tests.golden.model:load"
CATEGORIES = Categories.from_json(
    [
        {"id": 1, "name": "block", "isthing": 1},
        {"id": 2, "name": "bar", "isthing": 1},
        {"id": 7, "name": "ground", "isthing": 0},
    ]
)
BRIGHT = 128  # things are at least as bright, the ground is darker
NARROW = 6  # pixels; a thing as narrow as that is a bar


class Golden:
    """Finds the bright pixels of every thing; takes a wide bar for a block."""

    categories = CATEGORIES
    fingerprint = "golden-1"

    def __init__(self, level: int, narrow: int) -> None:
        self.level = level
        self.narrow = narrow

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        return [self._one(image) for image in images]

    def _one(self, image: NDArray[np.uint8]) -> Panoptic:
        segment_map, kinds = parts(image, self.level, self.narrow)
        segments = (
            Segment(number, kind, kind != 7, 0.5 if kind == 7 else 0.75)
            for number, kind in enumerate(kinds, start=1)
        )
        return Panoptic(segment_map, tuple(segments))


def load(weights: str, **settings: Any) -> Golden:
    return Golden(**json.loads(Path(weights).read_text()))


def parts(image: NDArray[np.uint8], level: int, narrow: int) -> tuple[NDArray[np.uint8], list[int]]:
    """The map of an image (things in raster order, the ground last) and the category of each id.

    A thing keeps only its pixels of at least `level`; the ground gets the others.
    """
    grey = image[:, :, 0]
    found: Any = ndimage.label(grey >= BRIGHT)
    labels, count = found
    boxes = ndimage.find_objects(labels)
    sides = [min(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes]
    segment_map = np.where((labels > 0) & (grey >= level), labels, count + 1).astype(np.uint8)
    return segment_map, [2 if side <= narrow else 1 for side in sides] + [7]


def picture(number: int, height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """(height, width, 3): a dark field with one bright block, and in most a bright bar."""
    rng = np.random.default_rng(number)
    grey = rng.integers(60, 100, (height, width))
    y, x = rng.integers(1, 6, 2)
    grey[y : y + 8, x : x + 8] = rng.integers(160, 220, (8, 8))
    if number % 4:
        thick = int(rng.integers(3, NARROW + 1))
        grey[18 : 18 + thick, 4:28] = rng.integers(150, 200, grey[18 : 18 + thick, 4:28].shape)
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)


def write_picture(path: Path, number: int, height: int = 24, width: int = 32) -> None:
    """As BMP, whose size and pixels depend on no library."""
    Image.fromarray(picture(number, height, width)).save(path)


def write_truth(folder: Path, numbers: Iterable[int]) -> Path:
    """COCO panoptic ground truth of the pictures; the two upper rows of pixels are void."""
    masks = folder / "truth"
    masks.mkdir()
    images, annotations = [], []
    for number in numbers:
        segment_map, kinds = parts(picture(number), BRIGHT, NARROW)
        segment_map[:2] = 0
        packed = np.stack([segment_map, *[np.zeros_like(segment_map)] * 2], axis=2)
        Image.fromarray(packed).save(masks / f"{number:03d}.png")
        height, width = segment_map.shape
        images.append(
            {"id": number, "file_name": f"{number:03d}.bmp", "height": height, "width": width}
        )
        segments = [
            {
                "id": own,
                "category_id": kind,
                "iscrowd": 0,
                "area": int((segment_map == own).sum()),
            }
            for own, kind in enumerate(kinds, start=1)
        ]
        annotations.append(
            {"image_id": number, "file_name": f"{number:03d}.png", "segments_info": segments}
        )
    path = folder / "truth.json"
    truth = {"images": images, "annotations": annotations, "categories": CATEGORIES.to_json()}
    path.write_text(json.dumps(truth))
    return path
