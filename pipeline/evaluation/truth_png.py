"""The truth table: a panoptic PNG and its annotation in, one row of COCO RLE strings out.

The table is written once per evaluation: one row per image, sorted by the hash of the run's file
name, as shards are. Segments keep the order of the JSON (panopticapi's rule for crowds depends on
the order); a segment without pixels has a row entry, too, and counts as missed. Pixels whose id the
JSON does not list are neither segment nor void: `unlisted_counts` holds them, and all other pixels
without a segment are void. Areas and boxes are computed from the pixels, not read from the JSON.

A PNG stores an id as R + 256 G + 65536 B. An image that can't be scored has the reason in its
column `problem`, and the other images are still scored. Predictions use the same rows.
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
        pa.field("area", pa.list_(pa.int64()), nullable=False),  # pixels in the PNG
        pa.field("bbox", pa.list_(pa.list_(pa.int32(), 4)), nullable=False),
        pa.field("counts", pa.list_(pa.large_string()), nullable=False),
        pa.field("unlisted_counts", pa.large_string()),
        pa.field("problem", pa.string()),  # why this image can't be scored, else null
        pa.field("area_mismatches", pa.int32(), nullable=False),  # segments with another JSON area
    ]
)
PIXELS: Final = 1 << 28  # of the largest PNG that is read; a larger one may be an attack


class MaskError(Exception):
    """The PNG is no panoptic map, or disagrees with its JSON."""


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
    # R, G, B and a zero byte are the id as a little-endian uint32.
    padded = np.zeros((*pixels.shape[:2], 4), np.uint8)
    padded[..., :3] = pixels
    return padded.view("<u4")[..., 0]


def write_png(segment_map: NDArray[Any]) -> bytes:
    """A panoptic map, (H, W) ids below 2^24 -> its PNG file."""
    ids = segment_map.astype("<u4")
    rgb = np.ascontiguousarray(ids).view(np.uint8).reshape(*ids.shape, 4)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, format="png")
    return buffer.getvalue()


def row_of(annotation: Mapping[str, Any], data: bytes, *, truth: bool) -> dict[str, Any]:
    """A row of TRUTH_SCHEMA from an annotation and the bytes of its PNG.

    annotation: as `coco_panoptic.panoptic` gives it, plus hash and file_name. truth: False for a
    prediction, in which each id must be in both JSON and PNG; in truth either may lack an id.
    """
    ids: list[int] = annotation["segment_id"]
    try:
        segment_map = read_png(data)
        starts, values = rle.runs(segment_map)
        png_ids = np.unique(values)
        if not truth:
            _check_prediction(ids, png_ids, annotation["image_id"])
    except MaskError as error:
        return problem_row(annotation, f"{annotation['png']}: {error}")
    height, width = segment_map.shape
    png_id_set = set(png_ids.tolist())
    present = [i for i in ids if i in png_id_set]
    encoded = rle.encode_runs(starts, values, height, width, present)
    position = {segment: k for k, segment in enumerate(present)}
    area = [int(encoded.area[position[i]]) if i in position else 0 for i in ids]
    no_pixels = rle.empty_counts(height, width)
    listed = np.isin(png_ids, [0, *ids])
    unlisted = None
    if truth and not listed.all():
        unlisted = rle.encode(np.isin(segment_map, png_ids[~listed]), [1]).counts[0]
    stated = annotation["area"]
    return {
        **_names(annotation),
        "height": height,
        "width": width,
        "segment_id": ids,
        "category_id": annotation["category_id"],
        "iscrowd": annotation["iscrowd"],
        "area": area,
        "bbox": [encoded.bbox[position[i]].tolist() if i in position else [0] * 4 for i in ids],
        "counts": [encoded.counts[position[i]] if i in position else no_pixels for i in ids],
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


def _check_prediction(ids: list[int], png_ids: NDArray[np.uint32], image_id: str) -> None:
    png_id_set = set(png_ids.tolist())
    for i in ids:
        if i not in png_id_set:
            raise MaskError(f"segment {i} of image {image_id} is in the JSON but not in the PNG")
    for i in sorted(png_id_set - set(ids) - {0}):
        raise MaskError(f"segment {i} of image {image_id} is in the PNG but not in the JSON")
