"""A COCO panoptic dataset for training: its JSON, its id maps (PNG), its images, on any fsspec URL.

What is wrong with a dataset is found at the door: by its JSON and two listings (a missing file, an
empty class), and by reading images and PNGs (JSON and PNG that disagree): all of a small one, a
sample of a large one, whose others are checked at their turn. Each is one sentence naming the file.
Images come out as the model will see them later, at the processed size of inference, because that
resize is part of what it must learn.
Converting datasets to a format of our own first was rejected: one more copy to keep in step.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detr.categories import Categories
from detr.inference.preprocess import ImageError, decode
from pipeline.errors import UserError
from pipeline.storage.storage import Storage, open_file

CHECKED = 1000  # examples of a dataset: some 10 s of one core
READERS = 16  # at a time: from a bucket they mostly wait


@dataclass(frozen=True)
class Example:
    """One image with truth. Segments are (id, class index); crowds, regions that stand for many
    things at once, are apart: nothing is learnt from them, and PQ has rules of its own for them."""

    file_name: str
    mask_name: str
    height: int
    width: int
    segments: tuple[tuple[int, int], ...]
    crowds: tuple[tuple[int, int], ...]

    @property
    def classes(self) -> set[int]:
        return {index for _, index in self.segments}


@dataclass(frozen=True)
class PanopticDataset:
    """Immutable and small enough to send to workers: names and ids, no pixels."""

    categories: Categories
    examples: tuple[Example, ...]
    images: Storage
    masks: Storage

    def check(self) -> None:
        """Read up to `CHECKED` examples, evenly spread, as `read` does. Raises UserError.

        What is wrong is better said before a training than hours into it.
        """
        step = -(-len(self.examples) // CHECKED)
        pool = ThreadPoolExecutor(READERS)
        try:
            for _ in pool.map(self.read, range(0, len(self.examples), step)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def digest(self) -> str:
        """What tells these examples and classes from others: 64 hex digits of sha256."""
        classes = self.categories.to_json()
        return hashlib.sha256(repr((classes, self.examples)).encode()).hexdigest()

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Image (H, W, 3) RGB and id map (H, W) of one example, checked against the JSON.

        Raises UserError naming the file. EXIF rotation is not applied: the maps of COCO aren't.
        """
        example = self.examples[index]
        image = _decode(self.images, example.file_name)
        packed = _decode(self.masks, example.mask_name).astype(np.int32)
        id_map = packed[..., 0] + (packed[..., 1] << 8) + (packed[..., 2] << 16)
        expected = (example.height, example.width)
        for storage, name, found in (
            (self.images, example.file_name, image.shape[:2]),
            (self.masks, example.mask_name, id_map.shape),
        ):
            if found != expected:
                raise UserError(
                    f"{storage.join(name)} is {found[1]} x {found[0]} pixels, "
                    f"but the JSON says {expected[1]} x {expected[0]}"
                )
        listed = {segment_id for segment_id, _ in example.segments + example.crowds}
        drawn = set(np.unique(id_map).tolist()) - {0}
        if listed != drawn:
            side = (
                "the JSON but not in the PNG" if listed - drawn else "the PNG but not in the JSON"
            )
            odd = sorted(listed - drawn or drawn - listed)[0]
            raise UserError(
                f"segment {odd} of {example.file_name} is in {side} "
                f"{self.masks.join(example.mask_name)}"
            )
        return image, id_map


def open_dataset(
    truth: str,
    *,
    images: str | None = None,
    masks: str | None = None,
    categories: Categories | None = None,
) -> PanopticDataset:
    """Open a COCO panoptic JSON, or a folder that holds one as panoptic.json, and check it.

    `masks` is the folder of the PNGs (default: the JSON's name without .json), `images` that of the
    images (default: images/ beside the JSON). `categories`, a label set to be held to (validation):
    the JSON's must be the same in any order, and classes without a segment are then no fault.
    Raises UserError.
    """
    if not truth.endswith(".json"):
        truth = truth.rstrip("/") + "/panoptic.json"
    folder, name = open_file(truth)
    try:
        content = json.loads(folder.read(name))
    except FileNotFoundError:
        raise UserError(f"there is no panoptic JSON at {truth}") from None
    except ValueError as error:
        raise UserError(f"{truth} is not JSON: {error}") from None
    missing = {"images", "annotations", "categories"} - set(
        content if isinstance(content, dict) else ()
    )
    if missing or (content["annotations"] and "segments_info" not in content["annotations"][0]):
        lacks = ", ".join(sorted(missing)) or "segments_info"
        raise UserError(f"{truth} is not a COCO panoptic JSON: it lacks {lacks}")
    found = Categories.from_json(content["categories"])
    if categories is not None and set(found) != set(categories):
        raise UserError(f"{truth} has another label set than the training data: make them equal")
    dataset = PanopticDataset(
        categories=categories or found,
        examples=_examples(truth, content, categories or found),
        images=Storage(images or folder.join("images")),
        masks=Storage(masks or folder.join(PurePosixPath(name).stem)),
    )
    if not dataset.examples:
        raise UserError(f"{truth} has no annotated image")
    for storage, names in (
        (dataset.images, [example.file_name for example in dataset.examples]),
        (dataset.masks, [example.mask_name for example in dataset.examples]),
    ):
        present = {entry.path for entry in storage.list()}
        absent = [name for name in names if name not in present]
        if absent:
            raise UserError(
                f"{len(absent)} files of {truth} are missing, first {storage.join(absent[0])}"
            )
    if categories is None:
        _refuse_empty_classes(truth, dataset)
    return dataset


def hold_out(dataset: PanopticDataset, count: int) -> tuple[PanopticDataset, PanopticDataset]:
    """(training, validation): the last `count` examples are kept apart.

    An example that alone still shows a class stays with the training. Raises UserError.
    """
    if count >= len(dataset.examples):
        raise UserError(f"{len(dataset.examples)} images are too few to hold out {count} of them")
    shown = Counter(index for example in dataset.examples for index in example.classes)
    kept: list[Example] = []
    held: list[Example] = []
    for example in reversed(dataset.examples):
        if len(held) < count and all(shown[index] > 1 for index in example.classes):
            held.append(example)
            shown.subtract(example.classes)
        else:
            kept.append(example)
    if not held:
        raise UserError("each image is the only one of some class: name others with --val")
    first, second = tuple(reversed(kept)), tuple(reversed(held))
    return replace(dataset, examples=first), replace(dataset, examples=second)


def _examples(truth: str, content: dict[str, Any], categories: Categories) -> tuple[Example, ...]:
    """Every annotation with the image that it belongs to."""
    images = {image["id"]: image for image in content["images"]}
    class_of = {category.id: index for index, category in enumerate(categories)}
    examples = []
    for annotation in content["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            raise UserError(
                f"{truth} annotates image {annotation['image_id']!r}, which it doesn't list"
            )
        segments = annotation["segments_info"]
        unknown = [s["category_id"] for s in segments if s["category_id"] not in class_of]
        if unknown:
            raise UserError(
                f"{image['file_name']} has a segment of category {unknown[0]}, "
                f"which {truth} doesn't define"
            )
        pairs = [(s["id"], class_of[s["category_id"]], bool(s.get("iscrowd"))) for s in segments]
        examples.append(
            Example(
                file_name=image["file_name"],
                mask_name=annotation["file_name"],
                height=image["height"],
                width=image["width"],
                segments=tuple((i, c) for i, c, crowd in pairs if not crowd),
                crowds=tuple((i, c) for i, c, crowd in pairs if crowd),
            )
        )
    return tuple(examples)


def _refuse_empty_classes(truth: str, dataset: PanopticDataset) -> None:
    counts = Counter(index for example in dataset.examples for _, index in example.segments)
    empty: Sequence[str] = [c.name for i, c in enumerate(dataset.categories) if not counts[i]]
    if empty:
        raise UserError(
            f"no image of {truth} shows {', '.join(empty[:3])}{' ...' if len(empty) > 3 else ''}: "
            "take classes without a segment out of its categories"
        )


def _decode(storage: Storage, name: str) -> NDArray[np.uint8]:
    try:
        return decode(storage.read(name), exif=False)
    except FileNotFoundError:
        raise UserError(f"{storage.join(name)} is missing") from None
    except ImageError as error:
        raise UserError(f"{storage.join(name)} can't be read: {error}") from None
