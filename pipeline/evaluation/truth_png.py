"""One panoptic PNG to one row of run-length strings, for truth and for predictions alike.

The truth table is written once and read by every evaluation: one row per image, sorted by the hash
of the run's file name, as shards are. Segments keep the order of their JSON (panopticapi's rule for
crowds depends on it) and are there even without pixels (they are missed then). Pixels whose id the
JSON doesn't list are neither segment nor void: they get a string of their own; void is what is
left. Areas and boxes are counted here, never believed.

A PNG stores an id as R + 256 G + 65536 B. What is wrong with one image is a `problem` in its row,
so that the others are still scored.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from detr.inference.decode import ImageError, decode_image
from pipeline.panoptic import rle

TRUTH_SCHEMA: Final = pa.schema(
    [
        pa.field("hash", pa.uint64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),  # as in the run's manifest
        pa.field("image_id", pa.string(), nullable=False),  # as in the JSON
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("segment_id", pa.list_(pa.int32()), nullable=False),
        pa.field("category_id", pa.list_(pa.int32()), nullable=False),
        pa.field("iscrowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("area", pa.list_(pa.int64()), nullable=False),  # counted, not the JSON's
        pa.field("bbox", pa.list_(pa.list_(pa.int32(), 4)), nullable=False),
        pa.field("counts", pa.list_(pa.large_string()), nullable=False),
        pa.field("unlisted_counts", pa.large_string()),
        pa.field("problem", pa.string()),  # why this image can't be scored, else null
        pa.field("area_mismatches", pa.int32(), nullable=False),  # segments whose JSON is wrong
    ]
)
PIXELS: Final = 1 << 28  # a larger truth map is a mistake, or an attack


class MaskError(Exception):
    """This PNG is no panoptic map; the message says why."""


def read_png(data: bytes) -> NDArray[np.uint32]:
    """The ids of a panoptic PNG, (H, W) uint32. Raises MaskError."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 26:
        raise MaskError("it is not a PNG")
    depth, colour = data[24], data[25]
    if colour not in (2, 6) or depth != 8:
        kind = {0: "grey", 3: "palette", 4: "grey"}.get(colour, "RGB")
        raise MaskError(
            f"it is a {depth}-bit {kind} PNG, panoptic ids need 8-bit RGB (R + 256 G + 65536 B)"
        )
    try:
        pixels = decode_image(data, max_pixels=PIXELS, exif=False)
    except ImageError as error:
        raise MaskError(f"it is a broken PNG: {error}") from error
    # Four bytes a pixel, the last one padding: the id, little-endian, in its low 24 bits.
    padded = np.zeros((*pixels.shape[:2], 4), np.uint8)
    padded[..., :3] = pixels
    return padded.view("<u4")[..., 0]


def write_png(segment_map: NDArray[Any]) -> bytes:
    """The PNG of a panoptic map, (H, W) ids below 2^24."""
    ids = segment_map.astype("<u4")
    rgb = np.ascontiguousarray(ids).view(np.uint8).reshape(*ids.shape, 4)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, format="png")
    return buffer.getvalue()


def row_of(annotation: Mapping[str, Any], data: bytes, *, truth: bool) -> dict[str, Any]:
    """A truth row (or a prediction's) from its annotation, as `panoptic_json.panoptic` gives it.

    annotation must also have hash and file_name. In a prediction every id must be in both JSON and
    PNG; in truth an id may be missing in either.
    """
    ids: list[int] = annotation["segment_id"]
    try:
        segment_map = read_png(data)
        starts, values = rle.runs(segment_map)
        found = np.unique(values)
        if not truth:
            _check_prediction(ids, found, annotation["image_id"])
    except MaskError as error:
        return problem_row(annotation, f"{annotation['png']}: {error}")
    height, width = segment_map.shape
    here = set(found.tolist())
    present = [i for i in ids if i in here]
    encoded = rle.encode_runs(starts, values, height, width, present)
    place = {segment: k for k, segment in enumerate(present)}
    area = [int(encoded.area[place[i]]) if i in place else 0 for i in ids]
    nothing = rle.empty_counts(height, width)
    listed = np.isin(found, [0, *ids])
    unlisted = None
    if truth and not listed.all():
        unlisted = rle.encode(np.isin(segment_map, found[~listed]), [1]).counts[0]
    stated = annotation["area"]
    return {
        **_names(annotation),
        "height": height,
        "width": width,
        "segment_id": ids,
        "category_id": annotation["category_id"],
        "iscrowd": annotation["iscrowd"],
        "area": area,
        "bbox": [encoded.bbox[place[i]].tolist() if i in place else [0, 0, 0, 0] for i in ids],
        "counts": [encoded.counts[place[i]] if i in place else nothing for i in ids],
        "unlisted_counts": unlisted,
        "problem": None,
        "area_mismatches": sum(s is not None and s != a for s, a in zip(stated, area, strict=True)),
    }


def problem_row(annotation: Mapping[str, Any], problem: str) -> dict[str, Any]:
    """The row of an image that can't be scored."""
    lists = (field.name for field in TRUTH_SCHEMA if pa.types.is_list(field.type))
    return {
        **_names(annotation),
        "height": None,
        "width": None,
        **{name: [] for name in lists},
        "unlisted_counts": None,
        "problem": problem,
        "area_mismatches": 0,
    }


def table_of(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=TRUTH_SCHEMA)


def _names(annotation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: annotation[name] for name in ("hash", "file_name", "image_id")}


def _check_prediction(ids: list[int], found: NDArray[np.uint32], image_id: str) -> None:
    here = set(found.tolist())
    for i in ids:
        if i not in here:
            raise MaskError(f"segment {i} of image {image_id} is in the JSON but not in the PNG")
    for i in sorted(here - set(ids) - {0}):
        raise MaskError(f"segment {i} of image {image_id} is in the PNG but not in the JSON")
