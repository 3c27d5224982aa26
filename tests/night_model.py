"""A model that is quick and can be better or worse: its weights are a grey level, in a file.

Pixels at or above it are bright, the others dark. For `picture(n)` the truth is 128.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detr.panoptic import Panoptic, Segment
from tests.toy_model import CATEGORIES

TRUE_LEVEL = 128
SLOW_SECONDS = 3.0


class Threshold:
    categories = CATEGORIES

    def __init__(self, level: int) -> None:
        self.level = level
        self.fingerprint = f"level-{level}"

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        return [self._one(image) for image in images]

    def _one(self, image: NDArray[np.uint8]) -> Panoptic:
        segment_map = kinds(image.mean(axis=2), self.level)
        found = np.unique(segment_map).tolist()
        return Panoptic(segment_map, tuple(Segment(kind, kind, kind == 1, 1.0) for kind in found))


def load(weights: str, **settings: Any) -> Threshold:
    return Threshold(int(Path(weights).read_text()))


def kinds(grey: NDArray[Any], level: int) -> NDArray[np.uint8]:
    return np.where(grey >= level, 1, 2).astype(np.uint8)


def picture(number: int) -> NDArray[np.uint8]:
    """(24, 32, 3): a dark field with a bright block, noise around both levels."""
    rng = np.random.default_rng(number)
    grey = rng.integers(60, 100, (24, 32))
    y, x = rng.integers(2, 10, 2)
    grey[y : y + 10, x : x + 14] = rng.integers(160, 220, (10, 14))
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, "PNG")
    return buffer.getvalue()


def truth(number: int) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """The map and its segments, as `write_coco` takes them."""
    segment_map = kinds(picture(number).mean(axis=2), TRUE_LEVEL)
    return segment_map, [{"id": kind, "category_id": kind} for kind in (1, 2)]


class Slow(Threshold):
    """Takes its time for an image, so that a job can be watched, and notes its process."""

    def __init__(self, level: int, log: Path) -> None:
        super().__init__(level)
        self.log = log

    def _one(self, image: NDArray[np.uint8]) -> Panoptic:
        time.sleep(SLOW_SECONDS)
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super()._one(image)


def load_slow(weights: str, **settings: Any) -> Slow:
    return Slow(int(Path(weights).read_text()), Path(weights).with_suffix(".log"))


def load_replaced(weights: str, **settings: Any) -> Threshold:
    return load(weights)


def describe_then_replace(weights: str, **settings: Any) -> Threshold:
    """What the driver asks; afterwards somebody puts another file under the same name."""
    model = load(weights)
    Path(weights).write_text(str(model.level + 1))
    return model


load_replaced.describe = describe_then_replace  # type: ignore[attr-defined]
