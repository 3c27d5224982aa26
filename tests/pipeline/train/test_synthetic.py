"""The made scenes keep their promises: seeded, complete, crowded, and broken where asked."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr.inference.decode import ImageError, decode_image
from pipeline.train.synthetic import (
    MIN_STUFF_AREA,
    MIN_THING_AREA,
    SCENE_CATEGORIES,
    SIZES,
    Scene,
    scene,
    write_scenes,
)

THINGS = {category.id for category in SCENE_CATEGORIES if category.isthing}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(5, index) for index in range(150)]


def test_label_set_has_five_things_and_three_stuffs() -> None:
    assert len(THINGS) >= 5
    assert len(SCENE_CATEGORIES) - len(THINGS) >= 3


def test_scene_is_the_same_on_every_machine() -> None:
    made = scene(1, 2)
    digest = hashlib.sha256(made.image.tobytes() + made.segment_map.tobytes()).hexdigest()
    assert digest[:16] == "ee0f236cd48f7aa0"


def test_scenes_differ_by_seed_and_index() -> None:
    images = [scene(s, i).image.tobytes() for s, i in ((1, 0), (1, 1), (2, 0), (2, 1))]
    assert len(set(images)) == 4


def test_map_and_list_agree(scenes: list[Scene]) -> None:
    for made in scenes:
        listed = [segment["id"] for segment in made.segments]
        assert len(set(listed)) == len(listed)
        assert set(np.unique(made.segment_map).tolist()) - {0} == set(listed)
        assert made.image.shape == (*made.segment_map.shape, 3)
        assert made.image.dtype == np.uint8


def test_every_segment_can_be_seen(scenes: list[Scene]) -> None:
    for made in scenes:
        for segment in made.segments:
            least = MIN_THING_AREA if segment["category_id"] in THINGS else MIN_STUFF_AREA
            assert (made.segment_map == segment["id"]).sum() >= least


def test_stuff_is_one_segment_per_class(scenes: list[Scene]) -> None:
    for made in scenes:
        stuff = [s["category_id"] for s in made.segments if s["category_id"] not in THINGS]
        assert len(set(stuff)) == len(stuff)


def test_variety(scenes: list[Scene]) -> None:
    things = Counter(sum(s["category_id"] in THINGS for s in made.segments) for made in scenes)
    assert set(things) == set(range(1, 9))
    assert {made.segment_map.shape for made in scenes} == set(SIZES)
    assert len({round(width / height, 2) for height, width in SIZES}) == 3
    categories = Counter(s["category_id"] for made in scenes for s in made.segments)
    assert set(categories) == set(SCENE_CATEGORIES.ids)
    void = np.mean([float((made.segment_map == 0).mean()) for made in scenes])
    assert 0.01 < void < 0.06


def test_about_half_of_the_things_touch_another_that_hides_them(scenes: list[Scene]) -> None:
    """A thing in front of another shares a border with it: at least half of all have such one."""
    touching = total = 0
    for made in scenes:
        ids = [s["id"] for s in made.segments if s["category_id"] in THINGS]
        for own in ids:
            mask = made.segment_map == own
            grown = mask.copy()
            grown[1:] |= mask[:-1]
            grown[:-1] |= mask[1:]
            grown[:, 1:] |= mask[:, :-1]
            grown[:, :-1] |= mask[:, 1:]
            around = set(np.unique(made.segment_map[grown & ~mask]).tolist())
            touching += bool(around & (set(ids) - {own}))
            total += 1
    assert touching / total > 0.6  # hidden and hiding ones together


def test_dataset_on_disk_is_coco_panoptic(tmp_path: Path) -> None:
    write_scenes(tmp_path, 3, 7)
    truth = json.loads((tmp_path / "panoptic.json").read_text())
    assert truth["categories"] == SCENE_CATEGORIES.to_json()
    assert [image["id"] for image in truth["images"]] == [0, 1, 2]
    for image, annotation in zip(truth["images"], truth["annotations"], strict=True):
        made = scene(7, image["id"])
        assert annotation["image_id"] == image["id"]
        png = np.asarray(
            Image.open(tmp_path / "panoptic" / annotation["file_name"]), dtype=np.int32
        )
        ids = png[..., 0] + 256 * png[..., 1] + 256**2 * png[..., 2]
        assert (ids == made.segment_map).all()
        photo = np.asarray(Image.open(tmp_path / "images" / image["file_name"]))
        assert photo.shape == (image["height"], image["width"], 3)
        assert np.abs(photo.astype(int) - made.image).mean() < 12  # JPEG of a noisy image
        for segment in annotation["segments_info"]:
            ys, xs = np.nonzero(ids == segment["id"])
            assert segment["area"] == ys.size
            x, y, w, h = segment["bbox"]
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x, y, x + w, y + h)


def test_broken_files_cannot_be_decoded_and_have_no_truth(tmp_path: Path) -> None:
    write_scenes(tmp_path, 1, 7, broken=5)
    files = sorted((tmp_path / "images").glob("broken-*"))
    assert len(files) == 5
    codes = []
    for file in files:
        with pytest.raises(ImageError) as caught:
            decode_image(file.read_bytes())
        codes.append(caught.value.code)
    assert set(codes) == {"empty", "truncated", "not_an_image", "corrupt"}
    assert len(json.loads((tmp_path / "panoptic.json").read_text())["images"]) == 1
