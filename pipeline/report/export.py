"""A run as COCO files: panoptic JSON with PNGs, or instances and results with one mask per thing.

The export reads the run folder only and holds one shard at a time, so memory does not grow with the
run. RLE strings are copied from the shards; PNGs are painted from them. An image that failed has no
segments. With a truth it is exported as all void: COCO's tools need every image, and score this one
as missed, as `evaluate` does. Without a truth it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pipeline.errors import UserError
from pipeline.panoptic import rle
from pipeline.report.coco_writer import ImageIds, JsonLists, TruthImage, json_lists
from pipeline.run.folder import Snapshot
from pipeline.run.lookup import find_rows
from pipeline.run.run import Run
from pipeline.schema import SEGMENT_COLUMNS

Format = Literal["panoptic", "instances", "results"]
Row = dict[str, Any]

_COLUMNS = ("file_name", "status", "height", "width", *SEGMENT_COLUMNS)
_PNG_THREADS = 4
_CHUNK_ROWS = 256


@dataclass(frozen=True)
class Exported:
    """The result of an export; all counts but `segments` are images."""

    output: str
    images: int
    segments: int
    errors: int  # failed images: all void with a truth, left out without
    without_truth: int  # in the run, not in the truth: left out
    without_prediction: int  # in the truth, not in the run; 0 if only a part was exported


def export_run(
    run: Run,
    target: str | Path,
    *,
    format: Format = "panoptic",
    ids: ImageIds | None = None,
    snapshot: int | None = None,
    file_names: Sequence[str] = (),
    limit: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> Exported:
    """Write `target` (a new local .json) and, for panoptic, the PNG folder of the same name.

    format: "panoptic" for panopticapi (segment ids from 1, colour R + 256 G + 256^2 B = id, PNGs
    named by image id), "instances" for `COCO` of pycocotools, "results" for its `loadRes` (a bare
    list). ids: COCO image ids by file name; by default the number in the name. file_names: export
    only these images. limit: export at most so many, from the first shards, a uniform sample.
    Raises UserError if an image can't be exported; then no JSON is left.
    """
    target = _new_file(target)
    ids = ids or ImageIds()
    ids.check_categories(run.info.categories)
    live = run.snapshot(snapshot)
    rows = find_rows(run, file_names, snapshot=live) if file_names else _all_rows(run, live)
    with _lists(run, target, format) as lists, ThreadPoolExecutor(_PNG_THREADS) as pool:
        writer = _Writer(format, ids, target.with_suffix(""), lists)
        while chunk := list(islice(rows, _wanted(limit, writer.images))):
            entries = [entry for row in chunk if (entry := writer.entry(row)) is not None]
            for _ in pool.map(lambda entry: writer.paint(*entry), entries):
                pass  # iterating raises the first exception of a thread
            for row, image in entries:
                writer.describe(row, image)
            progress(writer.images)
        ids.refuse_twice()
    whole = ids.truth is not None and limit is None and not file_names
    return Exported(
        output=str(target),
        images=writer.images,
        segments=writer.lists.counts["annotations"] if format != "panoptic" else writer.segments,
        errors=writer.errors,
        without_truth=writer.without_truth,
        without_prediction=len(ids.truth or ()) - writer.images if whole else 0,
    )


def _lists(run: Run, target: Path, format: Format) -> AbstractContextManager[JsonLists]:
    if format == "results":
        return json_lists(target, None, ["annotations"])
    kept = run.info.categories.to_json()
    if format == "instances":
        kept = [entry for entry in kept if entry["isthing"]]
    fingerprint = run.info.fingerprint
    info = {"description": f"snapshot of {run.storage.url}", "fingerprint": fingerprint}
    return json_lists(target, {"info": info, "categories": kept}, ["images", "annotations"])


class _Writer:
    """Writes COCO entries of rows, and counts them."""

    def __init__(self, format: Format, ids: ImageIds, masks: Path, lists: JsonLists) -> None:
        self.format, self.ids, self.masks, self.lists = format, ids, masks, lists
        self.images = self.segments = self.errors = self.without_truth = 0
        if format == "panoptic":
            self.masks.mkdir(parents=True, exist_ok=True)

    def entry(self, row: Row) -> tuple[Row, TruthImage] | None:
        """The row and its image, or None if it is left out."""
        failed = row["status"] != "ok"
        self.errors += failed
        if failed and self.ids.truth is None:
            return None
        image = self.ids.find(row["file_name"])
        if image is None:
            self.without_truth += 1
            return None
        if failed:
            if image.height is None or image.width is None:
                raise UserError(
                    f"the truth gives no height and width for {image.file_name!r}, which the run "
                    "could not read"
                )
            row = {**row, "height": image.height, "width": image.width}
        elif image.height not in (None, row["height"]) or image.width not in (None, row["width"]):
            raise UserError(
                f"{row['file_name']!r} is {row['width']} x {row['height']} in the run and "
                f"{image.width} x {image.height} in the truth: is this the truth of these images?"
            )
        self.images += 1
        self.segments += len(row["segment_id"])
        return row, image

    def paint(self, row: Row, image: TruthImage) -> None:
        """Write the image's PNG, for the panoptic format. Called from threads."""
        if self.format != "panoptic":
            return
        height, width = row["height"], row["width"]
        try:
            ids = rle.decode(row["counts"], height, width, row["segment_id"])
        except rle.RleError as error:
            raise UserError(f"the row of {row['file_name']!r} is damaged: {error}") from error
        rgb = np.empty((height, width, 3), np.uint8)
        for channel in range(3):
            rgb[..., channel] = ids >> 8 * channel
        Image.fromarray(rgb).save(self.masks / png_name(image.id), compress_level=4)

    def describe(self, row: Row, image: TruthImage) -> None:
        """Append the image's JSON entries."""
        columns = zip(*(row[name] for name in SEGMENT_COLUMNS), strict=True)
        segments = [Row(zip(SEGMENT_COLUMNS, values, strict=True)) for values in columns]
        height, width = row["height"], row["width"]
        if self.format != "results":
            about = {"id": image.id, "file_name": image.file_name, "height": height, "width": width}
            self.lists.append("images", about)
        if self.format == "panoptic":
            info = [_panoptic_segment(segment) for segment in segments]
            png = {"image_id": image.id, "file_name": png_name(image.id), "segments_info": info}
            self.lists.append("annotations", png)
            return
        for segment in segments:
            if segment["isthing"]:
                self.lists.append("annotations", self._thing(segment, image.id, [height, width]))

    def _thing(self, segment: Row, image_id: int, size: list[int]) -> Row:
        mask = {"size": size, "counts": segment["counts"]}
        category_id, score = segment["category_id"], segment["score"]
        result = {"image_id": image_id, "category_id": category_id, "segmentation": mask,
                  "score": score}  # fmt: skip
        if self.format == "results":
            return result  # with a bbox, pycocotools would use the area of the box, not of the mask
        number = self.lists.counts["annotations"] + 1
        bbox, area = segment["bbox"], segment["area"]
        return {"id": number, **result, "bbox": bbox, "area": area, "iscrowd": 0}


def _panoptic_segment(segment: Row) -> Row:
    return {
        "id": segment["segment_id"],
        "category_id": segment["category_id"],
        "area": segment["area"],
        "bbox": segment["bbox"],
        "iscrowd": 0,
        "score": segment["score"],
    }


def png_name(image_id: int) -> str:
    """The name of an image's PNG in COCO's form: the id in 12 digits."""
    return f"{image_id:012d}.png"


def _wanted(limit: int | None, so_far: int) -> int:
    return _CHUNK_ROWS if limit is None else min(_CHUNK_ROWS, limit - so_far)


def _all_rows(run: Run, snapshot: Snapshot) -> Iterator[Row]:
    for shard in snapshot.shards:
        yield from run.read_shard(shard.path, _COLUMNS).to_pylist()


def _new_file(target: str | Path) -> Path:
    text = str(target)
    if "://" in text:
        raise UserError(f"{text}: COCO's tools read local files; export to a local path, then copy")
    path = Path(text)
    if path.suffix != ".json":
        raise UserError(f"{text!r} must end in .json: the PNGs go into the folder of that name")
    if path.exists():
        raise UserError(f"{text} exists already: remove it, or choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't write to {path.parent}: {error.strerror}") from error
    return path
