"""Labels of other tools, converted by the example: what is on top, what is one, what is void."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from jobs.options import EXAMPLES
from pipeline.evaluation.truth_png import read_png
from pipeline.train.dataset import open_dataset


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def converted(labels: Path, out: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, str(EXAMPLES / "to_panoptic.py"), str(labels), "--out", str(out)]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def named(data: dict[str, Any], out: Path) -> np.ndarray:
    """(H, W) of the first image's class names, `-` where void."""
    names = {category["id"]: category["name"] for category in data["categories"]}
    annotation = data["annotations"][0]
    ids = read_png((out.with_suffix("") / annotation["file_name"]).read_bytes())
    of_id = {s["id"]: names[s["category_id"]] for s in annotation["segments_info"]}
    return np.vectorize(lambda value: of_id.get(value, "-"))(ids)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (40, 30), "gray").save(folder / "a.jpg")
    return folder


def test_coco_instances_of_cvat_and_label_studio(photos: Path, tmp_path: Path) -> None:
    cup = np.zeros((30, 40), np.uint8)
    cup[10:14, 10:16] = 1
    packed: Any = rle.encode(np.asfortranarray(cup))
    entries = [
        {"category_id": 7, "segmentation": [box(12, 11, 14, 13)]},  # a sticker on the cup
        {"category_id": 3, "segmentation": [box(0, 0, 40, 5)]},
        {"category_id": 3, "segmentation": [box(0, 25, 40, 30)]},
        {"category_id": 5, "segmentation": [box(5, 5, 35, 25)]},
        {
            "category_id": 6,
            "segmentation": {"size": [30, 40], "counts": packed["counts"].decode()},
            "iscrowd": 1,  # as CVAT marks a mask
            "attributes": {"occluded": False},
        },
    ]
    names = {3: "wall", 5: "table", 6: "cup", 7: "sticker", 9: "never"}
    labels = tmp_path / "instances.json"
    labels.write_text(
        json.dumps(
            {
                "images": [
                    {"id": 4, "file_name": "a.jpg", "height": 30, "width": 40},
                    {"id": 5, "file_name": "not-yet.jpg", "height": 30, "width": 40},
                ],
                "categories": [{"id": i, "name": name} for i, name in names.items()],
                "annotations": [
                    {"id": n, "image_id": 4, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0, **entry}
                    for n, entry in enumerate(entries, 1)
                ],
            }
        )
    )
    out = tmp_path / "panoptic.json"
    data = converted(labels, out, "--stuff", "wall")
    seen = named(data, out)
    assert seen[2, 20] == seen[28, 20] == "wall"
    assert (seen[7, 20], seen[10, 10], seen[12, 13], seen[15, 2]) == (
        "table",
        "cup",
        "sticker",
        "-",
    )
    segments = data["annotations"][0]["segments_info"]
    assert len(segments) == 4  # the two walls are one
    assert {segment["iscrowd"] for segment in segments} == {0}
    assert [image["file_name"] for image in data["images"]] == ["a.jpg"]
    dataset = open_dataset(str(out), images=str(photos))
    dataset.check()
    assert [c.name for c in dataset.categories if not c.isthing] == ["wall"]


def test_photos_of_one_name_in_two_folders_have_a_png_each(tmp_path: Path) -> None:
    names = ["x/a.jpg", "x_a.jpg", "y/a.png", "y/a.jpg"]
    labels = tmp_path / "instances.json"
    size = {"height": 30, "width": 40}
    found = [
        {
            "id": n,
            "image_id": n,
            "category_id": 1,
            "iscrowd": 0,
            "area": 4 * n,
            "bbox": [0, 0, 2 * n, 2],
            "segmentation": [box(0, 0, 2 * n, 2)],
        }
        for n in range(1, 5)
    ]
    images = [{"id": n, "file_name": name, **size} for n, name in enumerate(names, 1)]
    categories = [{"id": 1, "name": "cup"}]
    labels.write_text(
        json.dumps({"images": images, "categories": categories, "annotations": found})
    )
    out = tmp_path / "panoptic.json"
    data = converted(labels, out)
    areas = [
        int((read_png((out.with_suffix("") / a["file_name"]).read_bytes()) > 0).sum())
        for a in data["annotations"]
    ]
    assert areas == [4, 8, 12, 16]


def test_labelme_s_shapes(photos: Path, tmp_path: Path) -> None:
    dot = io.BytesIO()
    Image.new("1", (4, 3), 1).save(dot, "PNG")
    shapes = [
        {"label": "table", "points": [[5, 5], [35, 5], [35, 25], [5, 25]]},
        {"label": "cup", "points": [[16, 14], [10, 10]], "shape_type": "rectangle"},
        {"label": "plate", "points": [[28, 15], [28, 18]], "shape_type": "circle"},
        {
            "label": "spoon",
            "points": [[7, 7], [10, 9]],
            "shape_type": "mask",
            "mask": base64.b64encode(dot.getvalue()).decode(),
        },
    ]
    label = {"imagePath": "a.jpg", "imageHeight": 30, "imageWidth": 40, "shapes": shapes}
    (photos / "a.json").write_text("\ufeff" + json.dumps(label))  # as editors of Windows save it
    out = tmp_path / "panoptic.json"
    seen = named(converted(photos, out), out)
    assert (seen[12, 12], seen[15, 28], seen[8, 8], seen[20, 20]) == (
        "cup",
        "plate",
        "spoon",
        "table",
    )
    assert seen[2, 2] == "-"
    open_dataset(str(out), images=str(photos)).check()


def test_a_line_has_no_area_and_a_class_may_be_mistyped(photos: Path, tmp_path: Path) -> None:
    shape = {"label": "crack", "points": [[0, 0], [5, 5]], "shape_type": "linestrip"}
    label = {"imagePath": "a.jpg", "imageHeight": 30, "imageWidth": 40, "shapes": [shape]}
    (photos / "a.json").write_text(json.dumps(label))
    command = [sys.executable, str(EXAMPLES / "to_panoptic.py"), str(photos), "--out", "o.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, "'linestrip' has no area" in done.stderr) == (1, True)
    shape["shape_type"] = "polygon"
    shape["points"] = [[0, 0], [5, 5], [5, 0]]
    (photos / "a.json").write_text(json.dumps(label))
    done = subprocess.run(
        [*command, "--stuff", "skye"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "--stuff: no shape is called skye" in done.stderr
