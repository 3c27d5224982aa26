"""Converts labels of CVAT, Label Studio and LabelMe to a COCO panoptic dataset.

    python to_panoptic.py annotations.json --stuff sky,road --out data/panoptic.json
    python to_panoptic.py LABELME_FOLDER --stuff sky,road --out data/panoptic.json

In CVAT, export as "COCO 1.0"; in Label Studio, as "COCO". Both write polygons and masks into one
COCO instances JSON. LabelMe writes a JSON beside each photo; a line or a point there ends the
program with an error. Each class in --stuff becomes stuff and gets one segment per image; all other
classes are things. Where shapes overlap, the smaller shape is on top: a cup on a table is a cup.
The program writes the JSON OUT, and a PNG for each photo into the folder OUT without `.json`.
Pixels without a label are void. Photos without any label are left out.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as rle
from pycocotools.coco import COCO


class Shape(NamedTuple):
    label: str
    mask: NDArray[np.bool_]  # (H, W)
    crowd: bool = False


class Photo(NamedTuple):
    file_name: str
    height: int
    width: int
    shapes: list[Shape]


def read_coco(path: Path) -> Iterator[Photo]:
    """The photos of a COCO JSON of instances."""
    coco = COCO(str(path))
    for image in coco.loadImgs(coco.getImgIds()):
        shapes = [
            Shape(
                coco.cats[entry["category_id"]]["name"],
                coco.annToMask(entry).astype(bool),
                bool(entry.get("iscrowd", 0)) and not _is_mask_of_one(entry),
            )
            for entry in coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        ]
        yield Photo(image["file_name"], image["height"], image["width"], shapes)


def _is_mask_of_one(entry: Any) -> bool:
    """Whether an annotation is CVAT's: CVAT writes `iscrowd` for every mask, also of one object."""
    return "attributes" in entry


def read_labelme(folder: Path) -> Iterator[Photo]:
    """The photos of a folder of LabelMe's JSONs."""
    for path in sorted(folder.rglob("*.json")):
        data = json.loads(path.read_text("utf-8-sig"))
        size = (data["imageHeight"], data["imageWidth"])
        shapes = [Shape(shape["label"], _drawn(shape, size, path)) for shape in data["shapes"]]
        name = (path.parent / data["imagePath"].replace("\\", "/")).resolve()
        yield Photo(name.relative_to(folder.resolve()).as_posix(), *size, shapes)


def _drawn(shape: dict[str, Any], size: tuple[int, int], path: Path) -> NDArray[np.bool_]:
    """One shape of LabelMe as a mask of this size (height, width)."""
    height, width = size
    kind, points = shape.get("shape_type", "polygon"), shape["points"]
    if kind == "polygon":
        polygons: Any = [[float(value) for point in points for value in point]]
        return rle.decode(rle.merge(rle.frPyObjects(polygons, height, width))).astype(bool)
    picture = Image.new("1", (width, height))
    corners = [tuple(point) for point in points]
    if kind == "rectangle":
        (top_left, bottom_right) = np.sort(np.array(corners), axis=0).tolist()
        ImageDraw.Draw(picture).rectangle((*top_left, *bottom_right), fill=1)
    elif kind == "circle":
        (x, y), edge = corners
        radius = float(np.hypot(edge[0] - x, edge[1] - y))
        ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    elif kind == "mask":
        inside = Image.open(io.BytesIO(base64.b64decode(shape["mask"]))).convert("1")
        picture.paste(inside, (round(corners[0][0]), round(corners[0][1])))
    else:
        raise SystemExit(f"{path}: a shape of kind {kind!r} has no area: draw it as a polygon")
    return np.asarray(picture, dtype=bool)


def panoptic_map(
    photo: Photo, ids: dict[str, int], stuff: set[str]
) -> tuple[NDArray[np.int32], list[dict[str, int]]]:
    """(H, W) segment ids, 0 for void, and the map's segments as in COCO's `segments_info`."""
    segment_map = np.zeros((photo.height, photo.width), np.int32)
    of_stuff: dict[str, int] = {}
    segments: dict[int, dict[str, int]] = {}
    for shape in sorted(photo.shapes, key=lambda shape: -int(shape.mask.sum())):
        number = of_stuff.get(shape.label, len(segments) + 1)
        if shape.label in stuff:
            of_stuff[shape.label] = number
        segment_map[shape.mask] = number
        crowd = int(shape.crowd and shape.label not in stuff)
        segments[number] = {"id": number, "category_id": ids[shape.label], "iscrowd": crowd}
    seen = np.unique(segment_map)
    return segment_map, [entry for number, entry in segments.items() if number in seen]


def write_png(path: Path, segment_map: NDArray[np.int32]) -> None:
    """Write a COCO panoptic PNG: an id is R + 256 G + 65536 B."""
    rgb = segment_map[..., None] >> np.array([0, 8, 16]) & 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("labels", type=Path, help="COCO JSON of instances, or LabelMe's folder")
    parser.add_argument("--stuff", default="", help="classes that are stuff, with commas between")
    parser.add_argument("--out", type=Path, required=True, help="the panoptic JSON to write")
    options = parser.parse_args()
    stuff = {name.strip() for name in options.stuff.split(",")} - {""}
    read = read_labelme if options.labels.is_dir() else read_coco
    names = sorted({shape.label for photo in read(options.labels) for shape in photo.shapes})
    if unknown := stuff - set(names):
        raise SystemExit(f"--stuff: no shape is called {', '.join(sorted(unknown))}")
    ids = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, photo in enumerate(read(options.labels), start=1):
        segment_map, segments = panoptic_map(photo, ids, stuff)
        if not segments:
            continue  # a photo without labels
        png = f"{number:06}_{Path(photo.file_name).stem}.png"  # names repeat in other folders
        write_png(options.out.with_suffix("") / png, segment_map)
        size = {"height": photo.height, "width": photo.width}
        images.append({"id": number, "file_name": photo.file_name, **size})
        annotations.append({"image_id": number, "file_name": png, "segments_info": segments})
    categories = [
        {"id": number, "name": name, "isthing": int(name not in stuff)}
        for name, number in ids.items()
    ]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    options.out.write_text(json.dumps(dataset))
    print(f"{options.out}: {len(images)} photos, {len(categories)} classes")


if __name__ == "__main__":
    main()
