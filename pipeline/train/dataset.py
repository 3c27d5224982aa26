"""A COCO panoptic dataset for training: images and id maps out of its JSON and files, at any URL.

`open_dataset` checks the JSON and lists the folders of images and PNGs to find missing files. Each
class of training data must have a segment; validation data may lack some. `PanopticDataset.check`
reads images and PNGs and raises for the first that disagrees with the JSON. It reads all of a small
dataset and a sample of a large one; the training checks the others as it reads them. Each fault is
a UserError with the name of the file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detr.categories import Categories
from detr.inference.decode import ImageError, decode_image, header_size, stored_orientation
from pipeline.amounts import counted
from pipeline.errors import UserError
from pipeline.evaluation.truth import masks_of
from pipeline.evaluation.truth_png import MaskError, read_png
from pipeline.planning.coco_panoptic import CocoFile, categories_of, panoptic, size_of
from pipeline.storage.archive_folder import folder_at
from pipeline.storage.entry import as_user_error
from pipeline.storage.objects import place_of, read_named
from pipeline.storage.storage import Storage, open_file

TURNED: Final = "turned"
LEFT: Final = "left"

CHECKED = 1000  # examples that `check` reads: about 10 s of one core
READERS = 16  # threads: reading from a bucket is mostly waiting


@dataclass(frozen=True)
class Example:
    """One image with truth. segments, crowds: (id, class index). crowds: regions of many things
    (iscrowd 1), left out of the training and scored by PQ's rules for crowds."""

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
    """The names and ids of a dataset, without pixels: small enough to send to workers."""

    categories: Categories
    examples: tuple[Example, ...]
    images: Storage
    masks: Storage
    exif: bool = True  # rotate by the EXIF tag if a photo fits its map with and without rotation

    def check(self) -> Counter[str]:
        """Read up to CHECKED examples, evenly spread, before the training. Raises UserError.

        Returns how many photos with an EXIF orientation were rotated (TURNED), and how many were
        left as stored (LEFT).
        """
        step = -(-len(self.examples) // CHECKED)
        pool = ThreadPoolExecutor(READERS)
        try:
            turns = [turn for *_, turn in pool.map(self._read, range(0, len(self.examples), step))]
        finally:
            pool.shutdown(cancel_futures=True)
        return Counter(turn for turn in turns if turn)

    def digest(self) -> str:
        """SHA-256 (hex) of the examples and classes, without pixels."""
        classes = self.categories.to_json()
        parts = (classes, self.examples) if self.exif else (classes, self.examples, "no exif")
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Image (H, W, 3) uint8 RGB and id map (H, W) int32 of one example.

        A photo is rotated by its EXIF orientation, as in `segment`, if it then has the size of its
        map; else it is left as stored. Raises UserError if a file can't be read or disagrees with
        the JSON.
        """
        image, id_map, _ = self._read(index)
        return image, id_map

    def _read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int32], str | None]:
        example = self.examples[index]
        expected = (example.height, example.width)
        image, turn = self._photo(example, expected)
        mask_url = place_of(self.masks.url, example.mask_name)
        try:
            id_map = read_png(_bytes(self.masks, example.mask_name)).astype(np.int32)
        except MaskError as error:
            raise UserError(f"{mask_url} can't be read: {error}") from None
        for url, size in (
            (place_of(self.images.url, example.file_name), image.shape[:2]),
            (mask_url, id_map.shape),
        ):
            if size != expected:
                raise UserError(
                    f"{url} is {size[1]} x {size[0]} pixels, "
                    f"but the JSON says {expected[1]} x {expected[0]}"
                )
        listed = {segment_id for segment_id, _ in example.segments + example.crowds}
        drawn = set(np.unique(id_map).tolist()) - {0}
        if listed != drawn:
            side = (
                "the JSON but not in the PNG" if listed - drawn else "the PNG but not in the JSON"
            )
            odd = sorted(listed - drawn or drawn - listed)[0]
            raise UserError(f"segment {odd} of {example.file_name} is in {side} {mask_url}")
        return image, id_map, turn

    def _photo(
        self, example: Example, expected: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], str | None]:
        data = _bytes(self.images, example.file_name)
        try:
            if stored_orientation(data) == 1:
                return decode_image(data, exif=False), None
            fits = {turn: header_size(data, exif=turn) == expected for turn in (True, False)}
            turned = fits[True] and (self.exif or not fits[False])
            return decode_image(data, exif=turned), TURNED if turned else LEFT
        except ImageError as error:
            where = place_of(self.images.url, example.file_name)
            raise UserError(f"{where} can't be read: {error}") from None


def open_dataset(
    truth: str,
    *,
    images: str | None = None,
    masks: str | None = None,
    categories: Categories | None = None,
    exif: bool = True,
) -> PanopticDataset:
    """Open a COCO panoptic JSON, or a folder with a panoptic.json, and check it.

    masks: the folder of the PNGs (default: the JSON's name without .json). images: the folder of
    the images (default: images/ beside the JSON). categories: the label set of the training, for
    validation data: the JSON must have the same one in any order, and may have classes without a
    segment. Raises UserError.
    """
    if not truth.endswith(".json"):
        truth = truth.rstrip("/") + "/panoptic.json"
    folder, _ = open_file(truth)
    file = CocoFile(truth)
    entries: dict[str, dict[str, Any]] = {}  # of repeated ids the last wins, as in `evaluate`
    annotations: dict[str, dict[str, Any]] = {}
    listed: list[dict[str, Any]] = []
    for kind, item in panoptic(file, truth=True):
        if isinstance(item, list):
            listed = item
        else:
            (entries if kind == "image" else annotations)[item["image_id"]] = item
    lacking = {"images": entries, "annotations": annotations, "categories": listed}
    if missing := ", ".join(key for key, items in lacking.items() if not items):
        raise UserError(f"{truth} is not a COCO panoptic JSON: it lacks {missing}")
    label_set = categories_of(listed, file)
    if categories is not None and set(label_set) != set(categories):
        raise UserError(f"{truth} has another label set than the training data: make them equal")
    photos = folder_at(images or folder.join("images"))
    maps = folder_at(masks or masks_of(truth))
    dataset = PanopticDataset(
        categories=categories or label_set,
        examples=_examples(file, entries, annotations, categories or label_set, maps),
        images=photos,
        masks=maps,
        exif=exif,
    )
    for storage, names in (
        (dataset.images, [example.file_name for example in dataset.examples]),
        (dataset.masks, [example.mask_name for example in dataset.examples]),
    ):
        try:
            present = {storage.join(entry.path) for entry in storage.list()}
        except OSError as error:
            raise as_user_error(error, f"can't list {storage.url}") from error
        urls = (place_of(storage.url, name) for name in names)
        inside = [url for url in urls if url.startswith(storage.join(""))]
        absent = [url for url in inside if url not in present]
        if absent:
            raise UserError(f"{counted(len(absent), 'file')} of {truth} missing, first {absent[0]}")
    if categories is None:
        _refuse_empty_classes(truth, dataset)
    return dataset


def hold_out(dataset: PanopticDataset, count: int) -> tuple[PanopticDataset, PanopticDataset]:
    """Split a dataset into (training, validation): the last `count` examples are for validation.

    An example stays in the training if no other example of the training shows one of its classes;
    then an earlier one is taken. Raises UserError.
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


def _examples(
    file: CocoFile,
    entries: dict[str, dict[str, Any]],
    annotations: dict[str, dict[str, Any]],
    categories: Categories,
    masks: Storage,
) -> tuple[Example, ...]:
    """The annotations joined with their images. Raises UserError."""
    class_of = {category.id: index for index, category in enumerate(categories)}
    sizes: dict[str, tuple[int, int]] = {}
    for image_id, annotation in annotations.items():
        if image_id not in entries:
            raise UserError(f"{file.url} annotates image {image_id}, which it doesn't list")
        unknown = [c for c in annotation["category_id"] if c not in class_of]
        if unknown:
            raise UserError(
                f"{entries[image_id]['name']} has a segment of category {unknown[0]}, "
                f"which {file.url} doesn't define"
            )
        if (size := size_of(entries[image_id], file)) is not None:
            sizes[image_id] = size
    unsized = [image_id for image_id in annotations if image_id not in sizes]
    with ThreadPoolExecutor(READERS) as pool:
        pngs = [annotations[image_id]["png"] for image_id in unsized]
        sizes.update(zip(unsized, pool.map(lambda png: _size(masks, png), pngs), strict=True))
    return tuple(
        _example(entries[image_id]["name"], annotation, sizes[image_id], class_of)
        for image_id, annotation in annotations.items()
    )


def _example(
    name: str, annotation: dict[str, Any], size: tuple[int, int], class_of: dict[int, int]
) -> Example:
    columns = (annotation[key] for key in ("segment_id", "category_id", "iscrowd"))
    listed = [(i, class_of[c], crowd) for i, c, crowd in zip(*columns, strict=True)]
    return Example(
        file_name=name,
        mask_name=annotation["png"],
        height=size[0],
        width=size[1],
        segments=tuple((i, c) for i, c, crowd in listed if not crowd),
        crowds=tuple((i, c) for i, c, crowd in listed if crowd),
    )


def _size(masks: Storage, name: str) -> tuple[int, int]:
    """(height, width) of the PNG, for an image without a size in the JSON."""
    try:
        return header_size(_bytes(masks, name), exif=False)
    except ImageError as error:
        raise UserError(f"{place_of(masks.url, name)} can't be read: {error}") from None


def _refuse_empty_classes(truth: str, dataset: PanopticDataset) -> None:
    counts = Counter(index for example in dataset.examples for _, index in example.segments)
    empty: Sequence[str] = [c.name for i, c in enumerate(dataset.categories) if not counts[i]]
    if empty:
        raise UserError(
            f"no image of {truth} shows {', '.join(empty[:3])}{' ...' if len(empty) > 3 else ''}: "
            "take classes without a segment out of its categories"
        )


def _bytes(storage: Storage, name: str) -> bytes:
    try:
        return read_named(storage, name)
    except FileNotFoundError:
        raise UserError(f"{place_of(storage.url, name)} is missing") from None
    except UserError:
        raise
    except Exception as error:
        raise as_user_error(error, f"can't read {place_of(storage.url, name)}") from error
